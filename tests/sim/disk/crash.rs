//! What a killed process and a loss of power leave behind.

use rand::RngExt;

use super::content::{Loss, Mood};
use super::{Body, SimDisk, State};

impl SimDisk {
    /// Ends every process that has the disk mounted: what their handles, and SQLite's, still try fails with EIO and changes
    /// nothing, and their locks are gone. What a killed process wrote stays, durable or not; a loss of power takes what
    /// no completed sync covers, each block, size and name by itself.
    pub(crate) fn crash(&self, power_loss: bool) {
        let now = self.now();
        let mut state = self.shared.state.lock();
        state.advance(now);
        state.end_lives();
        if power_loss {
            state.lose_power();
            state.busy_until = now;
        }
        state.collect();
    }
}

impl State {
    /// Forgets who has what open and locked.
    pub(super) fn end_lives(&mut self) {
        self.alive.clear();
        self.locks.clear();
        self.sqlite.clear();
        self.faults.fuse = None;
        self.inodes.values_mut().for_each(|inode| inode.opens = 0);
    }

    fn lose_power(&mut self) {
        // Nobody was told yet of what comes after the first sync in flight, so the power may have gone at any of them.
        let survived = self.rng.random_range(0..=self.in_flight.len());
        let interrupted = self.in_flight.get(survived).map_or(u64::MAX, |sync| sync.number);
        let completed = if interrupted == u64::MAX { self.issued } else { interrupted - 1 };
        let mood = match self.rng.random_range(0..8) {
            0 => Mood::All,
            1 => Mood::Nothing,
            2 | 3 => Mood::InOrder,
            4 => Mood::Share(95),
            5 => Mood::Share(10),
            _ => Mood::Share(self.rng.random_range(1..100)),
        };
        let mut loss = Loss::new(&mut self.rng, mood, interrupted);
        for inode in self.inodes.values_mut() {
            match &mut inode.body {
                Body::File(file) => {
                    file.settle(completed);
                    file.lose(&mut loss);
                }
                Body::Directory(directory) => {
                    directory.settle(completed);
                    directory.lose(&mut loss);
                }
            }
        }
        self.in_flight.clear();
        self.completed = self.issued;
    }
}
