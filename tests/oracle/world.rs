//! Histories of a register that does what it should, with clients side by side and ends that nobody heard of; and
//! mutations of them, which may be wrong.

use crate::history::{History, Op, Outcome, When};

/// SplitMix64 (Steele, Lea, Flood, 2014).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

pub struct World {
    pub clients: u64,
    pub ops: u64,
    pub unknown_percent: u64,
    pub values: u64,
}

impl World {
    pub fn run(&self, random: &mut Random) -> History {
        let mut free = vec![0; usize::try_from(self.clients).unwrap()];
        let mut plan = Vec::new();
        for n in 0..self.ops {
            let client = usize::try_from(n % self.clients).unwrap();
            let call = free[client] + random.below(20);
            let (at, unknown) = (call + random.below(30), random.below(100) < self.unknown_percent);
            let end = at + random.below(30);
            free[client] = end + 1;
            let late = if unknown { random.below(500) } else { 0 };
            plan.push((at + late, client, call, end, unknown));
        }
        plan.sort_unstable();
        let (mut h, mut row, mut last) = (History::default(), None::<(Vec<u8>, i64)>, 1_i64);
        for (_, client, call, end, unknown) in plan {
            let op = self.op(row.as_ref(), random);
            let id = h.call(u32::try_from(client).unwrap(), "k", op.clone(), call);
            let before = (row.clone(), last);
            let outcome = apply(&op, &mut row, &mut last);
            if unknown && random.below(2) == 0 {
                (row, last) = before;
            }
            h.returns(id, if unknown { Outcome::Unknown } else { outcome }, end);
        }
        h
    }

    fn op(&self, row: Option<&(Vec<u8>, i64)>, random: &mut Random) -> Op {
        let value = random.below(self.values).to_string().into_bytes();
        match random.below(10) {
            0..4 => Op::Get,
            4 | 5 => Op::Put(When::Always, value),
            6 => Op::Put(When::Absent, value),
            7 => Op::Put(When::UpdIs(row.map_or(1 << 12, |row| row.1)), value),
            8 => Op::Delete(When::Always),
            _ => Op::Add(1 + i64::try_from(random.below(2)).unwrap()),
        }
    }
}

fn apply(op: &Op, row: &mut Option<(Vec<u8>, i64)>, last: &mut i64) -> Outcome {
    let upd = *last << 12;
    match op {
        Op::Get => return Outcome::Read(row.clone().map(|(value, upd)| (value, Some(upd)))),
        Op::Put(When::Absent, _) if row.is_some() => return Outcome::ConditionFailed(row.as_ref().map(|row| row.1)),
        Op::Put(When::UpdIs(x), _) if row.as_ref().is_none_or(|row| row.1 != *x) => {
            return Outcome::ConditionFailed(row.as_ref().map(|row| row.1));
        }
        Op::Put(_, value) => *row = Some((value.clone(), upd)),
        Op::Delete(_) => {
            *row = None;
            *last += 1;
            return Outcome::Deleted(None);
        }
        Op::Add(by) => {
            let base = row.as_ref().map_or(0, |row| String::from_utf8(row.0.clone()).unwrap().parse().unwrap());
            *row = Some(((base + by).to_string().into_bytes(), upd));
            *last += 1;
            return Outcome::Added(base + by, Some(upd));
        }
    }
    *last += 1;
    Outcome::Written(Some(upd))
}

/// Changes one answer, so that the history may be wrong.
pub fn mutate(h: &mut History, random: &mut Random) {
    let at = usize::try_from(random.below(h.entries.len() as u64)).unwrap();
    let Some((outcome, _)) = &mut h.entries[at].returned else { return };
    let other = i64::try_from(1 + random.below(4)).unwrap() << 12;
    *outcome = match outcome.clone() {
        Outcome::Read(Some(_)) if random.below(2) == 0 => Outcome::Read(None),
        Outcome::Read(_) => {
            Outcome::Read(Some((random.below(3).to_string().into_bytes(), (random.below(3) > 0).then_some(other))))
        }
        Outcome::Written(_) if random.below(3) == 0 => Outcome::Refused,
        Outcome::Written(_) => Outcome::Written((random.below(2) > 0).then_some(other)),
        Outcome::Added(sum, upd) if random.below(2) == 0 => Outcome::Added(sum + 1, upd),
        Outcome::Added(sum, _) => Outcome::Added(sum, None),
        Outcome::ConditionFailed(_) => Outcome::ConditionFailed((random.below(3) > 0).then_some(other)),
        Outcome::Deleted(_) => Outcome::Deleted(Some(random.below(2) == 0)),
        other => other,
    };
}
