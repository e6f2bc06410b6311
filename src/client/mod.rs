//! An async client of a node's Unix socket.
//!
//! ```no_run
//! # async fn example() -> Result<(), outrigger::client::Error> {
//! use outrigger::client::{Cas, Client, Expect};
//!
//! let client = Client::builder("/run/outrigger/outrigger.sock").shard("acme", "payments")?.build();
//! let upd = client.put("wf/payments/a/1", "started").await?;
//! match client.cas("wf/payments/a/1", Expect::Upd(upd), "done").await? {
//!     Cas::Written(upd) => println!("version {upd}"),
//!     Cas::Mismatch(current) => println!("someone else wrote {current:?}"),
//! }
//! # Ok(()) }
//! ```
//!
//! One client keeps one connection and sends one request at a time over it; a program that wants requests side by side
//! makes several clients. A connection that the node closed is opened again. A request is sent twice only where the
//! node cannot have seen it the first time, or where it only reads.

mod backup;
mod batch;
mod error;
mod listing;
mod watch;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{AUTHORIZATION, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use hyper::http::request;
use hyper::{Method, Request, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use crate::cluster::status::{ClusterStatus, ShardStatus};
use crate::token::Token;
use crate::types::{Ballot, InvalidInput, Namespace, NodeId, Org, ShardId};
pub use backup::{COPY_BEGINS_WITHIN, Copy, Copyable};
pub use batch::{BATCH_BYTES_SOFT_MAX, BATCH_OPS_MAX, BatchDone, BatchOp};
pub use error::{Error, Problem, Written};
pub use listing::{Item, Listing, Page};
pub use watch::{Change, Mirror, WATCH_SILENCE_MAX, Watch};
use wire::{Answer, Body, Sender};

/// How long to wait for an answer where the client was given no timeout: longer than any node may look for a quorum.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(65);
/// How much longer than the timeout that the node was given its answer may take to arrive.
pub const ANSWER_SLACK: Duration = Duration::from_secs(5);
/// The largest answer that is read whole, in bytes.
pub const ANSWER_BYTES_MAX: usize = 128 * 1024 * 1024;
/// The most items in one page.
pub const PAGE_ITEMS_MAX: usize = 10_000;

/// Everything but RFC 3986's unreserved characters; `/` too, so that no key looks like a path with dots in it.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Who has to agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// This node alone.
    Local,
    /// A majority of the voters.
    Quorum,
}

impl Consistency {
    /// As the `consistency` parameter writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Quorum => "quorum",
        }
    }
}

/// What a conditional write wants to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// No value.
    Absent,
    /// A value of exactly this version.
    Upd(Ballot),
}

/// How a conditional write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cas {
    /// The condition held; the new version.
    Written(Ballot),
    /// It did not, and nothing was written; the version there now, none where the key has no value.
    Mismatch(Option<Ballot>),
}

/// A value and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The bytes.
    pub value: Bytes,
    /// The ballot of the round that first wrote it.
    pub upd: Ballot,
}

/// Whether a node can serve quorum operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Ready,
    /// It cannot, and why.
    Unready(String),
}

/// Sets a [`Client`] up.
#[derive(Debug, Clone)]
pub struct Builder {
    socket: PathBuf,
    shard: ShardId,
    consistency: Option<Consistency>,
    timeout: Option<Duration>,
    answer_within: Option<Duration>,
    token: Option<Token>,
}

impl Builder {
    /// What to show to a node whose rules ask for a token. [`token::read_file`](crate::token::read_file) reads one from a file.
    #[must_use]
    pub fn token(mut self, token: Token) -> Self {
        self.token = Some(token);
        self
    }

    /// Which shard to work on; an empty org is the sentinel.
    pub fn shard(mut self, org: &str, namespace: &str) -> Result<Self, Error> {
        self.shard = ShardId::parse(org, namespace)?;
        Ok(self)
    }

    /// Who has to agree, to reads and writes. By default reads are local, writes want a quorum. Local writes need the node
    /// alone and are handed on once it has a quorum, where the last writer by clock wins; [`Client::cas`] has none of them.
    #[must_use]
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = Some(consistency);
        self
    }

    /// How long the node may look for a quorum. By default what the node is configured to.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long to wait for an answer. By default [`ANSWER_SLACK`] longer than the timeout that was set, and
    /// [`ANSWER_WITHIN`] where none was.
    #[must_use]
    pub fn answer_within(mut self, within: Duration) -> Self {
        self.answer_within = Some(within);
        self
    }

    /// A request that shows the token.
    fn begin(&self, method: Method, uri: &str) -> request::Builder {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(token) = &self.token {
            let mut header = HeaderValue::from_str(&format!("Bearer {}", token.reveal()));
            if let Ok(header) = &mut header {
                header.set_sensitive(true);
            }
            request = request.header(AUTHORIZATION, header.unwrap_or_else(|_| HeaderValue::from_static("Bearer")));
        }
        request
    }

    /// The client. Connects with the first request.
    #[must_use]
    pub fn build(self) -> Client {
        Client { options: self, connection: Mutex::new(None) }
    }
}

