//! What a socket without a node behind it shows of one.

use outrigger::cluster::status::{ClusterStatus, DecisionCounts, Observe};
use outrigger::types::NodeId;
use parking_lot::Mutex;

/// A node that says of itself whatever a test wants.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) unhealthy: Mutex<Option<String>>,
}

impl Observe for Told {
    fn cluster(&self) -> ClusterStatus {
        let node = NodeId::parse("a").unwrap();
        ClusterStatus {
            cluster: "default".to_owned(),
            node: node.clone(),
            version: "0.0.0".to_owned(),
            epoch: 1,
            joint: false,
            change: None,
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
