//! Why the model was not changed.

use std::net::SocketAddr;

use super::{
    HOSTS_PER_SUBSYSTEM, LISTENERS_PER_SUBSYSTEM, NAMESPACES_PER_SUBSYSTEM, RECORDS, REFERRALS,
    SUBSYSTEMS,
};
use crate::spec::fabrics::MAX_CONTROLLER_ID;
use crate::spec::name::NameError;
use crate::units::NamespaceId;

/// Why the model was not changed. It then is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A name breaks a rule.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is no such subsystem.
    #[error("there is no subsystem {nqn}")]
    NoSubsystem {
        /// What was asked for.
        nqn: String,
    },
    /// There is a subsystem of that name.
    #[error("there already is a subsystem {nqn}")]
    SubsystemExists {
        /// Its name.
        nqn: String,
    },
    /// Too many subsystems.
    #[error("there are at most {SUBSYSTEMS} subsystems")]
    TooManySubsystems,
    /// There is no such listener.
    #[error("the subsystem has no listener at {address}")]
    NoListener {
        /// What was asked for.
        address: SocketAddr,
    },
    /// There is a listener at that address.
    #[error("the subsystem already has a listener at {address}")]
    ListenerExists {
        /// Its address.
        address: SocketAddr,
    },
    /// Too many listeners.
    #[error(
        "a subsystem has at most {LISTENERS_PER_SUBSYSTEM} listeners, all together at most {RECORDS}"
    )]
    TooManyListeners,
    /// Port 0.
    #[error("a port is from 1 to 65535")]
    Port,
    /// There is no such namespace.
    #[error("the subsystem has no namespace {id}")]
    NoNamespace {
        /// What was asked for.
        id: NamespaceId,
    },
    /// There is a namespace with that NSID.
    #[error("the subsystem already has a namespace {id}")]
    NamespaceExists {
        /// Its NSID.
        id: NamespaceId,
    },
    /// An NSID out of range.
    #[error("an NSID of this subsystem is from 1 to {max}")]
    NamespaceId {
        /// The largest.
        max: u32,
    },
    /// Every NSID is taken.
    #[error("the subsystem has all the namespaces that it can have: {max}")]
    NoFreeNamespace {
        /// How many.
        max: u32,
    },
    /// Another namespace of the subsystem has the same UUID.
    #[error("namespace {id} of the subsystem already has this UUID")]
    NotUnique {
        /// Its NSID.
        id: NamespaceId,
    },
    /// The volume is a namespace already.
    #[error("the volume already is namespace {id} of {nqn}")]
    VolumeExported {
        /// The subsystem that has it.
        nqn: String,
        /// As what.
        id: NamespaceId,
    },
    /// The volume's namespaces are visible to all hosts.
    #[error("namespace {id} is visible to every host; only one added as not visible has a list")]
    VisibleToAll {
        /// Its NSID.
        id: NamespaceId,
    },
    /// Not an ANA group.
    #[error("an ANA group of this subsystem is from 1 to {max}")]
    AnaGroup {
        /// The largest.
        max: u32,
    },
    /// ANA states of a subsystem that does not tell hosts of them.
    #[error("the subsystem was made without ANA reporting, so its paths have no states")]
    NoAna,
    /// There is no such host in the list.
    #[error("host {nqn} is not in the list")]
    NoHost {
        /// Who was asked for.
        nqn: String,
    },
    /// Too many hosts.
    #[error("a list has at most {HOSTS_PER_SUBSYSTEM} hosts")]
    TooManyHosts,
    /// A number of namespaces that is not possible.
    #[error("max_namespaces is from 1 to {NAMESPACES_PER_SUBSYSTEM}")]
    MaxNamespaces,
    /// A range of controller identifiers that is not possible.
    #[error("min_cntlid and max_cntlid are from 1 to {MAX_CONTROLLER_ID}, the first not larger")]
    ControllerIds,
    /// There is no such referral.
    #[error("there is no referral to {address}")]
    NoReferral {
        /// What was asked for.
        address: SocketAddr,
    },
    /// There is that referral.
    #[error("there already is a referral to {address}")]
    ReferralExists {
        /// Its address.
        address: SocketAddr,
    },
    /// Too many referrals.
    #[error("there are at most {REFERRALS} referrals")]
    TooManyReferrals,
    /// The change could not be made durable.
    #[error("the change was not made, for it could not be kept: {reason}")]
    NotKept {
        /// Why.
        reason: String,
    },
}
