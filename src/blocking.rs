//! Where work that waits for a disk is done: on threads of its own, so that nobody else waits for it.
//!
//! A simulated world has one thread, and a time of its own. There the same work is done at once, in an order that its
//! seed decides, and the time that a simulated disk wants for it passes afterwards: [`run_inline`].

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::task::JoinHandle;

thread_local! {
    static IS_INLINE: Cell<bool> = const { Cell::new(false) };
    static OWED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// From now on, work begun on this thread is done on this thread. For simulations only: nothing may wait for a thread
/// that is not there.
pub fn run_inline() {
    IS_INLINE.set(true);
}

/// Whether [`run_inline`] was called on this thread.
#[must_use]
pub fn is_inline() -> bool {
    IS_INLINE.get()
}

/// A simulated disk says that what it has done is complete only after so long from now.
pub fn owe(time: Duration) {
    OWED.set(OWED.get().max(time));
}

/// Does some work where it may block, from now on, whether or not anybody waits for it.
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    if is_inline() { tokio::spawn(timed(work)) } else { tokio::task::spawn_blocking(work) }
}

/// Does some work of a [`Worker`], here; returns once the time that it takes has passed.
pub async fn timed<T>(work: impl FnOnce() -> T) -> T {
    OWED.set(Duration::ZERO);
    let done = work();
    let owed = OWED.replace(Duration::ZERO);
    if !owed.is_zero() {
        tokio::time::sleep(owed).await;
    }
    done
}

/// Work that goes on, on a thread of its own: a future that blocks where it has to, and ends when told to.
#[derive(Debug)]
pub struct Worker(Option<std::thread::JoinHandle<()>>);

impl Worker {
    /// Starts it.
    pub fn start(name: &str, work: impl Future<Output = ()> + Send + 'static) -> io::Result<Self> {
        if is_inline() {
            tokio::spawn(work);
            return Ok(Self(None));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let thread = std::thread::Builder::new().name(name.to_owned());
        Ok(Self(Some(thread.spawn(move || runtime.block_on(work))?)))
    }
}

impl Drop for Worker {
    /// Waits for its end.
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // A panic in the thread was reported by its hook; there is nothing to add here.
            let _ = thread.join();
        }
    }
}
