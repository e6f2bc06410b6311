//! The journal's behaviour; what crashes leave of it is in [`crash`].

mod crash;
mod recorder;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use recorder::Recorder;

use super::*;
use crate::replication::register::Lineage;
use crate::store::replicator::Op;
use crate::types::{Key, ShardId, Value};

fn config(dir: &Path) -> JournalConfig {
    JournalConfig { segment_bytes: 16 * 1024, disk: Arc::new(Recorder), ..JournalConfig::at(dir) }
}

fn address(key: &str) -> Address {
    Address { shard: ShardId::parse("acme", "payments").unwrap(), key: Key::parse(key).unwrap() }
}

fn record(ballot: i64) -> Record {
    let op = Op::Put(Value::from(vec![b'v'; 100]));
    Record { ballot: Ballot(ballot), upd: Ballot(ballot), op, lineage: Lineage::default() }
}

fn accepted(key: &str, ballot: i64) -> Entry {
    Entry::Accepted(address(key), record(ballot))
}

fn open(dir: &Path) -> (Journal, Recovered) {
    Journal::open(config(dir), 1).unwrap()
}

/// Where the current segment's file is, and how many bytes of it are batches.
fn tail(journal: &Journal) -> (PathBuf, u64) {
    let current = journal.current.as_ref().unwrap();
    (journal.directory.join(format!("journal-{:016x}.log", current.first())), current.end())
}

/// A vote on a shard that moved away was forgotten in memory alone: it was there again after a restart, and might have been above
/// what others had chosen since.
#[test]
fn a_vote_that_was_dropped_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.append(&[accepted("a", 10), accepted("b", 11), accepted("c", 12)], Lsn(3)).unwrap();
    let dropped = [("a", 10), ("b", 10)].map(|(key, ballot)| Entry::Dropped(address(key), Ballot(ballot)));
    journal.append(&dropped, Lsn(5)).unwrap();
    drop(journal);
    let (_, recovered) = open(dir.path());
    let pending: BTreeSet<_> = recovered.restored.pending.iter().map(|(at, _)| at.key.as_str()).collect();
    assert_eq!(pending, BTreeSet::from(["b", "c"]));
}

#[test]
fn what_was_appended_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, recovered) = open(dir.path());
    assert!(recovered.restored.pending.is_empty());
    journal.append(&[Entry::Ceiling(Ballot(90)), accepted("a", 10), accepted("b", 11)], Lsn(3)).unwrap();
    journal.append(&[Entry::Committed(address("a"), Ballot(10))], Lsn(4)).unwrap();
    journal.append(&[Entry::Chosen(address("c"), record(12)), accepted("a", 13)], Lsn(6)).unwrap();
    drop(journal);
    let (journal, recovered) = open(dir.path());
    assert_eq!((journal.header().boot(), journal.position()), (2, 3));
    assert_eq!(recovered.restored.ceiling, Ballot(90));
    let mut pending: Vec<_> = recovered.restored.pending.iter().map(|(a, r)| (a.key.as_str(), r.ballot.0)).collect();
    pending.sort_unstable();
    assert_eq!(pending, [("a", 13), ("b", 11)]);
    let mut chosen: Vec<_> = recovered.chosen.iter().map(|(a, r)| (a.key.as_str(), r.ballot.0)).collect();
    chosen.sort_unstable();
    assert_eq!(chosen, [("a", 10), ("c", 12)]);
    assert_eq!(recovered.damage, None);
}

/// A rotation followed by a batch too large for the fresh segment listed that segment twice: giving it up the
/// second time failed, and the node stopped voting.
#[test]
fn rotating_twice_without_a_batch_between_is_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.append(&[accepted("a", 10)], Lsn(1)).unwrap();
    journal.rotate(0).unwrap();
    let entries: Vec<_> = (0..200).map(|n| accepted(&format!("k{n}"), 20 + n)).collect();
    journal.append(&entries, Lsn(201)).unwrap();
    journal.rotate(0).unwrap();
    journal.rotate(0).unwrap();
    assert_eq!(journal.closed_segments(), 2);
    journal.append(&[accepted("b", 900)], Lsn(202)).unwrap();
    journal.drop_before(3).unwrap();
    assert_eq!(journal.closed_segments(), 0);
    drop(journal);
    let (_, recovered) = open(dir.path());
    assert_eq!((recovered.restored.pending.len(), recovered.damage), (1, None));
}

/// Opening made a whole segment: a node whose disk was full did not come up to say so.
#[test]
fn opening_takes_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    assert_eq!(journal.bytes(), 0);
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (_journal, _) = open(dir.path());
    assert!(matches!(Journal::open(config(dir.path()), 2), Err(JournalError::Locked(_))));
}

