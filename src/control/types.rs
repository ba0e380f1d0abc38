//! Parameters and results of the methods that SPDK has too: its names, its shapes. A file for each
//! group of methods; those of the process itself are here.
//!
//! Every type is read and written: the daemon reads parameters and writes results, the command
//! line the reverse. Parameters refuse unknown keys; results that are read ignore them, so that
//! a newer daemon can tell an older client more.

mod bdev;
mod copy;
mod events;
mod lvol;
mod lvstore;
mod nvme;
mod nvmf;
mod relatives;
mod reservation;
mod scrub;
mod space;

use serde::{Deserialize, Serialize};

pub use bdev::*;
pub use copy::*;
pub use events::*;
pub use lvol::*;
pub use lvstore::*;
pub use nvme::*;
pub use nvmf::*;
pub use relatives::*;
pub use reservation::*;
pub use scrub::*;
pub use space::*;

/// The parameters of a method that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoParameters {}

/// Of `spdk_kill_instance`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillInstance {
    /// What to send to the daemon.
    pub sig_name: KillSignal,
}

/// A signal's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "named after the signals")]
pub enum KillSignal {
    SigInt,
    SigTerm,
    SigQuit,
    SigHup,
    SigKill,
    SigUsr1,
}

/// Of `rpc_get_methods`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GetMethods {
    /// Only those that are available now; all of ours always are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<bool>,
    /// Also names that are out of use; there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_aliases: Option<bool>,
}

/// The answer of `spdk_get_version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The whole version: "lvolfs v0.1.0".
    pub version: String,
    /// Its parts.
    pub fields: VersionFields,
}

/// The parts of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "SPDK's words")]
pub struct VersionFields {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
    pub suffix: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn words_are_those_of_spdk() {
        assert_eq!(json!(KillSignal::SigUsr1), json!("SIGUSR1"));
        assert_eq!(json!(ResetMode::Maxmin), json!("maxmin"));
    }
}
