//! A journal after anything has happened to its files: it opens or says why not, tells no record that was never written,
//! stays with its verdict, and goes on.
//!
//! An input is pieces of files: length and text of the name, offset and length as 32 bits little-endian, the bytes.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use outrigger::replication::journal::{DIRECTORY, Durability, Journal, JournalConfig, JournalError, Recovered};
use outrigger::replication::register::{Address, Entry, Lineage, Lsn, Record};
use outrigger::store::replicator::Op;
use outrigger::types::{Ballot, Key, ShardId, Value};
use rand::RngExt;

use crate::engine::{Target, fast_dir, hash};

const WORDS: &[&[u8]] = &[
    b"OUTJ",
    b"OUTRNODE",
    b"journal-0000000000000001.log",
    b"journal-0000000000000003.log",
    b"journal-7fffffffffffffff.log",
    b"journal-ffffffffffffffff.log",
    b"journal-1.log",
    b"\x04node",
    b"node.new",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\xdd\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\x81\xa1a",
    b"\x81\xa1h",
    b"\x81\xa1c",
    b"\x81\xa1l",
    b"\xd3\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00",
];
/// No piece of an input reaches further into a file, in bytes.
const FILE_BYTES_MAX: usize = 256 * 1024;
const SLOT_BYTES: usize = 64 * 1024;

fn open(dir: &Path) -> Result<(Journal, Recovered), JournalError> {
    let config = JournalConfig { segment_bytes: 4_096, durability: Durability::Os, ..JournalConfig::at(dir) };
    Journal::open(config, 1)
}

fn address(key: &str) -> Address {
    Address { shard: ShardId::parse("acme", "payments").unwrap(), key: Key::parse(key).unwrap() }
}

fn record(ballot: i64) -> Record {
    let op = if ballot % 5 == 0 { Op::Del } else { Op::Put(Value::from(vec![b'v'; 60])) };
    Record { ballot: Ballot(ballot), upd: Ballot(ballot), op, lineage: Lineage::default() }
}

/// Journals of real runs, as inputs.
fn seeds() -> Vec<Vec<u8>> {
    let short = |journal: &mut Journal| {
        journal.append(&[Entry::Ceiling(Ballot(90)), Entry::Accepted(address("a"), record(11))], Lsn(2)).unwrap();
        journal.append(&[Entry::Committed(address("a"), Ballot(11))], Lsn(3)).unwrap();
    };
    let long = |journal: &mut Journal| {
        for n in 0..30 {
            let entries: Vec<_> =
                (0..4).map(|k| Entry::Accepted(address(&format!("k{k}")), record(20 + n * 4 + k))).collect();
            journal.append(&entries, Lsn(1)).unwrap();
        }
        let before = journal.next_number();
        journal.rotate(0).unwrap();
        journal.append(&[Entry::Chosen(address("c"), record(500))], Lsn(1)).unwrap();
        journal.drop_before(before - 12).unwrap();
    };
    let barred = |journal: &mut Journal| {
        short(journal);
        journal.header_mut().bar("its disk forgot").unwrap();
    };
    let runs: [&dyn Fn(&mut Journal); 4] = [&|_| {}, &short, &long, &barred];
    runs.iter().map(|run| seed(*run)).collect()
}

fn seed(run: &dyn Fn(&mut Journal)) -> Vec<u8> {
    let dir = fast_dir();
    let (mut journal, _) = open(dir.path()).unwrap();
    run(&mut journal);
    drop(journal);
    let mut input = Vec::new();
    let mut paths: Vec<_> =
        fs::read_dir(dir.path().join(DIRECTORY)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let (name, bytes) = (path.file_name().unwrap().to_str().unwrap(), fs::read(&path).unwrap());
        for (at, piece) in bytes.chunks(SLOT_BYTES).enumerate() {
            let used = piece.len() - piece.iter().rev().take_while(|byte| **byte == 0).count();
            input.push(u8::try_from(name.len()).unwrap());
            input.extend_from_slice(name.as_bytes());
            input.extend_from_slice(&u32::try_from(at * SLOT_BYTES).unwrap().to_le_bytes());
            input.extend_from_slice(&u32::try_from(used).unwrap().to_le_bytes());
            input.extend_from_slice(&piece[..used]);
        }
    }
    input
}

/// Every record of the seeds.
fn written() -> HashSet<(Address, Record)> {
    let keys = ["a", "c", "k0", "k1", "k2", "k3"];
    keys.iter().flat_map(|key| (0..=500).map(|ballot| (address(key), record(ballot)))).collect()
}