#[test]
fn a_journal_that_is_a_link_to_elsewhere_is_refused_and_a_data_directory_that_is_one_is_not() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let link = |to: &Path, at: &Path| std::os::unix::fs::symlink(to, at).unwrap();
    link(elsewhere.path(), &dir.path().join(DIRECTORY));
    let refused = Journal::open(config(dir.path()), 1).unwrap_err();
    assert!(matches!(&refused, JournalError::Linked(at) if at.ends_with(DIRECTORY)), "{refused}");
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);

    fs::remove_file(dir.path().join(DIRECTORY)).unwrap();
    link(elsewhere.path(), &dir.path().join("data"));
    let data = dir.path().join("data");
    open(&data).0.append(&[accepted("a", 10)], Lsn(1)).unwrap();
    assert_eq!(open(&data).1.restored.pending.len(), 1);
    // Nor is a file of it followed: what it leads to is neither read nor written.
    let header = data.join(DIRECTORY).join(Header::NAME);
    fs::rename(&header, dir.path().join("header")).unwrap();
    link(&dir.path().join("header"), &header);
    let refused = Journal::open(config(&data), 1).unwrap_err().to_string();
    assert!(refused.contains("symbolic link"), "{refused}");
}

#[test]
fn a_tail_cut_at_any_byte_loses_only_the_batch_that_was_never_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.append(&[accepted("a", 10)], Lsn(1)).unwrap();
    let (path, start) = tail(&journal);
    journal.append(&[accepted("b", 11)], Lsn(2)).unwrap();
    let (_, end) = tail(&journal);
    drop(journal);
    let whole = fs::read(&path).unwrap();
    let header = fs::read(dir.path().join(DIRECTORY).join("node")).unwrap();
    for cut in start..end {
        let mut torn = whole.clone();
        torn[usize::try_from(cut).unwrap()..].fill(0);
        let kept = torn == whole;
        for entry in fs::read_dir(dir.path().join(DIRECTORY)).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        fs::write(dir.path().join(DIRECTORY).join("node"), &header).unwrap();
        fs::write(&path, &torn).unwrap();
        let (mut journal, recovered) = open(dir.path());
        assert_eq!(recovered.damage, None, "cut at {cut}");
        assert_eq!(recovered.restored.pending.len(), if kept { 2 } else { 1 }, "cut at {cut}");
        journal.append(&[accepted("c", 12)], Lsn(1)).unwrap();
        drop(journal);
        let (_, recovered) = open(dir.path());
        assert_eq!(recovered.damage, None, "reopened after a cut at {cut}");
        assert_eq!(recovered.restored.pending.len(), if kept { 3 } else { 2 });
    }
}

#[test]
fn damage_before_the_end_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.append(&[accepted("a", 10)], Lsn(1)).unwrap();
    let (path, start) = tail(&journal);
    for n in 0..2 {
        journal.append(&[accepted("a", 20 + n)], Lsn(2)).unwrap();
    }
    drop(journal);
    File::options().write(true).open(&path).unwrap().write_all_at(b"x", start + 60).unwrap();
    let (journal, recovered) = open(dir.path());
    assert!(recovered.damage.unwrap().contains("is damaged, yet batch"));
    drop(journal);
    let (_, recovered) = open(dir.path());
    assert!(recovered.damage.is_some(), "a disk once found damaged stays so");
}

/// One gone from the front looked like one given up, one gone from the end like one never written.
#[test]
fn a_missing_segment_is_damage_wherever_it_was() {
    for missing in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path());
        for n in 0..3 {
            journal.rotate(0).unwrap();
            journal.append(&[accepted("a", 10 + n)], Lsn(1)).unwrap();
        }
        drop(journal);
        fs::remove_file(dir.path().join(DIRECTORY).join(format!("journal-{:016x}.log", missing + 1))).unwrap();
        let (_, recovered) = open(dir.path());
        assert!(recovered.damage.is_some(), "segment {missing} of 3 was not missed");
    }
}

/// What an older version could not decode it took for a torn tail, and wrote over it.
#[test]
fn a_batch_of_a_later_version_is_refused_not_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.append(&[accepted("a", 10)], Lsn(1)).unwrap();
    let (path, end) = tail(&journal);
    drop(journal);
    let mut later = segment::encode(2, &[]).unwrap();
    later[24] = 0xc3;
    let sum = crc32c::crc32c_append(crc32c::crc32c(&2_u64.to_le_bytes()), &[0xc3]);
    later[8..12].copy_from_slice(&sum.to_le_bytes());
    File::options().write(true).open(&path).unwrap().write_all_at(&later, end).unwrap();
    let opened = Journal::open(config(dir.path()), 1);
    assert!(matches!(opened, Err(JournalError::Newer { .. })), "{opened:?}");
}

#[test]
fn segments_roll_over_and_are_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    for n in 0..300 {
        journal.append(&[accepted("a", 10 + n)], Lsn(1)).unwrap();
    }
    assert!(journal.closed_segments() > 1);
    let keep = journal.next_number();
    journal.rotate(0).unwrap();
    journal.append(&[accepted("a", 400)], Lsn(2)).unwrap();
    journal.drop_before(keep).unwrap();
    assert_eq!(journal.closed_segments(), 0);
    drop(journal);
    let (_, recovered) = open(dir.path());
    assert_eq!(recovered.restored.pending[0].1.ballot, Ballot(400));
    assert_eq!(recovered.damage, None);
}

