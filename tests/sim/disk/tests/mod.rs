//! What the disk promises.
