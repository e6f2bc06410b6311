//! The simulated disk by itself.

#![allow(dead_code, reason = "its tests do not need all that the simulated world does")]

#[path = "sim/disk/mod.rs"]
mod disk;
