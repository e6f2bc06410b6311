//! A process for every seed: each begins from the same state, and one that hangs, aborts or eats up memory is one seed.

use std::io::Read;
use std::num::NonZeroUsize;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::bugs;
use crate::report::Report;

/// The argument by which a child knows what it is for.
pub(crate) const CHILD: &str = "--child";
/// Stands before the line that is for the parent.
const REPORT: &str = "REPORT ";
/// After how many worlds a run says how far it is.
const TOLD_EVERY: usize = 50;
/// How much of a processor's time one seed may take: a busy machine is no fault of its world.
const CHILD_PROCESSOR_SECONDS_MAX: u64 = 120;
/// How long one that waits for something may take, on the wall's clock.
const CHILD_TAKES_MAX: Duration = Duration::from_secs(1_800);
/// How much address space one seed may use, in bytes.
const CHILD_BYTES_MAX: u64 = 4 << 30;
/// How much of what a child writes is read.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;

/// In the child: bounds its memory and its time.
pub(crate) fn limit_resources() {
    let held = getrlimit(Resource::Cpu);
    let _ = setrlimit(Resource::Cpu, Rlimit { current: Some(CHILD_PROCESSOR_SECONDS_MAX), maximum: held.maximum });
    let held = getrlimit(Resource::As);
    let _ = setrlimit(Resource::As, Rlimit { current: Some(CHILD_BYTES_MAX), maximum: held.maximum });
}

/// In the child: tells the parent.
pub(crate) fn tell_parent(report: &Report) {
    println!("{REPORT}{}", serde_json::to_string(report).expect("a report is plain data"));
}

/// When to stop living through seeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// When all are done.
    End,
    /// When one has failed. Those before it are done too, so that it is the first that fails, whatever else runs beside it.
    Failure,
}

/// Lives through `seeds`, as many at a time as there are processors; the reports, in the seeds' order.
pub(crate) fn live_through(seeds: &[u64], bug: Option<&str>, until: Until) -> Vec<Report> {
    let next = AtomicUsize::new(0);
    let reports = Mutex::new(Vec::new());
    let work = || {
        while let Some((place, seed)) = next_of(seeds, &next) {
            let report = one(seed, bug);
            if until == Until::Failure && report.failure.is_some() {
                next.store(seeds.len(), Ordering::Relaxed);
            }
            let mut reports = reports.lock();
            reports.push((place, report));
            if reports.len().is_multiple_of(TOLD_EVERY) && reports.len() < seeds.len() {
                eprintln!("{} of {} worlds", reports.len(), seeds.len());
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, NonZeroUsize::get) {
            scope.spawn(work);
        }
    });
    let mut reports = reports.into_inner();
    reports.sort_by_key(|(place, _)| *place);
    reports.into_iter().map(|(_, report)| report).collect()
}

fn next_of(seeds: &[u64], next: &AtomicUsize) -> Option<(usize, u64)> {
    let place = next.fetch_add(1, Ordering::Relaxed);
    seeds.get(place).map(|seed| (place, *seed))
}

fn one(seed: u64, bug: Option<&str>) -> Report {
    run(seed, bug).unwrap_or_else(|failure| Report { seed, failure: Some(failure), ..Report::default() })
}

fn run(seed: u64, bug: Option<&str>) -> Result<Report, String> {
    let program = std::env::current_exe().map_err(|error| format!("this program's own file: {error}"))?;
    let mut child = Command::new(program)
        .args([CHILD, &seed.to_string()])
        .env(bugs::WANTED, bug.unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("starting a process for it: {error}"))?;
    let (said, complaint) = (read_all(child.stdout.take()), read_all(child.stderr.take()));
    let Ok(said) = said.recv_timeout(CHILD_TAKES_MAX) else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("not over after {CHILD_TAKES_MAX:?}"));
    };
    let status = child.wait().map_err(|error| format!("waiting for its process: {error}"))?;
    let line = said.lines().find_map(|line| line.strip_prefix(REPORT));
    match line.map(serde_json::from_str) {
        Some(Ok(report)) => Ok(report),
        Some(Err(error)) => Err(format!("its report cannot be read: {error}")),
        None => Err(format!("its process ended with {status}: {}", complaint.recv().unwrap_or_default().trim())),
    }
}

fn read_all(from: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (to_reader, all) = mpsc::channel();
    thread::spawn(move || {
        let mut held = Vec::new();
        if let Some(mut from) = from {
            let _ = from.by_ref().take(OUTPUT_BYTES_MAX).read_to_end(&mut held);
            // The rest is taken, or the child would wait for room.
            let _ = std::io::copy(&mut from, &mut std::io::sink());
        }
        let _ = to_reader.send(String::from_utf8_lossy(&held).into_owned());
    });
    all
}
