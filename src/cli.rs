//! The command line: `serve` runs a daemon here, everything else asks one over its control socket
//! or works on files alone.
//!
//! What a verb prints is made as a whole and written once, so that an error never follows half an
//! answer. Nothing is done here that a program could not do over the control socket.

mod arguments;
mod ask;
mod check;
mod device;
mod generate;
mod logging;
mod pool;
mod relatives;
mod reservation;
mod scrub;
mod space;
mod table;
mod target;

use std::io::{self, Write as _};

use serde_json::json;

pub use self::arguments::{Arguments, Verb};
use crate::config::{Config, ConfigError};
use crate::control::ClientError;
use crate::daemon;

/// How the process ends. docs/operations.md tells users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// What was asked has been done.
    Success = 0,
    /// It has not.
    Failure = 1,
    /// The arguments make no sense.
    Usage = 2,
    /// No daemon answers.
    Unreachable = 3,
    /// The configuration is refused, or cannot be read.
    Configuration = 4,
    /// A store that was checked is not in order, and can be repaired.
    Repairable = 5,
    /// A store that was checked is damaged beyond what can be repaired without guessing.
    Damaged = 6,
}

impl Exit {
    /// The code for `error`.
    #[must_use]
    pub fn of(error: &anyhow::Error) -> Self {
        if error.is::<UsageError>() {
            Self::Usage
        } else if error.is::<ConfigError>() {
            Self::Configuration
        } else if matches!(
            error.downcast_ref(),
            Some(ClientError::Unreachable { .. } | ClientError::NoAnswer { .. })
        ) {
            Self::Unreachable
        } else {
            Self::Failure
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        (exit as u8).into()
    }
}

/// Arguments that are fine one by one but make no sense.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// A daemon needs a configuration.
    #[error("serve needs --config FILE; config.toml.example is one to start from")]
    NoConfiguration,
    /// The parameters of `rpc` are not JSON.
    #[error("the parameters are not JSON")]
    NotJson(#[source] serde_json::Error),
    /// A volume cannot be renamed into another pool.
    #[error("a volume stays in its pool: {from:?} cannot become {to:?}")]
    OtherPool {
        /// The volume's pool.
        from: String,
        /// The one it cannot go to.
        to: String,
    },
}

/// Does what `arguments` ask for, and prints it.
///
/// # Errors
/// Why it could not be done; [`Exit::of`] has the code for it.
pub fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let Arguments { socket, config, json, verb } = arguments;
    let text = match verb {
        Verb::Serve => {
            let config = Config::load(&config.ok_or(UsageError::NoConfiguration)?)?;
            logging::start(config.log);
            return daemon::serve(&config).map(|()| Exit::Success);
        }
        Verb::CheckConfig { file } => {
            let config = Config::load(&file)?;
            let counts = (config.devices.len(), config.pools.len(), config.volumes.len());
            let (devices, pools, volumes) = counts;
            if json {
                let mount = &config.mount.path;
                pretty(&json!({
                    "mount": mount, "devices": devices, "pools": pools, "volumes": volumes,
                }))
            } else {
                let file = file.display();
                format!("{file} is valid; devices: {devices}, pools: {pools}, volumes: {volumes}\n")
            }
        }
        Verb::Completions { shell } => generate::completions(shell),
        Verb::Man { directory } => generate::man(&directory)?,
        Verb::Check(check) => {
            let check::Told { text, exit } = check.run(json)?;
            return print(&text).map(|()| exit);
        }
        Verb::Dump(dump) => dump.run(json)?,
        Verb::Status { counters } => ask::connect(socket, config)?.status(json, counters)?,
        Verb::Pool(verb) => ask::connect(socket, config)?.pool(verb, json)?,
        Verb::Target(verb) => ask::connect(socket, config)?.target(verb, json)?,
        Verb::Volume(verb) => ask::connect(socket, config)?.volume(verb, json)?,
        Verb::Device(verb) => ask::connect(socket, config)?.device(verb, json)?,
        Verb::Events(watch) => {
            ask::connect(socket, config)?.watch(&watch, json)?;
            return Ok(Exit::Success);
        }
        Verb::Reservation(verb) => ask::connect(socket, config)?.reservation(verb, json)?,
        Verb::Rpc { method, parameters } => {
            let parameters = ask::parameters(parameters)?;
            ask::connect(socket, config)?.rpc(&method, &parameters)?
        }
    };
    print(&text).map(|()| Exit::Success)
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

fn pretty(value: &impl serde::Serialize) -> String {
    // Values of ours have only string keys, so that this cannot fail; alternate form is indented.
    format!("{:#}\n", json!(value))
}