/// One connection to a node, working on one shard.
#[derive(Debug)]
pub struct Client {
    options: Builder,
    connection: Mutex<Option<Sender>>,
}

impl Client {
    /// Starts with the socket's path; org `_`, namespace `default`.
    #[must_use]
    pub fn builder(socket: impl Into<PathBuf>) -> Builder {
        let shard = ShardId { org: Org::sentinel(), namespace: Namespace::default_name() };
        Builder { socket: socket.into(), shard, consistency: None, timeout: None, answer_within: None, token: None }
    }

    /// Writes; returns the new version once a majority has it on disk, or this node where the client's writes are local.
    pub async fn put(&self, key: &str, value: impl Into<Bytes>) -> Result<Ballot, Error> {
        let request = self.request(Method::PUT, &self.key_path(key)?, value.into(), None)?;
        let answer = self.send("put", request).await?.success()?;
        answer.required_etag()
    }

    /// Reads; `None` where the key has no value.
    pub async fn get(&self, key: &str) -> Result<Option<Versioned>, Error> {
        let request = self.request(Method::GET, &self.key_path(key)?, Bytes::new(), None)?;
        let answer = self.send("get", request).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let answer = answer.success()?;
        Ok(Some(Versioned { upd: answer.required_etag()?, value: answer.body }))
    }

    /// Deletes; succeeds whether there was a value or not.
    pub async fn del(&self, key: &str) -> Result<(), Error> {
        let request = self.request(Method::DELETE, &self.key_path(key)?, Bytes::new(), None)?;
        self.send("del", request).await?.success().map(drop)
    }

    /// Writes if the key is as expected, atomically.
    pub async fn cas(&self, key: &str, expect: Expect, value: impl Into<Bytes>) -> Result<Cas, Error> {
        let request = self.request(Method::PUT, &self.key_path(key)?, value.into(), Some(expect))?;
        let answer = self.send("cas", request).await?;
        if answer.status == StatusCode::PRECONDITION_FAILED {
            return Ok(Cas::Mismatch(answer.etag()?));
        }
        answer.success()?.required_etag().map(Cas::Written)
    }

    /// One page of a listing, in key order: keys that start with `prefix` and come after `after`, at most `limit`
    /// (1 to [`PAGE_ITEMS_MAX`]); without values where `keys_only`. Each page is a snapshot of its own.
    pub async fn page(&self, prefix: &str, after: Option<&str>, limit: usize, keys_only: bool) -> Result<Page, Error> {
        let mut path = self.list_path(prefix, keys_only);
        path.push_str(&format!("&limit={}", limit.clamp(1, PAGE_ITEMS_MAX)));
        if let Some(after) = after {
            path.push_str(&format!("&after={}", escape(after)));
        }
        let request = self.request(Method::GET, &path, Bytes::new(), None)?;
        self.send("list", request).await?.success()?.json()
    }

    /// Streams all keys that start with `prefix`, in key order, over a connection of its own: this node's copy, read
    /// as the stream is taken.
    pub async fn list(&self, prefix: &str, keys_only: bool) -> Result<Listing, Error> {
        let request = self.request(Method::GET, &self.list_path(prefix, keys_only), Bytes::new(), None)?;
        listing::start(&self.options.socket, request, self.answer_within()).await
    }

    /// Carries out up to [`BATCH_OPS_MAX`] operations in one round trip; one result for each, in their order. Not
    /// atomic. Those on the same key take effect in their order, others at the same time.
    pub async fn batch(&self, ops: &[BatchOp]) -> Result<Vec<Result<BatchDone, Problem>>, Error> {
        let ShardId { org, namespace } = &self.options.shard;
        let path = format!("/v1/batch/{}/{}?", escape(org.as_str()), escape(namespace.as_str()));
        let mut request = self.request(Method::POST, &path, batch::body(ops)?, None)?;
        batch::set_format(request.headers_mut());
        let answer = self.send("batch", request).await?.success()?;
        batch::results(&answer.body, ops)
    }

