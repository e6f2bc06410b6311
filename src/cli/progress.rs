//! How far something long is, on standard error: once a second on a terminal, in place; otherwise a line now and then.

use std::future::Future;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

/// How often on a terminal.
const ON_TERMINAL: Duration = Duration::from_secs(1);
/// How often elsewhere.
const ELSEWHERE: Duration = Duration::from_secs(10);

/// Shows `line` from time to time until `work` has ended.
pub(super) async fn show<T>(line: impl Fn() -> String, work: impl Future<Output = T>) -> T {
    let every = if io::stderr().is_terminal() { ON_TERMINAL } else { ELSEWHERE };
    show_every(every, line, work).await
}

/// Shows `line` that often until `work` has ended, wherever it goes.
pub(super) async fn show_every<T>(every: Duration, line: impl Fn() -> String, work: impl Future<Output = T>) -> T {
    let on_terminal = io::stderr().is_terminal();
    let mut ticks = tokio::time::interval(every);
    // The first is at once.
    ticks.tick().await;
    tokio::pin!(work);
    let mut shown = false;
    let done = loop {
        tokio::select! {
            done = work.as_mut() => break done,
            _ = ticks.tick() => {
                shown = true;
                let line = line();
                // Where nobody reads it there is nobody to tell.
                let _ = if on_terminal { write!(io::stderr(), "\r\x1b[K{line}") } else { writeln!(io::stderr(), "{line}") };
            }
        }
    };
    if shown && on_terminal {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    done
}
