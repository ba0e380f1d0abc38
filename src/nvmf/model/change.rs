//! What subscribers of the model are told.

use crate::units::NamespaceId;

/// What changed in the model. The model already is what it says when it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A namespace came, went, was resized, or is seen by other hosts than before.
    Namespace {
        /// The subsystem's NQN.
        subsystem: String,
        /// NSID.
        namespace: NamespaceId,
    },
    /// The state of an ANA group on some listener, or the group of a namespace.
    Ana {
        /// The subsystem's NQN.
        subsystem: String,
    },
    /// Which hosts may connect, and through which listeners; or the subsystem is gone. Whoever is
    /// connected and would not be admitted any more (see [`super::Subsystem::admit`]) must go.
    Hosts {
        /// The subsystem's NQN.
        subsystem: String,
    },
    /// What discovery tells.
    Discovery,
}
