//! Where log events go: to standard error, as the configuration says.

use std::io::{self, IsTerminal as _};

use tracing::level_filters::LevelFilter;

use crate::config::{Log, LogFormat, LogLevel};

/// Starts logging for the life of the process; a second start changes nothing.
pub(super) fn start(log: Log) {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let subscriber =
        tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).with_target(false);
    // The only way to fail is that somebody has started it before.
    match log.format {
        LogFormat::Text => subscriber.with_ansi(io::stderr().is_terminal()).try_init().ok(),
        LogFormat::Json => subscriber.json().try_init().ok(),
    };
}
