//! What a socket without a node behind it shows of one.

use outrigger::cluster::membership::Membership;
use outrigger::cluster::status::{ChangeStatus, ClusterStatus, DecisionCounts, Observe, Pin};
use outrigger::types::NodeId;
use parking_lot::Mutex;

/// A node that says of itself whatever a test wants.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) unhealthy: Mutex<Option<String>>,
    pub(crate) pins: Mutex<Vec<Pin>>,
    pub(crate) change: Mutex<Option<ChangeStatus>>,
}

impl Observe for Told {
    fn cluster(&self) -> ClusterStatus {
        let node = NodeId::parse("a").unwrap();
        ClusterStatus {
            cluster: "default".to_owned(),
            node: node.clone(),
            version: "0.0.0".to_owned(),
            epoch: 1,
            replication_factor: None,
            pins: self.pins.lock().clone(),
            joint: false,
            change: self.change.lock().clone(),
            voters: vec![node],
            nodes: Vec::new(),
            open_shards: 0,
            decisions: DecisionCounts::default(),
            pending_frames: 0,
            outbox: Default::default(),
            unready: None,
            refusals: Vec::new(),
        }
    }
    fn membership(&self) -> Membership {
        Membership::epoch_one(vec![NodeId::parse("a").unwrap()]).unwrap()
    }
    fn health(&self) -> Result<(), String> {
        self.unhealthy.lock().clone().map_or(Ok(()), Err)
    }
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
    fn in_step(&self) -> Vec<NodeId> {
        Vec::new()
    }
}
