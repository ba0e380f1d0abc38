//! What can go wrong between this driver and a controller.

use std::fmt;
use std::io;
use std::time::Duration;

use super::namespace::NamespaceRefused;
use crate::hw::dma::DmaBuffer;
use crate::spec::command::AdminOpcode;
use crate::spec::status::Status;
use crate::units::{ByteCount, NamespaceId, QueueId};

/// Why a controller cannot be used, or an operation on it failed.
#[derive(Debug, thiserror::Error)]
pub enum NvmeError {
    /// All registers read as ones: there is no controller, or it was unplugged, or its link is
    /// down.
    #[error("the controller does not answer: unplugged, or its PCI link is down")]
    Gone,
    /// The controller reports a fatal error (CSTS.CFS).
    #[error("the controller reports a fatal error while {during}")]
    Fatal {
        /// What was going on.
        during: &'static str,
    },
    /// CSTS.RDY did not follow CC.EN in the time that the controller itself grants.
    #[error("the controller did not become {} within {limit:?}", if *.ready { "ready" } else { "disabled" })]
    ReadyTimeout {
        /// The value of RDY that was waited for.
        ready: bool,
        /// How long was waited.
        limit: Duration,
    },
    /// The controller lacks what this driver cannot do without.
    #[error("the controller is not supported: {what}")]
    Unsupported {
        /// What it lacks.
        what: &'static str,
    },
    /// An admin command failed.
    #[error("{command:?} failed: {status}")]
    Command {
        /// The command.
        command: AdminOpcode,
        /// The controller's answer.
        status: Status,
    },
    /// An admin command was not answered.
    #[error("{command:?} got no answer within {limit:?}")]
    NoAnswer {
        /// The command.
        command: AdminOpcode,
        /// How long was waited.
        limit: Duration,
    },
    /// The controller was reset before it answered an admin command.
    #[error("{command:?} was ended by a reset of the controller")]
    Interrupted {
        /// The command.
        command: AdminOpcode,
    },
    /// A namespace cannot be used.
    #[error("namespace {id}: {reason}")]
    Namespace {
        /// Which.
        id: NamespaceId,
        /// Why.
        reason: NamespaceRefused,
    },
    /// No queue is left for another queue pair.
    #[error("all {limit} I/O queue pairs that the controller grants are in use")]
    NoQueueLeft {
        /// How many there are.
        limit: u16,
    },
    /// The DMA arena is full.
    #[error("no DMA memory left for {what} ({bytes} bytes); raise reactor.dma_memory")]
    NoMemory {
        /// What for.
        what: &'static str,
        /// How much.
        bytes: ByteCount,
    },
    /// The transport could not do something.
    #[error("{operation} failed")]
    Transport {
        /// What was tried.
        operation: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The controller was reset too often, and was given up.
    #[error("the controller was reset {resets} times within {within:?}; giving it up")]
    TooManyResets {
        /// How often.
        resets: u32,
        /// In which time.
        within: Duration,
    },
    /// The system took the controller away: it was unplugged, or unbound from this process.
    #[error("the system wants the controller back: it is being unplugged, or was unbound")]
    ReleaseWanted,
    /// The controller did not finish its shutdown: what was not flushed may be lost.
    #[error("the controller did not finish its shutdown within {limit:?}")]
    ShutdownTimeout {
        /// How long was waited.
        limit: Duration,
    },
}

/// Why a controller was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetCause {
    /// It reported a fatal error, or a reset of its subsystem.
    Fatal,
    /// An admin command was not answered.
    AdminTimeout,
    /// A command of an I/O queue was not answered, although it was aborted.
    QueueTimeout(QueueId),
    /// It activated firmware for longer than it said that it would.
    FirmwareTimeout,
    /// Its registers read as ones.
    Gone,
    /// The bus reported an error of it.
    BusError,
    /// The owner asked for it.
    Requested,
}

impl fmt::Display for ResetCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fatal => f.write_str("it reported a fatal error"),
            Self::AdminTimeout => f.write_str("an admin command was not answered"),
            Self::QueueTimeout(id) => write!(f, "a command of queue {id} was not answered"),
            Self::FirmwareTimeout => f.write_str("it did not end activating its firmware in time"),
            Self::Gone => f.write_str("it stopped answering"),
            Self::BusError => f.write_str("the bus reported an error of it"),
            Self::Requested => f.write_str("it was asked for"),
        }
    }
}

/// Why a command in flight has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandFailure {
    /// The controller answered with an error. Nothing is known of what a failed write did.
    #[error("{0}")]
    Status(Status),
    /// The controller was reset before it answered. The command may have been executed or not.
    #[error("ended by a reset of the controller")]
    Reset,
    /// The controller is gone or was given up.
    #[error("the controller is gone")]
    Gone,
}

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RejectReason {
    /// As many commands are in flight as fit. Poll, then try again.
    #[error("the queue is full")]
    Full,
    /// A reset is under way. Poll, then try again.
    #[error("the controller is being reset")]
    Resetting,
    /// The controller activates firmware and takes no commands. Poll, then try again.
    #[error("the controller is activating firmware")]
    Paused,
    /// The controller is gone or was given up.
    #[error("the controller is gone")]
    Gone,
    /// The length is not a whole number of blocks, zero, or above the namespace's limits.
    #[error("a command of this length is not possible")]
    BadLength,
    /// The buffer does not start at a multiple of four.
    #[error("the buffer's address is not a multiple of four")]
    Misaligned,
}

/// A command that was not taken, and its buffer.
#[derive(Debug)]
pub struct Rejected {
    /// Why.
    pub reason: RejectReason,
    /// The buffer that was moved in.
    pub buffer: Option<DmaBuffer>,
}
