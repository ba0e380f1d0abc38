//! The signals that ask the daemon to end.

use std::io;
use std::sync::Mutex;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals as Iterator;

/// Signals that were asked for; they no longer end the process by themselves.
pub(super) struct Signals(Mutex<Iterator>);

impl Signals {
    /// Asks for the signals. Before any thread is started, so that none is ended by one.
    pub(super) fn install() -> io::Result<Self> {
        Ok(Self(Mutex::new(Iterator::new([SIGINT, SIGTERM, SIGHUP])?)))
    }

    /// Blocks until one comes; returns its name.
    pub(super) fn wait(&self) -> &'static str {
        let mut signals = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match signals.forever().next() {
            Some(SIGINT) => "SIGINT",
            Some(SIGTERM) => "SIGTERM",
            Some(SIGHUP) => "SIGHUP",
            _ => "the signals' end",
        }
    }
}

/// Sends this process a signal, as `spdk_kill_instance` asks.
pub(super) fn raise(signal: crate::control::types::KillSignal) -> io::Result<()> {
    use crate::control::types::KillSignal;
    signal_hook::low_level::raise(match signal {
        KillSignal::SigInt => SIGINT,
        KillSignal::SigTerm => SIGTERM,
        KillSignal::SigQuit => signal_hook::consts::SIGQUIT,
        KillSignal::SigHup => SIGHUP,
        KillSignal::SigKill => signal_hook::consts::SIGKILL,
        KillSignal::SigUsr1 => signal_hook::consts::SIGUSR1,
    })
}