    /// The shards to back up, of one org or of all. Unless the client's consistency is local: all to which any node
    /// acknowledged a write before the call.
    pub async fn copyable(&self, org: Option<&Org>) -> Result<Copyable, Error> {
        let org = org.map_or_else(String::new, |org| format!("&org={}", escape(org.as_str())));
        self.show("backup", &format!("/v1/backup?consistency={}{org}", self.copy_consistency())).await
    }

    /// A copy of a shard as an SQLite database, over a connection of its own; none where there is no such shard. Unless
    /// the client's consistency is local it has every write that any node acknowledged before the call.
    pub async fn copy(&self, shard: &ShardId) -> Result<Option<Copy>, Error> {
        let (org, namespace) = (escape(shard.org.as_str()), escape(shard.namespace.as_str()));
        let path = format!("/v1/backup/{org}/{namespace}?consistency={}", self.copy_consistency());
        let request = self.options.begin(Method::GET, &path).body(Body::default());
        backup::start(&self.options.socket, request.map_err(|why| Error::malformed_request(&path, &why))?).await
    }

    fn copy_consistency(&self) -> &'static str {
        self.options.consistency.unwrap_or(Consistency::Quorum).as_str()
    }

    /// Watches all keys that start with `prefix`, over a connection of its own: after the event `since`, where the node still
    /// knows what happened since, with a snapshot first otherwise. [`Mirror`] keeps what it adds up to.
    ///
    /// ```no_run
    /// # async fn example(client: outrigger::client::Client) -> Result<(), outrigger::client::Error> {
    /// use outrigger::client::Mirror;
    ///
    /// let (mut watch, mut mirror) = (client.watch("wf/", None).await?, Mirror::default());
    /// loop {
    ///     match watch.next().await {
    ///         Ok(change) => mirror.apply(change),
    ///         // Cut off, or the node is gone: goes on where it was, or with a new snapshot.
    ///         Err(_) => watch.resume().await?,
    ///     }
    /// }
    /// # }
    /// ```
    pub async fn watch(&self, prefix: &str, since: Option<&str>) -> Result<Watch, Error> {
        let ShardId { org, namespace } = &self.options.shard;
        let (org, namespace) = (escape(org.as_str()), escape(namespace.as_str()));
        let path = format!("/v1/watch/{org}/{namespace}?prefix={}", escape(prefix));
        Watch::start(self.options.clone(), path, self.answer_within(), since).await
    }

    /// The cluster as this node sees it.
    pub async fn cluster(&self) -> Result<ClusterStatus, Error> {
        self.show("cluster", "/v1/cluster").await
    }

    /// Has this node vote from now on; returns once that is begun. How it goes on is told by [`Client::cluster`].
    pub async fn add_voter(&self, node: &NodeId) -> Result<ClusterStatus, Error> {
        self.order("cluster add", Method::PUT, &format!("/v1/cluster/voters/{node}")).await
    }

    /// Takes a voter's vote away, or an observer off the list; returns once that is begun.
    pub async fn remove_voter(&self, node: &NodeId) -> Result<ClusterStatus, Error> {
        self.order("cluster remove", Method::DELETE, &format!("/v1/cluster/voters/{node}")).await
    }

    /// Has the disk that this voter came back with vote in its place, or another node; returns once that is begun.
    pub async fn replace_voter(&self, node: &NodeId, with: Option<&NodeId>) -> Result<ClusterStatus, Error> {
        let with = with.map_or_else(String::new, |with| format!("?with={with}"));
        self.order("cluster replace", Method::POST, &format!("/v1/cluster/voters/{node}/replace{with}")).await
    }

    /// Has so many voters replicate each shard, or all of them where there is no number; returns once that is begun.
    pub async fn set_replication_factor(&self, factor: Option<usize>) -> Result<ClusterStatus, Error> {
        let value = factor.map_or_else(|| "all".to_owned(), |factor| factor.to_string());
        let path = format!("/v1/cluster/replication-factor?value={value}");
        self.order("cluster replication-factor", Method::PUT, &path).await
    }

    /// Has these voters replicate `shard` before all others, or those that follow from its name where none is given; returns
    /// once that is begun.
    pub async fn move_shard(&self, shard: &ShardId, to: &[NodeId]) -> Result<ClusterStatus, Error> {
        let (org, namespace) = (escape(shard.org.as_str()), escape(shard.namespace.as_str()));
        let path = format!("/v1/cluster/pins/{org}/{namespace}");
        if to.is_empty() {
            return self.order("migrate", Method::DELETE, &path).await;
        }
        let names = to.iter().map(NodeId::as_str).collect::<Vec<_>>().join(",");
        self.order("migrate", Method::PUT, &format!("{path}?to={names}")).await
    }

    /// Lets this node decide alone from now on, where a majority is lost for good. Acknowledged writes that only the lost
    /// nodes had are lost with them.
    pub async fn recover(&self) -> Result<ClusterStatus, Error> {
        self.order("cluster recover", Method::POST, "/v1/cluster/recover?force=true").await
    }

    async fn order(&self, tried: &'static str, method: Method, path: &str) -> Result<ClusterStatus, Error> {
        let request = self.options.begin(method, path).body(Body::default());
        let request = request.map_err(|why| Error::malformed_request(path, &why))?;
        self.send(tried, request).await?.success()?.json()
    }

    /// What this node stores, of one org or of all.
    pub async fn shards(&self, org: Option<&Org>) -> Result<Vec<ShardStatus>, Error> {
        #[derive(serde::Deserialize)]
        struct Shards {
            shards: Vec<ShardStatus>,
        }
        let path =
            org.map_or_else(|| "/v1/shards".to_owned(), |org| format!("/v1/shards?org={}", escape(org.as_str())));
        let Shards { shards } = self.show("shards", &path).await?;
        Ok(shards)
    }

    /// Whether this node can serve quorum operations now.
    pub async fn health(&self) -> Result<Health, Error> {
        let request = self.options.begin(Method::GET, "/v1/cluster/health").body(Body::default());
        let request = request.map_err(|why| Error::malformed_request("/v1/cluster/health", &why))?;
        let answer = self.send("health", request).await?;
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            let problem = answer.problem();
            return Ok(Health::Unready(if problem.detail.is_empty() { problem.title } else { problem.detail }));
        }
        answer.success().map(|_| Health::Ready)
    }

    async fn show<T: DeserializeOwned>(&self, tried: &'static str, path: &str) -> Result<T, Error> {
        let request = self.options.begin(Method::GET, path).body(Body::default());
        let request = request.map_err(|why| Error::malformed_request(path, &why))?;
        self.send(tried, request).await?.success()?.json()
    }

    fn key_path(&self, key: &str) -> Result<String, Error> {
        if key.is_empty() {
            return Err(InvalidInput::EmptyKey.into());
        }
        Ok(format!("{}/{}?", self.shard_path(), escape(key)))
    }

    fn list_path(&self, prefix: &str, keys_only: bool) -> String {
        format!("{}?prefix={}&keys_only={keys_only}", self.shard_path(), escape(prefix))
    }

    fn shard_path(&self) -> String {
        let ShardId { org, namespace } = &self.options.shard;
        format!("/v1/kv/{}/{}", escape(org.as_str()), escape(namespace.as_str()))
    }

    /// `path` ends in its query, which the client's own options are added to.
    fn request(&self, method: Method, path: &str, body: Bytes, expect: Option<Expect>) -> Result<Request<Body>, Error> {
        let mut uri = path.to_owned();
        if let Some(consistency) = self.options.consistency {
            uri.push_str(&format!("&consistency={}", consistency.as_str()));
        }
        if let Some(timeout) = self.options.timeout {
            let shown = humantime::format_duration(timeout).to_string().replace(' ', "");
            uri.push_str(&format!("&timeout={shown}"));
        }
        let uri = uri.replacen("?&", "?", 1);
        let mut request = self.options.begin(method, uri.trim_end_matches('?'));
        request = match expect {
            None => request,
            Some(Expect::Absent) => request.header(IF_NONE_MATCH, "*"),
            Some(Expect::Upd(upd)) => request.header(IF_MATCH, format!("\"{upd}\"")),
        };
        request.body(Body::new(body)).map_err(|why| Error::malformed_request(path, &why))
    }

    fn answer_within(&self) -> Duration {
        let by_timeout = || self.options.timeout.map_or(ANSWER_WITHIN, |timeout| timeout.saturating_add(ANSWER_SLACK));
        self.options.answer_within.unwrap_or_else(by_timeout)
    }

    async fn send(&self, tried: &'static str, request: Request<Body>) -> Result<Answer, Error> {
        // While the lock is held the connection is out of its slot, so a caller who gives up half-way closes it: the
        // rest of an answer must never be taken for the start of the next.
        let mut slot = self.connection.lock().await;
        let idle = slot.take();
        let exchange = wire::exchange(&self.options.socket, idle, tried, request);
        let within = self.answer_within();
        let (answer, sender) = tokio::time::timeout(within, exchange).await.map_err(|_| Error::Broken {
            socket: self.options.socket.clone(),
            tried,
            reason: format!("no answer in {}", humantime::format_duration(within)),
        })??;
        *slot = Some(sender);
        Ok(answer)
    }
}

fn escape(text: &str) -> percent_encoding::PercentEncode<'_> {
    utf8_percent_encode(text, ESCAPED)
}
