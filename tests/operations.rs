//! The table of metrics in docs/operations.md is the one in the code.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use outrigger::telemetry::{Kind, METRICS, Metric};

const BEGIN: &str = "<!-- metrics -->\n";
const END: &str = "<!-- /metrics -->\n";

/// What a metric counts in, as its name says.
fn unit(metric: &Metric) -> &'static str {
    let name = metric.name.trim_end_matches("_total");
    match name.rsplit('_').next().unwrap_or_default() {
        "seconds" => "seconds",
        "bytes" => "bytes",
        "ready" | "joint" | "votes" | "outdated" => "0 or 1",
        _ => "number",
    }
}

fn table() -> String {
    let mut table = "| metric | kind | unit | meaning |\n| --- | --- | --- | --- |\n".to_owned();
    for metric in METRICS {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        writeln!(table, "| `{}` | {kind} | {} | {} |", metric.name, unit(metric), metric.help).unwrap();
    }
    table
}

#[test]
fn the_documented_metrics_are_those_of_the_code() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let text = fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the mark before the table is there");
    let (found, after) = rest.split_once(END).expect("the mark after the table is there");
    let table = table();
    if std::env::var("OPERATIONS").is_ok_and(|how| how == "write") {
        fs::write(&file, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(found, table, "write it anew: OPERATIONS=write cargo test --test operations");
}
