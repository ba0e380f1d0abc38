//! Who may do what: the table of command classes by role and type of reservation (Base,
//! "Reservations", command behaviour in the presence of a reservation).

use super::state::{Holder, Reservations};
use crate::spec::command::{AdminOpcode, IoOpcode};
use crate::spec::reservation::HostId;

/// What a command does to a volume, as far as reservations care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Of the read group: Read, Compare, Verify.
    Read,
    /// Of the write group: Write, Write Uncorrectable, Write Zeroes, Dataset Management, Flush.
    Write,
    /// Of both: Copy within the volume, fused Compare and Write.
    ReadAndWrite,
}

impl Access {
    /// What a command of an I/O queue does, `None` for those that reservations never stop. A
    /// command unknown here counts as one of both groups. The halves of a fused command are two
    /// commands here; together they are [`Access::ReadAndWrite`].
    #[must_use]
    pub const fn of(opcode: IoOpcode) -> Option<Self> {
        match opcode {
            IoOpcode::READ | IoOpcode::COMPARE | IoOpcode::VERIFY => Some(Self::Read),
            IoOpcode::WRITE
            | IoOpcode::WRITE_UNCORRECTABLE
            | IoOpcode::WRITE_ZEROES
            | IoOpcode::DATASET_MANAGEMENT
            | IoOpcode::FLUSH => Some(Self::Write),
            IoOpcode::RESERVATION_REGISTER
            | IoOpcode::RESERVATION_REPORT
            | IoOpcode::RESERVATION_ACQUIRE
            | IoOpcode::RESERVATION_RELEASE => None,
            _ => Some(Self::ReadAndWrite),
        }
    }

    /// What an admin command does to the volumes that it names, `None` for those that
    /// reservations never stop.
    #[must_use]
    pub const fn of_admin(opcode: AdminOpcode) -> Option<Self> {
        match opcode {
            AdminOpcode::FORMAT_NVM | AdminOpcode::NAMESPACE_ATTACHMENT => Some(Self::Write),
            _ => None,
        }
    }
}

/// What a host may do to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Nothing.
    None,
    /// Read.
    Read,
    /// Read and write.
    All,
}

impl Rights {
    /// Whether `access` is within these rights.
    #[must_use]
    pub const fn allow(self, access: Access) -> bool {
        match self {
            Self::None => false,
            Self::Read => matches!(access, Access::Read),
            Self::All => true,
        }
    }
}

impl Reservations {
    /// What `host` may do now.
    #[must_use]
    pub fn rights(&self, host: HostId) -> Rights {
        let Some(reservation) = self.reservation() else {
            return if self.fence().is_some() { Rights::None } else { Rights::All };
        };
        let may_write = match (reservation.holder(), reservation.reservation_type()) {
            (Holder::Host(holder), kind) if kind.is_for_holder_alone() => holder == host,
            _ => self.key_of(host).is_some(),
        };
        if may_write {
            Rights::All
        } else if reservation.reservation_type().is_exclusive_access() {
            Rights::None
        } else {
            Rights::Read
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_nested() {
        for access in [Access::Read, Access::Write, Access::ReadAndWrite] {
            assert!(Rights::All.allow(access) && !Rights::None.allow(access));
            assert_eq!(Rights::Read.allow(access), access == Access::Read);
        }
    }

    #[test]
    fn unknown_commands_need_every_right() {
        let known = |opcode: &u8| ![0, 1, 2, 4, 5, 8, 9, 12, 13, 14, 17, 21].contains(opcode);
        for opcode in (0..=u8::MAX).filter(known) {
            assert_eq!(Access::of(IoOpcode(opcode)), Some(Access::ReadAndWrite), "{opcode:#x}");
        }
    }
}
