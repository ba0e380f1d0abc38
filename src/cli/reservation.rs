//! `lvolfs reservation`.

use clap::builder::PossibleValue;
use clap::{Subcommand, ValueEnum};

use super::ask::Daemon;
use super::pretty;
use super::table::Table;
use crate::config::VolumeName;
use crate::control::types::{
    AcquireReservation, PreemptReservation, RegisterReservation, ReservationStatus,
    ResetReservation, SelectLvol,
};
use crate::spec::reservation::ReservationType;

/// What to do with the reservations of a volume. All but `reset` act for the local mount, which
/// is one host among those that use the volume.
#[derive(Debug, Subcommand)]
pub enum ReservationVerb {
    /// Show who has registered, who holds what, and what the local mount may do
    Show {
        /// The volume
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeName::parse)]
        volume: VolumeName,
    },
    /// Register the local mount, or give it another key
    Register {
        /// The volume
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeName::parse)]
        volume: VolumeName,
        /// The key, a number other than 0, such as 0xabc; 0 ends the registration
        #[arg(value_parser = key)]
        key: u64,
        /// Whether registrations and the reservation outlive a power loss and a restart
        #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
        persist: bool,
    },
    /// Take a reservation that nobody holds
    Acquire {
        /// The volume
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeName::parse)]
        volume: VolumeName,
        /// Its type
        #[arg(value_name = "TYPE")]
        kind: ReservationType,
    },
    /// Remove the registrants that have a key, and take over the reservation if they hold it
    Preempt {
        /// The volume
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeName::parse)]
        volume: VolumeName,
        /// Their key; 0 stands for all others where all registrants are holders
        #[arg(value_parser = key)]
        key: u64,
        /// The type to take
        #[arg(value_name = "TYPE")]
        kind: ReservationType,
        /// Also wait until what they had under way has ended
        #[arg(long)]
        abort: bool,
    },
    /// Give up the reservation
    Release {
        /// The volume
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeName::parse)]
        volume: VolumeName,
    },
    /// Remove the reservation and all registrations; for a registrant
    Clear {
        /// The volume
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeName::parse)]
        volume: VolumeName,
    },
    /// An administrator's override: lift the fence of a volume whose stored reservations are
    /// damaged
    ///
    /// The damaged file is renamed and kept. Make sure first that no host relies on what it said.
    Reset {
        /// The volume
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeName::parse)]
        volume: VolumeName,
        /// Remove all registrations and the reservation as well, fenced or not, without any key
        #[arg(long)]
        force: bool,
    },
}

impl ValueEnum for ReservationType {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::WriteExclusive => "Only the holder writes",
            Self::ExclusiveAccess => "Only the holder reads and writes",
            Self::WriteExclusiveRegistrantsOnly => {
                "Only registrants write; one of them is the holder"
            }
            Self::ExclusiveAccessRegistrantsOnly => {
                "Only registrants read and write; one of them is the holder"
            }
            Self::WriteExclusiveAllRegistrants => {
                "Only registrants write; each of them is a holder"
            }
            Self::ExclusiveAccessAllRegistrants => {
                "Only registrants read and write; each of them is a holder"
            }
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

/// A key: decimal, or hexadecimal after 0x.
fn key(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

impl Daemon {
    pub(super) fn reservation(
        &mut self,
        verb: ReservationVerb,
        json: bool,
    ) -> anyhow::Result<String> {
        let select = |volume: VolumeName| SelectLvol { name: volume.to_string() };
        let client = self.client();
        let status = match verb {
            ReservationVerb::Show { volume } => client.lvolfs_reservation_show(&select(volume))?,
            ReservationVerb::Register { volume, key, persist } => {
                let name = volume.to_string();
                let (key, persist) = (Some(key), (key != 0).then_some(persist));
                client.lvolfs_reservation_register(&RegisterReservation { name, key, persist })?
            }
            ReservationVerb::Acquire { volume, kind } => {
                let name = volume.to_string();
                client.lvolfs_reservation_acquire(&AcquireReservation { name, kind })?
            }
            ReservationVerb::Preempt { volume, key, kind, abort } => {
                let name = volume.to_string();
                let preempt = PreemptReservation { name, key, kind, abort };
                client.lvolfs_reservation_preempt(&preempt)?
            }
            ReservationVerb::Release { volume } => {
                client.lvolfs_reservation_release(&select(volume))?
            }
            ReservationVerb::Clear { volume } => {
                client.lvolfs_reservation_clear(&select(volume))?
            }
            ReservationVerb::Reset { volume, force } => {
                let name = volume.to_string();
                let reset = client.lvolfs_reservation_reset(&ResetReservation { name, force })?;
                if json {
                    return Ok(pretty(&reset));
                }
                let mut text = format!("the reservations of {volume} are reset\n");
                if let Some(file) = reset.set_aside {
                    text += &format!("what was damaged is kept as {}\n", file.display());
                }
                text += &format!("{} registrations were removed\n", reset.removed);
                return Ok(text);
            }
        };
        Ok(if json { pretty(&status) } else { told(&status) })
    }
}

fn told(status: &ReservationStatus) -> String {
    let mut table = Table::new(&["VOLUME", &status.name]);
    table.fact("reservation", status.kind.map_or("none", ReservationType::name));
    table.fact("persists", if status.persist { "yes" } else { "no" });
    table.fact("generation", status.generation);
    table.fact("local host", status.local_host);
    table.fact("local nqn", &status.local_nqn);
    table.fact("local access", &status.local_access);
    let mut text = table.to_string();
    if let Some(fence) = &status.fence {
        text += &format!(
            "\nfenced: nobody may read or write, for what is stored cannot be believed: {fence}\n\
             `lvolfs reservation reset {}` lifts the fence\n",
            status.name
        );
    }
    if !status.registrants.is_empty() {
        let mut table = Table::new(&["HOST", "KEY", "HOLDER", "WHO"]);
        for one in &status.registrants {
            let holder = if one.holder { "yes" } else { "no" };
            let who = if one.local { "this mount" } else { "" };
            let key = format!("{:#x}", one.key);
            table.row([one.host.to_string(), key, holder.to_owned(), who.to_owned()]);
        }
        text += &format!("\n{table}");
    }
    text
}
