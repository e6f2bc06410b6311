//! The definition itself: every order and every choice of the unknown operations, on whole values and versions.

use crate::history::{Entry, History, Op, Outcome, When};

/// A value, and the number of the write that made it.
type Row = Option<(Vec<u8>, usize)>;

/// Is there an order that explains every answer? One key.
pub fn is_linearizable(h: &History) -> bool {
    let ops: Vec<&Entry> = h.entries().iter().filter(|entry| *entry.outcome() != Outcome::Refused).collect();
    explain(&ops, 0, &None, &[])
}

fn end(entry: &Entry) -> u64 {
    match &entry.returned {
        Some((outcome, end)) if *outcome != Outcome::Unknown => *end,
        _ => u64::MAX,
    }
}

fn rises(versions: &[Option<i64>]) -> bool {
    versions.iter().flatten().is_sorted_by(|a, b| a < b)
}

fn explain(ops: &[&Entry], placed: u32, row: &Row, versions: &[Option<i64>]) -> bool {
    let open = || (0..ops.len()).filter(|at| placed & 1 << at == 0);
    if open().all(|at| *ops[at].outcome() == Outcome::Unknown) {
        return true;
    }
    open().filter(|at| open().all(|other| end(ops[other]) >= ops[*at].called_ns)).any(|at| {
        let mut versions = versions.to_vec();
        let after = run(ops[at], row.clone(), &mut versions);
        after.is_some_and(|after| rises(&versions) && explain(ops, placed | 1 << at, &after, &versions))
    })
}

/// Says that the row's version is `upd`; false where it is another.
fn is(row: &Row, upd: i64, versions: &mut [Option<i64>]) -> bool {
    row.as_ref().is_some_and(|(_, write)| *versions[*write].get_or_insert(upd) == upd)
}

fn run(entry: &Entry, row: Row, versions: &mut Vec<Option<i64>>) -> Option<Row> {
    let outcome = entry.outcome();
    let write = |value: Vec<u8>, versions: &mut Vec<Option<i64>>, upd: Option<i64>| {
        versions.push(upd);
        Some(Some((value, versions.len() - 1)))
    };
    let when = match &entry.op {
        Op::Put(when, _) | Op::Delete(when) => *when,
        Op::Get | Op::Add(_) => When::Always,
    };
    match outcome {
        Outcome::Read(None) | Outcome::Deleted(Some(false)) => return row.is_none().then_some(None),
        Outcome::Read(Some((value, upd))) => {
            let fits = row.as_ref().is_some_and(|row| row.0 == *value);
            return (fits && upd.is_none_or(|upd| is(&row, upd, versions))).then_some(row);
        }
        Outcome::Present => return row.is_some().then_some(row),
        Outcome::ConditionFailed(None) => return (row.is_none() && when != When::Absent).then_some(row),
        Outcome::ConditionFailed(Some(upd)) => {
            return (when != When::UpdIs(*upd) && is(&row, *upd, versions)).then_some(row);
        }
        Outcome::Deleted(Some(true)) if row.is_none() => return None,
        _ => {}
    }
    let holds = match when {
        When::Always => true,
        When::Absent => row.is_none(),
        When::UpdIs(upd) => is(&row, upd, versions),
    };
    let told = match outcome {
        Outcome::Written(upd) | Outcome::Added(_, upd) => *upd,
        _ => None,
    };
    match &entry.op {
        _ if !holds => None,
        Op::Get => Some(row),
        Op::Put(_, value) => write(value.clone(), versions, told),
        Op::Delete(_) => Some(None),
        Op::Add(by) => {
            let base: i64 = row.map_or(Some(0), |row| String::from_utf8(row.0).ok()?.parse().ok())?;
            let fits = !matches!(outcome, Outcome::Added(sum, _) if *sum != base + by);
            fits.then(|| write((base + by).to_string().into_bytes(), versions, told))?
        }
    }
}
