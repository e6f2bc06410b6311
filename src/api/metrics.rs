//! What the socket counts, with every handle looked up once.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::error::LABELS;
use crate::telemetry;

/// Which dialect a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Http,
    Resp,
}

impl Dialect {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Resp => "resp",
        }
    }
}

/// What a request does, as far as its time is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Read,
    Write,
    Other,
}

/// The metrics of one dialect.
pub(super) struct DialectMetrics {
    pub(super) requests: Counter,
    read_seconds: Histogram,
    write_seconds: Histogram,
    other_seconds: Histogram,
    errors: Vec<(&'static str, Counter)>,
}

impl DialectMetrics {
    fn new(dialect: Dialect) -> Self {
        let dialect = dialect.as_str();
        let seconds =
            |class: &'static str| histogram!(telemetry::REQUEST_SECONDS, "dialect" => dialect, "class" => class);
        let error = |label: &&'static str| {
            (*label, counter!(telemetry::REQUEST_ERRORS, "dialect" => dialect, "error" => *label))
        };
        Self {
            requests: counter!(telemetry::REQUESTS, "dialect" => dialect),
            read_seconds: seconds("read"),
            write_seconds: seconds("write"),
            other_seconds: seconds("other"),
            errors: LABELS.iter().map(error).collect(),
        }
    }

    /// The time of one class of request.
    pub(super) fn seconds(&self, class: Class) -> &Histogram {
        match class {
            Class::Read => &self.read_seconds,
            Class::Write => &self.write_seconds,
            Class::Other => &self.other_seconds,
        }
    }

    /// Counts an error by its row's label.
    pub(super) fn count_error(&self, label: &str) {
        if let Some((_, counter)) = self.errors.iter().find(|(known, _)| *known == label) {
            counter.increment(1);
        }
    }
}

/// All metrics of the socket.
pub(super) struct Metrics {
    pub(super) http: DialectMetrics,
    pub(super) resp: DialectMetrics,
    pub(super) connections: Gauge,
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self {
            http: DialectMetrics::new(Dialect::Http),
            resp: DialectMetrics::new(Dialect::Resp),
            connections: gauge!(telemetry::CONNECTIONS),
        }
    }
}
