//! Where log lines go: standard error, as text or JSON.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::Failure;

#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub(super) struct Options {
    /// What log lines on standard error look like; json is an object per line
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    log_format: Format,
    /// error, warn, info, debug, trace, or directives as in warn,outrigger::transport=debug
    /// [default: info for serve, warn otherwise]
    #[arg(long, global = true, value_name = "LEVEL", env = "OUTRIGGER_LOG", hide_env_values = true)]
    log_level: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Options {
    /// Starts logging, at `default` where no level was asked for.
    pub(super) fn install(&self, default: &str) -> Result<(), Failure> {
        let level = self.log_level.as_deref().unwrap_or(default);
        let wrong = |why: &dyn std::fmt::Display| {
            Failure::Usage(format!(
                "--log-level (OUTRIGGER_LOG): got {level:?}, want error, warn, info, debug, trace or directives: {why}"
            ))
        };
        if let Some(word) = unknown_level(level) {
            return Err(wrong(&format!("{word:?} is not a level")));
        }
        let filter = EnvFilter::try_new(directives(level)).map_err(|error| wrong(&error))?;
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        // Complaining on standard error that standard error is closed would end the process.
        let builder = builder.log_internal_errors(false);
        let installed = match self.log_format {
            Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
            Format::Json => builder.json().flatten_event(true).try_init(),
        };
        installed.map_err(Failure::other)
    }

    /// The same options for a child process.
    pub(super) fn as_flags(&self) -> Vec<String> {
        let format = if matches!(self.log_format, Format::Json) { "json" } else { "text" };
        let mut flags = vec!["--log-format".to_owned(), format.to_owned()];
        if let Some(level) = &self.log_level {
            flags.extend(["--log-level".to_owned(), level.clone()]);
        }
        flags
    }
}

/// A word that stands where a level should. It would be taken for the name of a target and silence everything else.
fn unknown_level(directives: &str) -> Option<&str> {
    let words = directives.split(',').map(str::trim);
    words.into_iter().find(|word| {
        let is_bare = !word.is_empty() && !word.contains(['=', ':', '[']);
        is_bare && word.parse::<LevelFilter>().is_err()
    })
}

/// A bare level is meant for this program; what it is built on stays quiet up to warnings.
fn directives(level: &str) -> String {
    match level {
        "off" | "error" | "warn" => level.to_owned(),
        "info" | "debug" | "trace" => format!("warn,outrigger={level}"),
        directives => directives.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_is_not_a_target() {
        for good in ["info", "WARN", "off", "warn,outrigger::transport=debug", "outrigger=trace", "outrigger::api", ""]
        {
            assert_eq!(unknown_level(good), None, "{good}");
        }
        assert_eq!(unknown_level("verbose"), Some("verbose"));
        assert_eq!(unknown_level("warn, inof"), Some("inof"));
    }
}
