//! What a user of the store relies on.

use std::sync::Arc;

use rusqlite::Connection;

use super::*;
use crate::store::replicator::Rejection;
use crate::store::update::{Change, Condition, Update, Verdict};
use crate::store::{Error, ListQuery, PageQuery};
use crate::types::{InvalidInput, Org};

#[tokio::test]
async fn a_write_is_read_back_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.get(&id("", "a")).await.unwrap();
    let upd = shard.put("k", "v").await.unwrap();
    assert_eq!(shard.get("k").await.unwrap().unwrap().upd, upd);
    assert!(shard.path().ends_with("_/a.db"));
    manager.close().await.unwrap();

    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.get(&id("_", "a")).await.unwrap();
    let row = shard.get("k").await.unwrap().unwrap();
    assert_eq!((row.value.as_bytes(), row.upd), (&b"v"[..], upd));
    assert!(shard.put("k", "w").await.unwrap() > upd);
}

#[tokio::test]
async fn an_answered_write_is_in_the_file_for_another_program() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.get(&id("acme", "a")).await.unwrap();
    shard.put("k", "v").await.unwrap();
    shard.put("gone", "v").await.unwrap();
    assert!(shard.del("gone").await.unwrap());
    assert!(!shard.del("gone").await.unwrap());

    let other = Connection::open(shard.path()).unwrap();
    let value: Vec<u8> = other.query_row("SELECT value FROM kv WHERE key = 'k'", [], |row| row.get(0)).unwrap();
    assert_eq!(value, b"v");
    let tombstones: Vec<String> = {
        let mut all = other.prepare("SELECT key FROM tombstone").unwrap();
        all.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    assert_eq!(tombstones, ["gone"]);
    shard.put("gone", "back").await.unwrap();
    let left: i64 = other.query_row("SELECT count(*) FROM tombstone", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

/// A link in the place of an org, or of a shard's file, had another directory's files read and written as this store's own.
#[tokio::test]
async fn links_inside_the_data_directory_are_not_followed_and_the_directory_may_be_one() {
    use std::os::unix::fs::symlink;
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let theirs = Manager::new(elsewhere.path()).unwrap();
    theirs.get(&id("acme", "a")).await.unwrap().put("k", "theirs").await.unwrap();
    theirs.close().await.unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    symlink(dir.path().join("data"), dir.path().join("volume")).unwrap();
    let manager = Manager::new(dir.path().join("volume")).unwrap();
    manager.get(&id("own", "a")).await.unwrap().put("k", "v").await.unwrap();
    let root = dir.path().join("data");
    symlink(elsewhere.path().join("acme"), root.join("acme")).unwrap();
    symlink(elsewhere.path().join("acme/a.db"), root.join("own/b.db")).unwrap();
    symlink(elsewhere.path().join("new.db"), root.join("own/c.db")).unwrap();

    for linked in [id("acme", "a"), id("acme", "new"), id("own", "b"), id("own", "c")] {
        let error = manager.get(&linked).await.map(drop).unwrap_err().to_string();
        assert!(error.contains("symbolic link"), "{error}");
    }
    assert!(!elsewhere.path().join("acme/new.db").exists() && !elsewhere.path().join("new.db").exists());
    let orgs: Vec<String> = manager.orgs().unwrap().into_iter().map(String::from).collect();
    assert_eq!(orgs, ["own"]);
    assert_eq!(manager.shards_of(&Org::parse("own").unwrap()).unwrap(), [id("own", "a")]);
    manager.close().await.unwrap();
    // What this store made, its owner alone may look into.
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(root.join("own")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn orgs_and_namespaces_are_apart() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    for (org, namespace) in [("", "a"), ("acme", "a"), ("acme", "b"), ("zeta", "a")] {
        let shard = manager.get(&id(org, namespace)).await.unwrap();
        shard.put("k", format!("{org}/{namespace}")).await.unwrap();
    }
    for (org, namespace) in [("", "a"), ("acme", "a"), ("acme", "b"), ("zeta", "a")] {
        let shard = manager.get(&id(org, namespace)).await.unwrap();
        assert_eq!(value_of(&shard, "k").unwrap(), format!("{org}/{namespace}").into_bytes());
    }
    // What else lies around is nobody's shard.
    std::fs::create_dir_all(dir.path().join(".outrigger")).unwrap();
    std::fs::create_dir_all(dir.path().join("empty")).unwrap();
    std::fs::create_dir_all(dir.path().join("acme/dir.db")).unwrap();
    std::fs::write(dir.path().join("acme/notes.txt"), "x").unwrap();
    std::fs::write(dir.path().join("acme/-bad.db"), "x").unwrap();
    let orgs: Vec<String> = manager.orgs().unwrap().into_iter().map(String::from).collect();
    assert_eq!(orgs, ["_", "acme", "zeta"]);
    let acme = Org::parse("acme").unwrap();
    assert_eq!(manager.shards_of(&acme).unwrap(), [id("acme", "a"), id("acme", "b")]);
    let names: Vec<String> =
        manager.list_shards(&acme).await.unwrap().iter().map(|shard| shard.namespace().to_string()).collect();
    assert_eq!(names, ["a", "b"]);
}

#[tokio::test]
async fn finding_creates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    assert!(manager.find(&id("", "a")).await.unwrap().is_none());
    assert!(!manager.shard_path(&id("", "a")).exists() && !manager.exists(&id("", "a")));
    // A frame for a shard that has no file yet makes it exist at once.
    commit(&manager, &put(&id("", "a"), "k", "v", 5));
    let shard = manager.find(&id("", "a")).await.unwrap().unwrap();
    assert_eq!(value_of(&shard, "k").unwrap(), b"v");
}

#[tokio::test]
async fn what_is_too_large_or_malformed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.get(&id("", "a")).await.unwrap();
    let invalid = |result: Result<Ballot, Error>| match result {
        Err(Error::Invalid(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(invalid(shard.put("", "v").await), InvalidInput::EmptyKey);
    assert!(invalid(shard.put(&"k".repeat(1025), "v").await).is_too_large());
    assert!(invalid(shard.put("k", vec![0; 1024 * 1024 + 1]).await).is_too_large());
    shard.put(&"k".repeat(1024), vec![0; 1024 * 1024]).await.unwrap();
    let append = Update::always(Change::Append(Value::from("x")));
    let outcome = shard.update(&key(&"k".repeat(1024)), append, None).await.unwrap();
    assert!(matches!(outcome.verdict, Verdict::Invalid(_)));
}

#[tokio::test]
async fn conditional_writes_see_the_row() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.get(&id("", "a")).await.unwrap();
    let upd = shard.put("k", "1").await.unwrap();
    let cas = |condition| Update { condition, change: Change::Put(Value::from("2")) };
    let failed = shard.update(&key("k"), cas(Condition::UpdIs(Ballot(1))), None).await.unwrap();
    assert_eq!(failed.verdict, Verdict::ConditionFailed);
    let written = shard.update(&key("k"), cas(Condition::UpdIs(upd)), None).await.unwrap();
    assert_eq!(written.verdict, Verdict::Written);
    assert_eq!(value_of(&shard, "k").unwrap(), b"2");
}

#[tokio::test(flavor = "multi_thread")]
async fn increments_from_many_tasks_all_count() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let manager = Arc::clone(&manager);
            tokio::spawn(async move {
                let shard = manager.get(&id("", "a")).await.unwrap();
                shard.update(&key("n"), Update::always(Change::Add(1)), None).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(value_of(&manager.get(&id("", "a")).await.unwrap(), "n").unwrap(), b"50");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_one_snapshot_while_its_callback_writes_to_the_shard() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.get(&id("", "a")).await.unwrap();
    // Several portions: what is written while the first is looked at must not show in the last.
    for n in 0..1_000_i64 {
        let op = Op::Put(Value::from(vec![b'x'; 1_000]));
        commit(&manager, &frame(&id("", "a"), &format!("k{n:04}"), op, n + 1, n + 1));
    }
    let mut seen = Vec::new();
    let handle = tokio::runtime::Handle::current();
    shard
        .list("k", |name, row| {
            assert_eq!(row.value.as_bytes().len(), 1_000, "{name}");
            seen.push(name.to_owned());
            if seen.len() % 100 == 1 {
                tokio::task::block_in_place(|| {
                    handle.block_on(shard.put(&format!("k{:04}", 999 - seen.len()), "new"))
                })?;
                tokio::task::block_in_place(|| handle.block_on(shard.put("k0000a", "new")))?;
            }
            Ok::<(), Error>(())
        })
        .await
        .unwrap();
    assert_eq!(seen, (0..1_000).map(|n| format!("k{n:04}")).collect::<Vec<_>>());
    assert_eq!(listed(&shard, "k").await.len(), 1_001);
}

#[tokio::test]
async fn reads_in_a_row_are_never_older_than_their_call() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.get(&id("", "a")).await.unwrap();
    let write = |name, ballot| frame(&id("", "a"), name, Op::Put(Value::from(vec![b'v'; 9])), ballot, ballot);
    commit(&manager, &write("other", 1));
    shard
        .reading(|reads| {
            let mut upd = |name| reads.get(&key(name), |row| row.map(|(_, upd)| upd.0)).unwrap();
            for n in (10..500).step_by(10) {
                commit(&manager, &write("k", n));
                if n % 30 == 0 {
                    // From memory into the file, behind the back of the transaction that the reads are in.
                    shard.wait_applied();
                }
                if n % 20 == 0 {
                    commit(&manager, &write("k", n - 5));
                }
                assert_eq!((upd("k"), upd("other"), upd("none")), (Some(n), Some(1), None));
            }
            commit(&manager, &frame(&id("", "a"), "k", Op::Del, 1_000, 1_000));
            assert_eq!(upd("k"), None);
            shard.wait_applied();
            assert_eq!(upd("k"), None);
            shard.unsettle([key("k")]);
            assert!(matches!(reads.get(&key("k"), |_| ()), Err(Error::Unsettled)));
        })
        .unwrap();
    shard.checkpoint().await.unwrap();
}

#[tokio::test]
async fn what_is_written_under_a_walk_does_not_show_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.get(&id("", "a")).await.unwrap();
    let old = |n: i64| put(&id("", "a"), &format!("k{n:03}"), "old", n + 1);
    (0..300).for_each(|n| commit(&manager, &old(n)));
    // Some rows are in the file, some still in memory.
    shard.wait_applied();
    (300..600).for_each(|n| commit(&manager, &old(n)));
    let after = Some(key("k009"));
    let query = ListQuery { after, keys_only: false, ..ListQuery::prefix("k") };
    let mut seen = Vec::new();
    let each = |item: crate::store::Item| {
        if seen.is_empty() {
            for n in 0..600 {
                let op = if n % 3 == 0 { Op::Del } else { Op::Put(Value::from("new")) };
                commit(&manager, &frame(&id("", "a"), &format!("k{n:03}"), op, n + 1_000, n + 1_000));
                commit(&manager, &put(&id("", "a"), &format!("k{n:03}+"), "new", n + 1_000));
            }
            shard.wait_applied();
        }
        seen.push((item.key.to_string(), item.value.unwrap(), item.upd.0));
        std::ops::ControlFlow::Continue(())
    };
    shard.walk(&query, each).unwrap();
    let expected: Vec<_> = (10..600).map(|n| (format!("k{n:03}"), Value::from("old"), n + 1)).collect();
    assert_eq!(seen, expected);
    assert_eq!(listed(&shard, "k").await.len(), 1_000);
}

#[tokio::test]
async fn a_list_ends_with_its_callbacks_error() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.get(&id("", "a")).await.unwrap();
    shard.put("a", "1").await.unwrap();
    shard.put("b", "1").await.unwrap();
    let mut calls = 0;
    let ended = shard
        .list("", |_, _| {
            calls += 1;
            Err("enough")
        })
        .await;
    assert!(matches!(ended, Err(Error::Callback(why)) if why == "enough"));
    assert_eq!(calls, 1);
}

#[tokio::test]
async fn a_file_of_another_program_opens_and_keeps_its_tables() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("acme/legacy.db");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let theirs = Connection::open(&path).unwrap();
    theirs
        .execute_batch(
            "CREATE TABLE kv(key TEXT PRIMARY KEY, value BLOB NOT NULL, upd INTEGER NOT NULL);
             CREATE TABLE extra(a, b); INSERT INTO extra VALUES(1, 'kept');
             INSERT INTO kv VALUES('text', 'as text', 7), ('number', 12, 8), ('blob', x'00ff', 9000000000000000000),
                                  ('odd', x'01', 'no version');
             INSERT INTO kv VALUES(x'61ff', x'01', 3);",
        )
        .unwrap();
    drop(theirs);

    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.find(&id("acme", "legacy")).await.unwrap().unwrap();
    assert_eq!(value_of(&shard, "text").unwrap(), b"as text");
    assert_eq!(value_of(&shard, "number").unwrap(), b"12");
    assert_eq!(value_of(&shard, "blob").unwrap(), [0, 0xff]);
    // A key that is a blob is no key of ours: it is left alone, and no list trips over it.
    let keys: Vec<_> = listed(&shard, "").await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["blob", "number", "odd", "text"]);
    // Their version may be far ahead of any clock; ours still rises above it.
    assert!(shard.put("blob", "new").await.unwrap() > Ballot(9_000_000_000_000_000_000));
    shard.put("odd", "new").await.unwrap();
    shard.del("text").await.unwrap();
    manager.close().await.unwrap();

    let theirs = Connection::open(&path).unwrap();
    let kept: String = theirs.query_row("SELECT b FROM extra", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, "kept");
    let rows: i64 = theirs.query_row("SELECT count(*) FROM kv", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 4);
}