/// After a failed sync only the memory of the process knew: the next one read the page cache, which holds what the
/// disk may not, and voted on it.
#[tokio::test]
async fn a_disk_whose_write_failed_stays_barred() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    let lost = std::io::Error::from_raw_os_error(5);
    journal.poisoned = Some(io("sync", dir.path())(lost));
    let (events, mut told) = tokio::sync::mpsc::unbounded_channel();
    let writer = JournalWriter::spawn(journal, crate::clock::OsClock::shared(), events).unwrap();
    writer.submit(Submission::Append { entries: vec![accepted("a", 10)], lsn: Lsn(1), rotate: false });
    assert!(matches!(told.recv().await, Some(WriterEvent::Failed(_))));
    drop(writer);
    let (_, recovered) = open(dir.path());
    assert!(recovered.damage.unwrap().contains("sync"));
}

/// Where there are others, a disk that must not vote is another one from then on; what it may take along stays.
#[test]
fn a_barred_disk_starts_over_as_another_and_keeps_what_is_no_vote() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    let was = journal.header().storage_id();
    let write = LocalWrite { upd: Ballot(30), op: Op::Del };
    let entries =
        [accepted("a", 10), Entry::Chosen(address("b"), record(20)), Entry::Local(address("c"), write.clone())];
    journal.append(&entries, Lsn(1)).unwrap();
    journal.header_mut().bar("it has forgotten").unwrap();
    drop(journal);
    let may_start_over = JournalConfig { may_start_over: true, ..config(dir.path()) };
    let new = was.0 + 1;
    for (opened, storage_id) in [(1, new), (2, new)] {
        let (journal, recovered) = Journal::open(may_start_over.clone(), storage_id).unwrap();
        assert_eq!((journal.header().storage_id(), journal.header().boot()), (StorageId(new), opened));
        assert_eq!(journal.header().displaced(), Some("it has forgotten"));
        assert_eq!((recovered.damage, recovered.restored.pending.len()), (None, 0));
        assert_eq!(recovered.outbox, [(address("c"), write.clone())]);
        assert_eq!(recovered.chosen.len(), usize::from(opened == 1), "it is in the shard's file by then");
    }
    let aside = dir.path().join(DIRECTORY).join(format!("given-up-{was}"));
    assert!(aside.join(Header::NAME).is_file());
}

/// Entries as they were before there was an outbox.
#[derive(serde::Serialize)]
enum EntryBefore {
    #[serde(rename = "a")]
    Accepted(Address, Record),
    #[serde(rename = "h")]
    Chosen(Address, Record),
    #[serde(rename = "c")]
    Committed(Address, Ballot),
    #[serde(rename = "l")]
    Ceiling(Ballot),
}

#[test]
fn a_journal_from_before_there_was_an_outbox_reads_as_it_did() {
    let before = vec![
        EntryBefore::Ceiling(Ballot(90)),
        EntryBefore::Accepted(address("a"), record(10)),
        EntryBefore::Chosen(address("b"), record(11)),
        EntryBefore::Committed(address("a"), Ballot(10)),
    ];
    let read: Vec<Entry> = crate::messagepack::decode(&rmp_serde::to_vec_named(&before).unwrap()).unwrap();
    let now = [
        Entry::Ceiling(Ballot(90)),
        accepted("a", 10),
        Entry::Chosen(address("b"), record(11)),
        Entry::Committed(address("a"), Ballot(10)),
    ];
    assert_eq!(read, now);
}

#[test]
fn a_local_write_is_there_until_something_as_new_is_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let own = |key, upd| Entry::Local(address(key), LocalWrite { upd: Ballot(upd), op: Op::Del });
    let (mut journal, recovered) = open(dir.path());
    assert!(recovered.outbox.is_empty());
    journal.append(&[own("a", 10), own("b", 11), own("c", 12), own("c", 13), accepted("b", 20)], Lsn(5)).unwrap();
    journal
        .append(&[Entry::Chosen(address("c"), record(12)), Entry::Chosen(address("a"), record(10))], Lsn(7))
        .unwrap();
    // One that was overtaken before it was written down.
    journal.append(&[Entry::Chosen(address("d"), record(15)), own("d", 14)], Lsn(9)).unwrap();
    drop(journal);
    let (mut journal, recovered) = open(dir.path());
    let mut left: Vec<_> = recovered.outbox.iter().map(|(a, w)| (a.key.as_str(), w.upd.0)).collect();
    left.sort_unstable();
    assert_eq!(left, [("b", 11), ("c", 13)]);
    // What is chosen from a vote counts as well.
    journal.append(&[Entry::Committed(address("b"), Ballot(20))], Lsn(1)).unwrap();
    drop(journal);
    let (_, recovered) = open(dir.path());
    assert_eq!(recovered.outbox.len(), 1);
}
