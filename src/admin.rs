//! The operator's door, on TCP: `/metrics`, `/livez`, `/readyz`, and a status page that works offline.
//!
//! Read only, and careful with what it gives away: no key, org, namespace or value is shown here. It has bounds of its
//! own, so that a stuck scraper never takes anything from the node.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::Gauge;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::status::{ClusterStatus, Observe};
use crate::telemetry::{self, Kind, METRICS};

/// How many connections are served at once; one more is answered 503.
pub const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to send a request's head, and a connection may idle.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may live, whatever it does.
pub const CONNECTION_LIFETIME: Duration = Duration::from_secs(300);
/// How long [`Admin::shutdown`] waits for answers that are on their way.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);
/// How often histograms are drained when nobody scrapes them.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// How long to wait after the listener failed, as it does while the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const SECONDS_BUCKETS: [f64; 17] =
    [0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
const COUNT_BUCKETS: [f64; 13] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

const PAGE: &str = include_str!("admin/status.html");
const TEXT: &str = "text/plain; charset=utf-8";
/// The page runs its own script and style and talks to this server alone.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                           connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Why the admin port could not be opened, or metrics not installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not this machine's.
    #[error("could not listen on {listen} for /metrics and /readyz: {source}; set [admin] listen to a free address")]
    Listen {
        /// The configured address.
        listen: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Another recorder is there already, or the table of metrics is wrong.
    #[error("could not install the metrics recorder: {0}; a process has one, is another library's installed?")]
    Metrics(#[from] BuildError),
}

/// Installs the process's metrics recorder, with buckets for every histogram and a description of every metric.
/// A second call returns the same recorder's handle.
pub fn install_metrics() -> Result<PrometheusHandle, Error> {
    static INSTALLED: OnceLock<PrometheusHandle> = OnceLock::new();
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = INSTALLING.lock();
    if let Some(handle) = INSTALLED.get() {
        return Ok(handle.clone());
    }
    let handle = recorder()?.install_recorder()?;
    telemetry::describe();
    Ok(INSTALLED.get_or_init(|| handle).clone())
}

fn recorder() -> Result<PrometheusBuilder, BuildError> {
    let mut histograms = METRICS.iter().filter(|metric| metric.kind == Kind::Histogram);
    histograms.try_fold(PrometheusBuilder::new(), |builder, metric| {
        let in_seconds = metric.name.ends_with("_seconds");
        let buckets: &[f64] = if in_seconds { &SECONDS_BUCKETS } else { &COUNT_BUCKETS };
        builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
    })
}

/// The admin server. Dropping it closes the port and cuts what is on its way; [`Admin::shutdown`] finishes that first.
#[derive(Debug)]
pub struct Admin {
    local_addr: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct Door {
    observe: Arc<dyn Observe>,
    metrics: PrometheusHandle,
    ready: Gauge,
    connections: Arc<Semaphore>,
}

impl Admin {
    /// Serves on `listen`; port 0 takes a free one.
    pub async fn start(
        listen: SocketAddr,
        observe: Arc<dyn Observe>,
        metrics: PrometheusHandle,
    ) -> Result<Self, Error> {
        let listener = TcpListener::bind(listen).await.map_err(|source| Error::Listen { listen, source })?;
        let local_addr = listener.local_addr().map_err(|source| Error::Listen { listen, source })?;
        let ready = metrics::gauge!(telemetry::READY);
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let door = Arc::new(Door { observe, metrics, ready, connections });
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(upkeep(door.metrics.clone(), stop.clone()));
        tasks.spawn(accept(listener, door, stop.clone(), tasks.clone()));
        tasks.close();
        Ok(Self { local_addr, stop, tasks })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Takes no more connections, finishes the answers on their way within [`SHUTDOWN_TIMEOUT`], and closes.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::debug!("an admin connection outlived the shutdown; it is cut with the process");
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn upkeep(metrics: PrometheusHandle, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        metrics.run_upkeep();
    }
}

async fn accept(listener: TcpListener, door: Arc<Door>, stop: CancellationToken, tasks: TaskTracker) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => admit(stream, &door, &stop, &tasks),
            Err(error) => {
                tracing::debug!(%error, "could not accept an admin connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn admit(stream: TcpStream, door: &Arc<Door>, stop: &CancellationToken, tasks: &TaskTracker) {
    let Ok(permit) = door.connections.clone().try_acquire_owned() else {
        // Fits any socket's empty send buffer; a client that cannot take it sees the connection close.
        let _ = stream.try_write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        return;
    };
    let (door, stop) = (door.clone(), stop.clone());
    tasks.spawn(async move {
        let served = tokio::time::timeout(CONNECTION_LIFETIME, serve(stream, door, stop)).await;
        if let Ok(Err(error)) = served {
            tracing::trace!(%error, "an admin connection broke");
        }
        drop(permit);
    });
}

async fn serve(stream: TcpStream, door: Arc<Door>, stop: CancellationToken) -> Result<(), hyper::Error> {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = door.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = &mut connection => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// What the status page shows: everything that `GET /v1/cluster` tells but for what names shards, and the node's readiness.
#[derive(Serialize)]
struct Status {
    #[serde(flatten)]
    cluster: ClusterStatus,
    /// What the node waits for before it serves; absent once it does.
    waits_for: Option<String>,
}

impl Door {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(path, "/" | "/status.json" | "/metrics" | "/livez" | "/readyz") {
            return reply(StatusCode::NOT_FOUND, TEXT, "not here; try / /metrics /livez /readyz\n");
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut refused = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "this port is read only\n");
            refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match path {
            "/livez" => reply(StatusCode::OK, TEXT, "alive\n"),
            "/readyz" => self.readyz(),
            "/metrics" => self.metrics(),
            "/status.json" => self.status(),
            _ => page(),
        }
    }

    fn readyz(&self) -> Response<Full<Bytes>> {
        match self.observe.ready() {
            Ok(()) => reply(StatusCode::OK, TEXT, "ready\n"),
            Err(reason) => reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready: {reason}\n")),
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        self.ready.set(if self.observe.ready().is_ok() { 1.0 } else { 0.0 });
        reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics.render())
    }

    fn status(&self) -> Response<Full<Bytes>> {
        let cluster = self.observe.cluster().showing(|_| false);
        let status = Status { cluster, waits_for: self.observe.ready().err() };
        match serde_json::to_vec(&status) {
            Ok(json) => reply(StatusCode::OK, "application/json", json),
            Err(error) => {
                reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("could not write the status: {error}\n"))
            }
        }
    }
}

fn page() -> Response<Full<Bytes>> {
    let mut page = reply(StatusCode::OK, "text/html; charset=utf-8", PAGE);
    let policy = HeaderValue::from_static(PAGE_POLICY);
    page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    page
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusRecorder;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::cluster::change::VoterChange;
    use crate::cluster::membership::Membership;
    use crate::cluster::status::{ChangeStatus, DecisionCounts, NodeStatus, Pin, Role};
    use crate::types::{Namespace, NodeId, Org, ShardId, StorageId};

    const PATIENCE: Duration = Duration::from_secs(20);

    struct Observed(Mutex<Result<(), String>>);

    impl Observe for Observed {
        fn cluster(&self) -> ClusterStatus {
            let me = NodeId::parse("a").unwrap();
            ClusterStatus {
                cluster: "<script>alert(1)</script>".into(),
                node: me.clone(),
                version: "0.1.0".into(),
                epoch: 1,
                voters: vec![me.clone()],
                replication_factor: None,
                pins: vec![Pin {
                    org: Org::parse("a-secret-org").unwrap(),
                    namespace: Namespace::default_name(),
                    nodes: vec![me.clone()],
                }],
                joint: true,
                change: Some(ChangeStatus {
                    change: VoterChange::Move {
                        shard: ShardId::parse("a-secret-org", "pay").unwrap(),
                        to: vec![me.clone()],
                    }
                    .to_string(),
                    step: "begun".into(),
                    failed: false,
                }),
                nodes: vec![NodeStatus {
                    node: me,
                    me: true,
                    live: true,
                    role: Role::Voter,
                    storage_id: Some(StorageId(255)),
                    address: Some("127.0.0.1:7117".into()),
                    round_trip_us: None,
                    epoch: Some(1),
                    open_shards: Some(2),
                    pending_frames: Some(0),
                    clock_skew_us: None,
                    in_step: true,
                    lag_frames: Some(0),
                }],
                open_shards: 2,
                decisions: DecisionCounts { accept: 5, reject: 1, timeout: 0 },
                pending_frames: 0,
                outbox: Default::default(),
                unready: None,
                refusals: Vec::new(),
            }
        }

        fn membership(&self) -> Membership {
            Membership::unknown()
        }

        fn health(&self) -> Result<(), String> {
            Ok(())
        }

        fn ready(&self) -> Result<(), String> {
            self.0.lock().clone()
        }

        fn in_step(&self) -> Vec<NodeId> {
            Vec::new()
        }
    }

    async fn start() -> (Admin, Arc<Observed>) {
        start_with(&recorder().unwrap().build_recorder()).await
    }

    /// Scrapes `recorder`, so that what other tests of this process count is not seen.
    async fn start_with(recorder: &PrometheusRecorder) -> (Admin, Arc<Observed>) {
        let observed = Arc::new(Observed(Mutex::new(Err("2 of 3 voters are away".into()))));
        let any = ([127, 0, 0, 1], 0).into();
        (Admin::start(any, observed.clone(), recorder.handle()).await.unwrap(), observed)
    }

    /// Sends `request` and reads until the server closes.
    async fn exchange(addr: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    async fn get(admin: &Admin, path: &str) -> (u16, String, String) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n");
        let answer = exchange(admin.local_addr(), &request).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_owned())
    }

    #[tokio::test]
    async fn readiness_follows_the_node_and_liveness_does_not() {
        let recorder = recorder().unwrap().build_recorder();
        let _recording = metrics::set_default_local_recorder(&recorder);
        let (admin, observed) = start_with(&recorder).await;
        let (status, _, body) = get(&admin, "/readyz").await;
        assert_eq!((status, &*body), (503, "not ready: 2 of 3 voters are away\n"));
        assert_eq!(get(&admin, "/livez").await.0, 200);
        assert!(get(&admin, "/metrics").await.2.contains("outrigger_ready 0"));
        *observed.0.lock() = Ok(());
        assert_eq!(get(&admin, "/readyz?verbose").await.0, 200);
        assert!(get(&admin, "/metrics").await.2.contains("outrigger_ready 1"));
    }

    #[tokio::test]
    async fn histograms_have_buckets_of_their_unit() {
        let recorder = recorder().unwrap().build_recorder();
        let _recording = metrics::set_default_local_recorder(&recorder);
        telemetry::describe();
        let (admin, _) = start_with(&recorder).await;
        metrics::histogram!(telemetry::FSYNC_SECONDS).record(0.000_15);
        metrics::histogram!(telemetry::BATCH_ENTRIES).record(3.0);
        let (status, head, text) = get(&admin, "/metrics").await;
        assert_eq!(status, 200);
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        for line in [
            "# HELP outrigger_journal_fsync_seconds Writing and syncing one batch of the journal.",
            "# TYPE outrigger_journal_fsync_seconds histogram",
            r#"outrigger_journal_fsync_seconds_bucket{le="0.0001"} 0"#,
            r#"outrigger_journal_fsync_seconds_bucket{le="0.0002"} 1"#,
            r#"outrigger_journal_fsync_seconds_bucket{le="10"} 1"#,
            r#"outrigger_journal_batch_entries_bucket{le="2"} 0"#,
            r#"outrigger_journal_batch_entries_bucket{le="4"} 1"#,
            r#"outrigger_journal_batch_entries_bucket{le="4096"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "no {line:?} in\n{text}");
        }
    }

    #[tokio::test]
    async fn the_page_is_self_contained_and_its_data_is_plain_json() {
        let (admin, _) = start().await;
        let (status, head, page) = get(&admin, "/").await;
        assert_eq!(status, 200);
        assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
        assert!(!page.contains("http:") && !page.contains("https:"), "nothing is loaded from elsewhere");
        for unsafe_way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!page.contains(unsafe_way), "text goes in as text, never by {unsafe_way}");
        }
        let (status, head, json) = get(&admin, "/status.json").await;
        assert_eq!(status, 200);
        assert!(head.contains("content-type: application/json"), "{head}");
        assert!(!json.contains("secret"), "what names shards is not for whoever reaches this port: {json}");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["joint"], &json["change"]), (&true.into(), &serde_json::Value::Null));
        assert_eq!(json["waits_for"], "2 of 3 voters are away");
        assert_eq!(json["decisions"]["accept"], 5);
        assert_eq!(json["nodes"][0]["storage_id"], "00000000000000ff");
    }

    /// Whoever reaches this port has shown nothing: no path of the socket is here, and no method that changes anything.
    #[tokio::test]
    async fn nothing_of_the_socket_is_here() {
        let (admin, _) = start().await;
        let socket = include_str!("api/http/mod.rs");
        let paths: Vec<_> = socket.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert!(paths.len() > 10 && paths.iter().all(|path| path.starts_with("/v1/")), "{paths:?}");
        for path in paths {
            let path = path.replace("{*rest}", "acme/pay/k").replace(['{', '}'], "");
            assert_eq!(get(&admin, &path).await.0, 404, "{path}");
        }
        for path in ["/", "/status.json", "/metrics", "/livez", "/readyz"] {
            for method in ["PUT", "POST", "DELETE", "PATCH"] {
                let request = format!("{method} {path} HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n");
                let answer = exchange(admin.local_addr(), &request).await;
                assert!(answer.starts_with("HTTP/1.1 405 "), "{method} {path}: {answer}");
            }
        }
        // RESP is no language here.
        assert!(!exchange(admin.local_addr(), "*1\r\n$4\r\nPING\r\n").await.contains("PONG"));
    }

    #[tokio::test]
    async fn other_paths_and_methods_are_refused() {
        let (admin, _) = start().await;
        for path in ["/nothing", "/metrics/", "/../etc/passwd", "/%2e%2e/x"] {
            assert_eq!(get(&admin, path).await.0, 404, "{path}");
        }
        let request = "POST /livez HTTP/1.1\r\nhost: o\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let answer = exchange(admin.local_addr(), request).await;
        assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("allow: GET, HEAD"), "{answer}");
        let head = exchange(admin.local_addr(), "HEAD /livez HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
        let garbage = exchange(admin.local_addr(), "\u{1}\u{2}\u{3} what\r\n\r\n").await;
        assert!(garbage.is_empty() || garbage.starts_with("HTTP/1.1 400"), "{garbage}");
    }

    #[tokio::test]
    async fn one_connection_too_many_is_refused_at_once() {
        let (admin, _) = start().await;
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(admin.local_addr()).await.unwrap();
            stream.write_all(b"GET /livez HTTP/1.1\r\nhost: o\r\n\r\n").await.unwrap();
            // Its answer proves that it was admitted; it then idles.
            assert_eq!(stream.read_u8().await.unwrap(), b'H');
            held.push(stream);
        }
        let refused = exchange(admin.local_addr(), "").await;
        assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
        let mut one = held.pop().unwrap();
        one.shutdown().await.unwrap();
        let mut rest = Vec::new();
        one.read_to_end(&mut rest).await.unwrap();
        // The server closed its end before it gave the place back: ask until it has.
        let freed = async {
            while get_maybe(&admin).await != Some(200) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, freed).await.unwrap();
    }

    async fn get_maybe(admin: &Admin) -> Option<u16> {
        let mut stream = TcpStream::connect(admin.local_addr()).await.ok()?;
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut answer = Vec::new();
        // A refused connection may be reset before its 503 is read.
        stream.read_to_end(&mut answer).await.ok()?;
        String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
    }

    #[tokio::test]
    async fn shutdown_closes_idle_connections_and_the_port() {
        let (admin, _) = start().await;
        let mut idle = TcpStream::connect(admin.local_addr()).await.unwrap();
        idle.write_all(b"GET /livez HTTP/1.1\r\nhost: o\r\n\r\n").await.unwrap();
        assert_eq!(idle.read_u8().await.unwrap(), b'H');
        tokio::time::timeout(PATIENCE, admin.shutdown()).await.unwrap();
        let mut rest = Vec::new();
        tokio::time::timeout(PATIENCE, idle.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert!(TcpStream::connect(admin.local_addr()).await.is_err());
    }

    #[test]
    fn metrics_are_installed_once_whoever_asks() {
        let [first, second] = [install_metrics().unwrap(), install_metrics().unwrap()];
        metrics::counter!(telemetry::REQUESTS, "dialect" => "only here").increment(3);
        for handle in [first, second] {
            assert!(handle.render().contains("outrigger_requests_total{dialect=\"only here\"} 3"));
        }
    }

    #[tokio::test]
    async fn a_taken_port_is_named_in_the_error() {
        let (admin, observed) = start().await;
        let taken = admin.local_addr();
        let error =
            Admin::start(taken, observed, recorder().unwrap().build_recorder().handle()).await.unwrap_err().to_string();
        assert!(error.contains(&taken.to_string()) && error.contains("[admin] listen"), "{error}");
    }
}
