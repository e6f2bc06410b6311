//! How nodes agree.

pub mod journal;
pub mod local;
pub mod register;
