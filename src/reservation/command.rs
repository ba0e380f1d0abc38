//! The reservation commands as values, and how they are read from the wire.
//!
//! Everything here comes from a host. What no state could make valid (a reserved value, data that
//! is too short) is refused here; what depends on the state is `transition`'s.

use std::fmt;

use zerocopy::FromBytes;

use super::state::ReservationType;
use crate::spec::command::{IoOpcode, SubmissionEntry};
use crate::spec::reservation::{
    AcquireAction, AcquireData, PersistenceChange, RegisterAction, RegisterData, ReleaseAction,
    ReleaseData,
};
use crate::spec::status::StatusCode;

/// A reservation key. Zero is legal in a command, where it means no key; no registrant has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u64);

impl Key {
    /// No key.
    pub const ZERO: Self = Self(0);

    /// The key as an integer.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Whether a Register checks the key that the host has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExistingKey {
    /// It must be this one (CRKEY).
    Is(Key),
    /// It may be any (IEKEY).
    Ignored,
}

/// The Persist Through Power Loss state of a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Persistence {
    /// Registrations and the reservation are gone after a power loss or a restart of the target.
    #[default]
    Volatile,
    /// They stay.
    ThroughPowerLoss,
}

/// What a Register does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Registers the host with this key.
    Register(Key),
    /// Removes the host's registration.
    Unregister,
    /// Gives the host's registration this key.
    Replace(Key),
}

/// What an Acquire does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquire {
    /// Takes a reservation that nobody holds.
    Acquire,
    /// Removes the registrants that have this key, and takes over what they hold.
    Preempt(Key),
    /// The same, and their outstanding commands end before this one does.
    PreemptAndAbort(Key),
}

/// What a Release does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Gives up the reservation of this type; `None` is RTYPE 0, the type of no reservation.
    Release(Option<ReservationType>),
    /// Removes the reservation and every registration.
    Clear,
}

/// What a host can ask of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Reservation Register.
    Register {
        /// What it does.
        action: Register,
        /// The check of the host's present key.
        existing: ExistingKey,
        /// The Persist Through Power Loss state to set, if the command succeeds.
        persistence: Option<Persistence>,
    },
    /// Reservation Acquire.
    Acquire {
        /// What it does.
        action: Acquire,
        /// The host's key (CRKEY).
        key: Key,
        /// The type of the reservation to take.
        reservation_type: ReservationType,
    },
    /// Reservation Release.
    Release {
        /// What it does.
        action: Release,
        /// The host's key (CRKEY).
        key: Key,
    },
    /// Set Features, Reservation Persistence (83h).
    SetPersistence(Persistence),
}

impl Command {
    /// How many bytes of data the host sends with `opcode`; `None` unless it is a Reservation
    /// Register, Acquire or Release.
    #[must_use]
    pub const fn data_size(opcode: IoOpcode) -> Option<usize> {
        match opcode {
            IoOpcode::RESERVATION_REGISTER => Some(size_of::<RegisterData>()),
            IoOpcode::RESERVATION_ACQUIRE => Some(size_of::<AcquireData>()),
            IoOpcode::RESERVATION_RELEASE => Some(size_of::<ReleaseData>()),
            _ => None,
        }
    }

    /// Reads the command of `entry` with its `data`, which may be longer than it need be.
    ///
    /// # Errors
    /// `INVALID_OPCODE` if it is no Reservation Register, Acquire or Release; `INVALID_FIELD` for
    /// a reserved value, data that is too short, or IEKEY where the specification forbids it.
    pub fn decode(entry: &SubmissionEntry, data: &[u8]) -> Result<Self, StatusCode> {
        match entry.io_opcode() {
            IoOpcode::RESERVATION_REGISTER => Self::decode_register(entry, data),
            IoOpcode::RESERVATION_ACQUIRE => Self::decode_acquire(entry, data),
            IoOpcode::RESERVATION_RELEASE => Self::decode_release(entry, data),
            _ => Err(StatusCode::INVALID_OPCODE),
        }
    }

    fn decode_register(entry: &SubmissionEntry, data: &[u8]) -> Result<Self, StatusCode> {
        let data: RegisterData = prefix(data)?;
        let new_key = Key(data.new_key.get());
        let action = match entry.register_action() {
            RegisterAction::REGISTER => Register::Register(new_key),
            RegisterAction::UNREGISTER => Register::Unregister,
            RegisterAction::REPLACE => Register::Replace(new_key),
            _ => return Err(StatusCode::INVALID_FIELD),
        };
        let existing = if entry.ignores_existing_key() {
            ExistingKey::Ignored
        } else {
            ExistingKey::Is(Key(data.current_key.get()))
        };
        let persistence = match entry.persistence_change() {
            PersistenceChange::NONE => None,
            PersistenceChange::CLEAR => Some(Persistence::Volatile),
            PersistenceChange::PERSIST => Some(Persistence::ThroughPowerLoss),
            _ => return Err(StatusCode::INVALID_FIELD),
        };
        Ok(Self::Register { action, existing, persistence })
    }

