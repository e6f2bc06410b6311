//! Changes of the cluster as the socket takes them: what each request asks for, how it is answered, what it is refused for.

use std::sync::Arc;

use async_trait::async_trait;
use outrigger::cluster::change::{ChangeError, Refused, VoterChange};
use outrigger::cluster::status::{ChangeStatus, Govern, Pin};
use outrigger::types::{Namespace, NodeId, Org, ShardId};
use parking_lot::Mutex;
use serde_json::json;

use crate::access::{ACME, OPERATOR, READER, Tenants, WRONG};
use crate::support::Node;

/// Takes every order and does nothing about it.
#[derive(Default)]
struct Orders {
    taken: Mutex<Vec<VoterChange>>,
    refusal: Mutex<Option<ChangeError>>,
}

#[async_trait]
impl Govern for Orders {
    async fn change(&self, change: VoterChange) -> Result<(), ChangeError> {
        self.taken.lock().push(change);
        self.refusal.lock().take().map_or(Ok(()), Err)
    }
    async fn recover(&self) -> Result<(), ChangeError> {
        Ok(())
    }
}

async fn start() -> (Node, Arc<Orders>) {
    let orders = Arc::new(Orders::default());
    (Node::governed(orders.clone()).await, orders)
}

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

/// A shard that is pinned to `a`.
fn pin(org: &str, namespace: &str) -> Pin {
    let (org, namespace) = (Org::parse(org).unwrap(), Namespace::parse(namespace).unwrap());
    Pin { org, namespace, nodes: vec![node("a")] }
}

fn to(org: &str, namespace: &str, to: &[&str]) -> VoterChange {
    let shard = ShardId::parse(org, namespace).unwrap();
    VoterChange::Move { shard, to: to.iter().map(|name| node(name)).collect() }
}