#[tokio::test]
async fn a_key_that_is_not_text_is_told_and_spoils_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.get(&id("", "a")).await.unwrap();
    shard.put("a", "1").await.unwrap();
    let theirs = Connection::open(shard.path()).unwrap();
    theirs.execute("INSERT INTO kv VALUES(CAST(x'62ff' AS TEXT), x'', 1)", []).unwrap();
    assert!(matches!(shard.page(&PageQuery::prefix("")), Err(Error::UnreadableRow { .. })));
    assert_eq!(shard.page(&PageQuery::prefix("a")).unwrap().items.len(), 1);
    shard.put("a", "2").await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let path = manager.shard_path(&id("", "a"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, vec![7; 8192]).unwrap();
    assert!(matches!(manager.get(&id("", "a")).await, Err(Error::Sqlite { .. })));
    assert_eq!(manager.open_shard_count(), 0);
}

#[tokio::test]
async fn unsettled_keys_are_not_read_locally() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.get(&id("", "a")).await.unwrap();
    for name in ["a", "m", "z"] {
        shard.put(name, "1").await.unwrap();
    }
    shard.unsettle([key("m")]);
    assert!(matches!(shard.get("m").await, Err(Error::Unsettled)));
    assert!(shard.get("a").await.unwrap().is_some() && shard.stored(&key("m")).unwrap().is_some());
    assert!(matches!(shard.page(&PageQuery::prefix("")), Err(Error::Unsettled)));
    let first = shard.page(&PageQuery { limit: 1, ..PageQuery::prefix("") }).unwrap();
    assert_eq!(first.next, Some(key("a")));
    assert!(shard.page(&PageQuery { after: Some(key("m")), ..PageQuery::prefix("") }).is_ok());
    assert!(matches!(shard.list("m", |_, _| Ok::<(), Error>(())).await, Err(Error::Unsettled)));
    shard.settle(&key("m"));
    assert!(shard.get("m").await.unwrap().is_some());
    assert_eq!(shard.page(&PageQuery::prefix("")).unwrap().items.len(), 3);
}

#[tokio::test]
async fn a_version_without_room_above_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.get(&id("", "a")).await.unwrap();
    commit(&manager, &put(&id("", "a"), "k", "v", i64::MAX));
    assert!(matches!(shard.put("k", "w").await, Err(Error::Rejected(Rejection::Refused(_)))));
    assert_eq!(value_of(&shard, "k").unwrap(), b"v");
}

#[test]
fn a_copy_is_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let [src, dst] = ["src", "dst"].map(|name| dir.path().join(name));
    std::fs::write(&src, b"content").unwrap();
    assert_eq!(crate::store::copy_file(&dst, &src).unwrap(), 7);
    assert_eq!(std::fs::read(&dst).unwrap(), b"content");
    assert!(crate::store::copy_file(&dst, dir.path().join("missing")).is_err());
}
