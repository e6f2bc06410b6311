//! How nodes agree.

pub mod journal;
pub mod register;