#[tokio::test]
async fn each_change_is_asked_for_by_a_request_of_its_own() {
    let (socket, orders) = start().await;
    let replace = |with: Option<&str>| VoterChange::Replace { node: node("b"), with: with.map(node) };
    for (request, change) in [
        ("PUT /v1/cluster/voters/b", VoterChange::Add(node("b"))),
        ("DELETE /v1/cluster/voters/b", VoterChange::Remove(node("b"))),
        ("POST /v1/cluster/voters/b/replace", replace(None)),
        ("POST /v1/cluster/voters/b/replace?with=c", replace(Some("c"))),
        ("PUT /v1/cluster/replication-factor?value=1", VoterChange::Factor(Some(1))),
        ("PUT /v1/cluster/replication-factor?value=255", VoterChange::Factor(Some(255))),
        ("PUT /v1/cluster/replication-factor?value=all", VoterChange::Factor(None)),
        ("PUT /v1/cluster/pins/acme/pay?to=b", to("acme", "pay", &["b"])),
        ("PUT /v1/cluster/pins/acme/p%61y?to=c,a%2Cb", to("acme", "pay", &["a", "b", "c"])),
        ("PUT /v1/cluster/pins/_/default?to=b", to("", "default", &["b"])),
        ("DELETE /v1/cluster/pins/acme/pay", to("acme", "pay", &[])),
        ("DELETE /v1/cluster/pins/_/default", to("", "default", &[])),
    ] {
        let answer = socket.http(request, b"").await;
        assert_eq!(answer.status, 202, "{request}: {}", answer.text());
        assert_eq!(answer.json()["node"], "a", "{request}: the cluster as it is");
        assert_eq!(orders.taken.lock().drain(..).collect::<Vec<_>>(), [change], "{request}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_and_asked_of_nobody() {
    let (socket, orders) = start().await;
    for (request, part) in [
        ("PUT /v1/cluster/replication-factor", "value"),
        ("PUT /v1/cluster/replication-factor?value=", "1 to 255"),
        ("PUT /v1/cluster/replication-factor?value=0", "\"all\""),
        ("PUT /v1/cluster/replication-factor?value=-1", "-1"),
        ("PUT /v1/cluster/replication-factor?value=256", "1 to 255"),
        ("PUT /v1/cluster/replication-factor?value=3.5", "3.5"),
        ("PUT /v1/cluster/replication-factor?value=3&to=b", "to"),
        ("PUT /v1/cluster/pins/acme/pay", "to"),
        ("PUT /v1/cluster/pins/acme/pay?to=", "DELETE moves the shard back"),
        ("PUT /v1/cluster/pins/acme/pay?to=b,", "node"),
        ("PUT /v1/cluster/pins/acme/pay?to=b,c,b", "b stands twice"),
        ("PUT /v1/cluster/pins/acme/pay?to=b/c", "b/c"),
        ("PUT /v1/cluster/pins/acme/..?to=b", "namespace"),
        ("PUT /v1/cluster/pins/outrigger.system/cluster?to=b", "outrigger.system"),
        ("DELETE /v1/cluster/pins/acme/pay?to=b", "to"),
        ("DELETE /v1/cluster/pins/%FF/pay", "UTF-8"),
    ] {
        let answer = socket.http(request, b"").await;
        assert_eq!(answer.problem(), (400, "invalid-request".to_owned(), "no".to_owned()), "{request}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(part), "{request}: {detail:?} lacks {part:?}");
    }
    for request in ["GET /v1/cluster/replication-factor", "POST /v1/cluster/pins/acme/pay"] {
        assert_eq!(socket.http(request, b"").await.problem().1, "method-not-allowed", "{request}");
    }
    assert_eq!(socket.http("PUT /v1/cluster/pins/acme?to=b", b"").await.status, 404);
    assert!(orders.taken.lock().is_empty());
}

#[tokio::test]
async fn what_cannot_be_as_things_are_is_a_conflict_that_says_why() {
    let (socket, orders) = start().await;
    let change = to("acme", "pay", &["b"]);
    *orders.refusal.lock() = Some(ChangeError::Refused(change, Refused::Everywhere));
    let refused = socket.http("PUT /v1/cluster/pins/acme/pay?to=b", b"").await;
    assert_eq!(refused.problem(), (409, "change-refused".to_owned(), "no".to_owned()));
    let detail = refused.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.starts_with("cannot move acme/pay to b: every voter replicates every shard"), "{detail}");
    *orders.refusal.lock() = Some(ChangeError::Unavailable("no majority answers".to_owned()));
    let unavailable = socket.http("PUT /v1/cluster/replication-factor?value=3", b"").await;
    assert_eq!(unavailable.problem(), (503, "unhealthy".to_owned(), "no".to_owned()));
}

#[tokio::test]
async fn who_replicates_what_is_told() {
    let (socket, _) = start().await;
    assert_eq!(socket.http("PUT /v1/kv/acme/pay/k", b"v").await.status, 204);
    let shards = socket.http("GET /v1/shards", b"").await.json();
    assert_eq!(shards["shards"][0]["replicas"], json!(["a"]));
    let cluster = socket.http("GET /v1/cluster", b"").await.json();
    assert_eq!((&cluster["replication_factor"], &cluster["pins"]), (&json!(null), &json!([])));
    *socket.told.pins.lock() = vec![pin("", "pay")];
    let change = "move _/pay to a".to_owned();
    *socket.told.change.lock() = Some(ChangeStatus { change, step: "begun".to_owned(), failed: false });
    let cluster = socket.http("GET /v1/cluster", b"").await.json();
    assert_eq!(cluster["pins"], json!([{"org": "_", "namespace": "pay", "nodes": ["a"]}]));
    assert_eq!(cluster["change"]["change"], "move _/pay to a");
}

/// Where a shard is moved to names it: that is for those who may see it, or who may move it.
#[tokio::test]
async fn pins_are_shown_to_who_may_see_the_shard() {
    let tenants = Tenants::start().await;
    *tenants.node.told.pins.lock() = vec![pin("acme", "pay"), pin("acme", "mail"), pin("beta", "x")];
    let say = |change: VoterChange| {
        let status = ChangeStatus { change: change.to_string(), step: "begun".to_owned(), failed: false };
        *tenants.node.told.change.lock() = Some(status);
    };
    say(to("beta", "x", &[]));
    for (token, shown, is_told) in [
        (ACME, &["pay"] as &[&str], false),
        (READER, &["pay", "mail"], false),
        (OPERATOR, &["pay", "mail", "x"], true),
        (WRONG, &[], false),
    ] {
        let cluster = tenants.json(token, "GET /v1/cluster").await;
        let names: Vec<_> = cluster["pins"].as_array().unwrap().iter().map(|pin| pin["namespace"].clone()).collect();
        assert_eq!((names, cluster["change"].is_object()), (shown.iter().map(|name| json!(name)).collect(), is_told));
    }
    say(VoterChange::Factor(Some(3)));
    assert!(tenants.json(WRONG, "GET /v1/cluster").await["change"].is_object(), "it names no shard");
}
