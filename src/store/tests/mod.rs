//! The store's behaviour, through its public face where it can be.

mod basics;
