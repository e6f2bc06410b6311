//! The configuration that a node goes by when it starts: what its disk says, or what the configuration file does where the
//! cluster has never written one down.

use super::StartError;
use crate::cluster::membership::{InvalidMembership, Membership};
use crate::replication::journal::Recovered;
use crate::replication::register::Address;
use crate::store::{Manager, StoredRow};
use crate::types::{Key, ShardId};

/// The register that holds the configuration.
pub(super) fn configuration_address() -> Address {
    Address { shard: ShardId::system(), key: Key::configuration() }
}

/// A configuration, and the row it was read from.
#[derive(Debug, Clone)]
pub struct Installed {
    /// The configuration.
    pub membership: Membership,
    /// None where nobody has written one down yet.
    pub(super) row: Option<StoredRow>,
}

impl Installed {
    /// Reads it from the shard file, or from what the journal knew to be chosen where that is newer; `first` where there is
    /// none.
    pub async fn read(manager: &Manager, recovered: &Recovered, first: Membership) -> Result<Self, StartError> {
        let Address { shard, key } = configuration_address();
        let stored = match manager.find(&shard).await? {
            Some(open) => open.stored(&key)?,
            None => None,
        };
        let replayed = recovered.chosen.iter().filter(|(address, _)| address.shard == shard && address.key == key);
        let replayed =
            replayed.map(|(_, record)| StoredRow { op: record.op.clone(), upd: record.upd, ballot: record.ballot });
        let Some(row) = replayed.chain(stored).max_by_key(|row| row.ballot) else {
            return Ok(Self { membership: first, row: None });
        };
        let value = row.op.value().map(|value| Membership::decode(value.as_bytes()));
        match value.unwrap_or(Err(InvalidMembership::NoVoters)) {
            Ok(membership) => Ok(Self { membership, row: Some(row) }),
            Err(why) => Err(StartError::Configuration { shard, why }),
        }
    }
}
