//! All randomness of a simulated world follows from its seed.
//!
//! What the world itself decides comes from streams of its own, so that a node that draws once more does not change the
//! weather. What the code under test draws (hash maps' keys, `select!`, `rand::random`) comes from the operating system by
//! way of libc's `getrandom`; this binary has its own.

use std::sync::atomic::{AtomicU64, Ordering};

use rand::SeedableRng;
use rand::rngs::StdRng;

/// Weyl's step of SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators", 2014).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Until a seed is set it is this one.
static STATE: AtomicU64 = AtomicU64::new(STEP);
static DRAWN: AtomicU64 = AtomicU64::new(0);

/// Begins the stream that stands for the operating system's randomness. Before anything draws from it.
pub(crate) fn seed(seed: u64) {
    STATE.store(mixed(seed), Ordering::Relaxed);
}

/// How many bytes were asked for: part of what two runs of a seed must have in common.
pub(crate) fn drawn() -> u64 {
    DRAWN.load(Ordering::Relaxed)
}

/// Whether both ways to the system's randomness, the linked one and the one that is looked up by name, end here. Called
/// first of all, as each thread asks but once.
pub(crate) fn is_ours() -> bool {
    let before = drawn();
    let _ = std::hash::RandomState::new();
    let linked = drawn();
    let _ = rand::random::<u64>();
    before < linked && linked < drawn()
}

/// The world's own stream for one purpose.
pub(crate) fn stream(seed: u64, purpose: &str) -> StdRng {
    let folded = purpose.bytes().fold(seed, |folded, byte| mixed(folded ^ u64::from(byte)));
    StdRng::seed_from_u64(folded)
}

fn mixed(state: u64) -> u64 {
    let mut z = state.wrapping_add(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Stands for libc's: fills `buffer`, never fails, never asks the system.
///
/// # Safety
/// As libc's: `buffer` is valid for writes of `length` bytes.
#[unsafe(no_mangle)]
#[allow(unsafe_code, reason = "the one way to stand for libc's getrandom")]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    DRAWN.fetch_add(length as u64, Ordering::Relaxed);
    let mut at = 0;
    while at < length {
        let bytes = mixed(STATE.fetch_add(STEP, Ordering::Relaxed)).to_ne_bytes();
        let count = bytes.len().min(length - at);
        // SAFETY: `at + count <= length`, and the caller vouches for `length` bytes.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.add(at), count) };
        at += count;
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}