/// Lays an input's files; those whose checksums are to be right again get them.
fn lay(directory: &Path, mut input: &[u8], mend: bool) {
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory).unwrap();
    while let Some((name, at, bytes)) = piece(&mut input) {
        let path = directory.join(name);
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path).unwrap();
        let mut bytes = bytes.to_vec();
        if mend {
            mend_batches(&mut bytes);
            mend_slot(&mut bytes);
        }
        file.write_all_at(&bytes, at).unwrap();
    }
}

fn piece<'a>(input: &mut &'a [u8]) -> Option<(String, u64, &'a [u8])> {
    let (length, rest) = input.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*length))?;
    let (at, rest) = rest.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let at = u32::from_le_bytes(*at) as usize % FILE_BYTES_MAX;
    let length = (u32::from_le_bytes(*length) as usize).min(rest.len()).min(FILE_BYTES_MAX);
    let name: String = name.iter().map(|byte| char::from(*byte)).filter(char::is_ascii_graphic).collect();
    let name = name.replace(['/', '\\'], "").trim_matches('.').to_owned();
    let name = if name.is_empty() || name == "lock" { "node".to_owned() } else { name };
    *input = &rest[length..];
    Some((name, u64::try_from(at).unwrap(), &rest[..length]))
}

fn mend_batches(bytes: &mut [u8]) {
    for at in (0..bytes.len().saturating_sub(24)).step_by(8) {
        let Some(length) = bytes[at..].strip_prefix(b"OUTJ").map(number) else { continue };
        let Some(body) = bytes.get(at + 24..).and_then(|body| body.get(..length)) else { continue };
        let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[at + 16..at + 24]), body);
        bytes[at + 8..at + 12].copy_from_slice(&sum.to_le_bytes());
    }
}

fn mend_slot(bytes: &mut [u8]) {
    if bytes.starts_with(b"OUTRNODE") && bytes.len() > 24 {
        let length = number(&bytes[12..]);
        let Some(body) = bytes.get(24..).and_then(|body| body.get(..length)) else { return };
        let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[16..24]), body);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    }
}

fn number(bytes: &[u8]) -> usize {
    bytes.first_chunk::<4>().map_or(0, |four| u32::from_le_bytes(*four) as usize)
}

#[test]
fn any_journal_is_opened_or_refused() {
    let (dir, written) = (fast_dir(), written());
    Target { name: "journal", seeds: seeds(), words: WORDS }.run(|input, rng| {
        let mend = rng.random_bool(0.5);
        lay(&dir.path().join(DIRECTORY), input, mend);
        match open(dir.path()) {
            Err(error) => {
                assert!(!error.to_string().contains('\n'), "{error}");
                hash(&std::mem::discriminant(&error))
            }
            Ok((journal, recovered)) => {
                let records = recovered.restored.pending.iter().chain(&recovered.chosen);
                let records: Vec<_> = records.cloned().collect();
                // With its checksums mended, an input says what it likes.
                let unknown = records.iter().find(|record| !mend && !written.contains(*record));
                assert!(unknown.is_none(), "never written: {unknown:?}");
                goes_on(dir.path(), journal, &recovered);
                let damage =
                    recovered.damage.map(|why| why.chars().filter(|c| !c.is_ascii_hexdigit()).collect::<String>());
                hash(&(records.len(), damage))
            }
        }
    });
}

/// What follows an opening: a batch, a new segment, giving up what is before it; and the same verdict the next time.
fn goes_on(dir: &Path, mut journal: Journal, recovered: &Recovered) {
    let known = record(1 << 40);
    let number = journal.next_number();
    journal.append(&[Entry::Chosen(address("later"), known.clone())], Lsn(1)).unwrap();
    drop(journal);
    let (mut journal, again) = open(dir).unwrap();
    assert_eq!(again.damage.is_some(), recovered.damage.is_some(), "{:?} then {:?}", recovered.damage, again.damage);
    let is_there = again.chosen.iter().any(|(at, record)| *at == address("later") && record.ballot >= known.ballot);
    assert!(is_there, "what was appended is gone");
    assert_eq!(again.restored.pending.len(), recovered.restored.pending.len());
    assert_eq!(journal.position(), number);
    let before = journal.next_number();
    journal.rotate(0).unwrap();
    journal.append(&[Entry::Ceiling(Ballot(1))], Lsn(1)).unwrap();
    journal.drop_before(before).unwrap();
    drop(journal);
    let (journal, last) = open(dir).unwrap();
    assert_eq!(last.damage.is_some(), recovered.damage.is_some(), "{:?}", last.damage);
    assert!(last.restored.pending.is_empty(), "given up, and back");
    assert_eq!(journal.position(), before);
}
