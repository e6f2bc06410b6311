//! Small worlds, searched exhaustively.

mod faults;
mod fingerprint;
mod oracle;
mod scenario;
mod search;
mod world;

use faults::Fault;
use scenario::{Scenario, cas, increment, read, take};
use search::{Order, Report, explore};

fn show(report: &Report) {
    println!(
        "{:40} {:>9} states {:>4} deep {:>7.2} s exhausted {} {}",
        report.name,
        report.states,
        report.depth,
        report.took.as_secs_f64(),
        report.exhausted,
        report.found.as_ref().map_or("", |f| &f.what)
    );
    if let Some(found) = &report.found {
        for s in &found.steps {
            println!("      {s}");
        }
    }
}

#[test]
fn try_out() {
    let max = std::env::var("MAX").map_or(300_000, |s| s.parse().unwrap());
    let worlds = [
        Scenario::new("two increments").client(0, [increment()]).client(1, [increment()]),
        Scenario::new("two increments, a tick")
            .client(0, [increment()])
            .client(1, [increment()])
            .budget(|b| b.ticks = 1),
        Scenario::new("increment and crash, slow")
            .client(0, [increment()])
            .client(1, [increment()])
            .slow_disks(0b111)
            .budget(|b| b.crashes = 1),
        Scenario::new("token").client(0, [increment(), increment()]).client(1, [increment()]),
        Scenario::new("read").client(0, [increment()]).client(1, [read(), read()]).slow_disks(0b111),
        Scenario::new("take").client(0, [take("a")]).client(1, [take("b")]).budget(|b| b.ticks = 1),
        Scenario::new("cas").client(0, [take("a"), cas("a", "c")]).client(1, [cas("a", "b")]),
    ];
    for world in worlds {
        show(&explore(world, Order::DepthFirst, max));
    }
    let _ = Fault::TokenTwice.title();
}