    fn decode_acquire(entry: &SubmissionEntry, data: &[u8]) -> Result<Self, StatusCode> {
        let data: AcquireData = prefix(data)?;
        let victim = Key(data.preempt_key.get());
        let action = match entry.acquire_action() {
            AcquireAction::ACQUIRE => Acquire::Acquire,
            AcquireAction::PREEMPT => Acquire::Preempt(victim),
            AcquireAction::PREEMPT_AND_ABORT => Acquire::PreemptAndAbort(victim),
            _ => return Err(StatusCode::INVALID_FIELD),
        };
        let reservation_type = ReservationType::from_wire(entry.reservation_type());
        match reservation_type {
            Some(reservation_type) if !entry.ignores_existing_key() => {
                Ok(Self::Acquire { action, key: Key(data.current_key.get()), reservation_type })
            }
            _ => Err(StatusCode::INVALID_FIELD),
        }
    }

    fn decode_release(entry: &SubmissionEntry, data: &[u8]) -> Result<Self, StatusCode> {
        let data: ReleaseData = prefix(data)?;
        let reservation_type = ReservationType::from_wire(entry.reservation_type());
        let action = match entry.release_action() {
            ReleaseAction::RELEASE if reservation_type.is_some() => {
                Release::Release(reservation_type)
            }
            ReleaseAction::RELEASE if entry.reservation_type() == 0 => Release::Release(None),
            ReleaseAction::CLEAR => Release::Clear,
            _ => return Err(StatusCode::INVALID_FIELD),
        };
        if entry.ignores_existing_key() {
            return Err(StatusCode::INVALID_FIELD);
        }
        Ok(Self::Release { action, key: Key(data.current_key.get()) })
    }
}

fn prefix<T: FromBytes>(data: &[u8]) -> Result<T, StatusCode> {
    T::read_from_prefix(data).map(|(data, _)| data).map_err(|_| StatusCode::INVALID_FIELD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::NamespaceId;

    const NSID: NamespaceId = NamespaceId(1);
    const KEYS: [u8; 16] = [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn every_valid_command_is_read() {
        let entry = SubmissionEntry::reservation_register(
            NSID,
            RegisterAction::REPLACE,
            PersistenceChange::CLEAR,
        );
        let register = |existing| Command::Register {
            action: Register::Replace(Key(2)),
            existing,
            persistence: Some(Persistence::Volatile),
        };
        assert_eq!(Command::decode(&entry, &KEYS), Ok(register(ExistingKey::Is(Key(1)))));
        let entry = entry.ignoring_existing_key();
        assert_eq!(Command::decode(&entry, &KEYS), Ok(register(ExistingKey::Ignored)));
        let entry = SubmissionEntry::reservation_acquire(NSID, AcquireAction::PREEMPT_AND_ABORT, 5);
        let preempt = Command::Acquire {
            action: Acquire::PreemptAndAbort(Key(2)),
            key: Key(1),
            reservation_type: ReservationType::WriteExclusiveAllRegistrants,
        };
        assert_eq!(Command::decode(&entry, &KEYS), Ok(preempt));
        let entry = SubmissionEntry::reservation_release(NSID, ReleaseAction::RELEASE, 0);
        let release = Command::Release { action: Release::Release(None), key: Key(1) };
        assert_eq!(Command::decode(&entry, &KEYS[..8]), Ok(release));
    }

    /// Every value of dword 10's low 16 bits and CPTPL, for every opcode: an answer, and the
    /// refusals are exactly those of the specification.
    #[test]
    fn reserved_values_are_refused() {
        for opcode in [0x0d, 0x11, 0x15] {
            for bits in 0..=0xffff_u32 {
                for cptpl in 0..4 {
                    let (action, iekey, rtype) = (bits & 7, bits >> 3 & 1, bits >> 8);
                    let valid = match opcode {
                        0x0d => action <= 2 && cptpl != 1,
                        0x11 => action <= 2 && iekey == 0 && (1..=6).contains(&rtype),
                        _ => action <= 1 && iekey == 0 && (action == 1 || rtype <= 6),
                    };
                    let mut entry = SubmissionEntry { opcode, ..SubmissionEntry::default() };
                    entry.dword10 = (bits | cptpl << 30).into();
                    let decoded = Command::decode(&entry, &KEYS);
                    assert_eq!(decoded.is_ok(), valid, "{opcode:#x} {:#x}", entry.dword10);
                    assert!(decoded.is_ok() || decoded == Err(StatusCode::INVALID_FIELD));
                }
            }
        }
    }

    #[test]
    fn short_data_is_refused() {
        for opcode in (0..=u8::MAX).map(IoOpcode) {
            let Some(size) = Command::data_size(opcode) else {
                let entry = SubmissionEntry { opcode: opcode.0, ..SubmissionEntry::default() };
                assert_eq!(Command::decode(&entry, &KEYS), Err(StatusCode::INVALID_OPCODE));
                continue;
            };
            let mut entry = SubmissionEntry { opcode: opcode.0, ..SubmissionEntry::default() };
            entry.dword10 = 0x0100.into();
            assert_eq!(Command::decode(&entry, &KEYS[..size - 1]), Err(StatusCode::INVALID_FIELD));
            assert!(Command::decode(&entry, &KEYS[..size]).is_ok(), "{opcode:?}");
        }
    }
}
