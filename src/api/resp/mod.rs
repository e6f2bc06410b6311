//! RESP.
mod glob;
mod parse;
mod reply;
