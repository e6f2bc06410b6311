//! What a user of the store relies on.

use crate::store::Manager;
use crate::types::ShardId;

#[tokio::test]
async fn a_write_is_read_back_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let id = ShardId::parse("", "a").unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.get(&id).await.unwrap();
    let upd = shard.put("k", "v").await.unwrap();
    assert_eq!(shard.get("k").await.unwrap().unwrap().upd, upd);
    manager.close().await.unwrap();

    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.get(&id).await.unwrap();
    assert_eq!(shard.get("k").await.unwrap().unwrap().value.as_bytes(), b"v");
}
