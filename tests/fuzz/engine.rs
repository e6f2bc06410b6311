//! What every target shares: a corpus, mutations of it, a budget of time, and a memory for inputs that led somewhere new.

use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger::clock::OsClock;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The longest input made, in bytes.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// Inputs kept in memory because they led somewhere new.
const POOL_MAX: usize = 4_096;

/// One door.
pub(crate) struct Target {
    /// Its name, and its directory in the corpus.
    pub(crate) name: &'static str,
    /// Inputs made by the test itself, beside those of the corpus.
    pub(crate) seeds: Vec<Vec<u8>>,
    /// What the mutations like to put in.
    pub(crate) words: &'static [&'static [u8]],
}

/// Numbers at which programs go wrong.
const NUMBERS: &[&[u8]] = &[
    b"0",
    b"-1",
    b"1",
    b"255",
    b"256",
    b"65535",
    b"65536",
    b"2147483647",
    b"2147483648",
    b"4294967295",
    b"4294967296",
    b"9223372036854775807",
    b"9223372036854775808",
    b"-9223372036854775808",
    b"18446744073709551615",
    b"1e400",
    b"nan",
    b"00000000000000000001",
    b"+1",
    b" 1",
    b"0x10",
];

impl Target {
    /// Replays the corpus, then mutates it until the time is up. `case` panics on a finding, and says by any hash where an
    /// input led.
    pub(crate) fn run(&self, mut case: impl FnMut(&[u8], &mut StdRng) -> u64) {
        // The short run among the other tests is the same each time; a long one goes where none went before.
        let seconds = number("FUZZ_SECONDS");
        let seed = number("FUZZ_SEED").unwrap_or_else(|| seconds.map_or(1, |_| rand::random()));
        let budget = Duration::from_secs(seconds.unwrap_or(5));
        let mut rng = StdRng::seed_from_u64(seed);
        let mut pool = self.corpus();

        let (clock, mut seen, mut cases) = (OsClock::shared(), HashSet::new(), 0_u64);
        for input in pool.clone() {
            seen.insert(self.guarded(&input, &mut rng, seed, &mut case));
            cases += 1;
        }
        while clock.now().monotonic < budget {
            let input = self.mutated(&pool, &mut rng);
            if seen.insert(self.guarded(&input, &mut rng, seed, &mut case)) && pool.len() < POOL_MAX {
                pool.push(input);
            }
            cases += 1;
        }
        println!("{}: {cases} cases, {} ways, seed {seed}", self.name, seen.len());
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(self.name);
        let list = fs::read_dir(&directory).unwrap_or_else(|why| panic!("{}: {why}", directory.display()));
        let mut paths: Vec<PathBuf> = list.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let read = paths.iter().map(|path| fs::read(path).unwrap());
        read.chain(self.seeds.iter().cloned()).collect()
    }

    /// Runs one case, and keeps its input where it fails.
    fn guarded(
        &self,
        input: &[u8],
        rng: &mut StdRng,
        seed: u64,
        case: &mut impl FnMut(&[u8], &mut StdRng) -> u64,
    ) -> u64 {
        panic::catch_unwind(AssertUnwindSafe(|| case(input, rng))).unwrap_or_else(|why| {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{:016x}", self.name, hash(&input)));
            fs::write(&path, input).unwrap();
            println!("{}: seed {seed}: this input failed, and is kept: {}", self.name, path.display());
            panic::resume_unwind(why)
        })
    }

    fn mutated(&self, pool: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
        let mut input = pool[rng.random_range(0..pool.len())].clone();
        // Few changes as a rule: most of a good input has to stay good for the rest to be reached.
        let changes = 1 << rng.random_range(0..5);
        for _ in 0..rng.random_range(1..=changes) {
            self.mutate(&mut input, pool, rng);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn mutate(&self, input: &mut Vec<u8>, pool: &[Vec<u8>], rng: &mut StdRng) {
        if input.is_empty() {
            input.push(rng.random());
        }
        let at = rng.random_range(0..input.len());
        let end = input.len().min(at + (1 << rng.random_range(0..8)));
        match rng.random_range(0..10) {
            0 => input[at] ^= 1 << rng.random_range(0..8),
            1 => input[at] = [0, 1, 0x7f, 0x80, 0xff, b'\r', b'\n', b' '][rng.random_range(0..8)],
            2 => input[at] = rng.random(),
            3 => drop(input.drain(at..end)),
            4 => {
                let copy = input[at..end].to_vec();
                input.splice(at..at, copy);
            }
            5 => {
                let words = [self.words, NUMBERS][rng.random_range(0..2)];
                if !words.is_empty() {
                    input.splice(at..at, words[rng.random_range(0..words.len())].iter().copied());
                }
            }
            6 => replace_number(input, at, rng),
            7 => {
                let other = &pool[rng.random_range(0..pool.len())];
                let from = rng.random_range(0..=other.len());
                let to = rng.random_range(from..=other.len());
                input.splice(at..at, other[from..to].iter().copied());
            }
            8 => input.truncate(at),
            _ => input[at..end].fill_with(|| rng.random()),
        }
    }
}

/// Puts another number in the place of the next one.
fn replace_number(input: &mut Vec<u8>, at: usize, rng: &mut StdRng) {
    let Some(from) = input[at..].iter().position(u8::is_ascii_digit).map(|more| at + more) else { return };
    let digits = input[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    input.splice(from..from + digits, NUMBERS[rng.random_range(0..NUMBERS.len())].iter().copied());
}

/// Any hash.
pub(crate) fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// In memory where that is to be had: the disk is not what is tried here.
pub(crate) fn fast_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|why| panic!("{variable}={text}: {why}")))
}
