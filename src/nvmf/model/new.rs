//! What is to be created: a subsystem, and a namespace.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::{DEFAULT_MAX_NAMESPACES, Subsystem};
use crate::spec::fabrics::MAX_CONTROLLER_ID;
use crate::spec::name::{DEFAULT_MODEL, DEFAULT_SERIAL};
use crate::units::NamespaceId;
use crate::volume::{Hold, Key};

/// A subsystem to create.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSubsystem {
    /// NQN.
    pub nqn: String,
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// The largest NSID.
    pub max_namespaces: u32,
    /// The smallest CNTLID.
    pub min_cntlid: u16,
    /// The largest CNTLID.
    pub max_cntlid: u16,
    /// Whether hosts are told of ANA groups.
    pub ana_reporting: bool,
    /// Whether every host may connect.
    pub allow_any_host: bool,
}

impl NewSubsystem {
    /// A subsystem with this NQN, to which no host may connect, and the defaults for the rest.
    #[must_use]
    pub fn named(nqn: &str) -> Self {
        Self {
            nqn: nqn.to_owned(),
            serial: DEFAULT_SERIAL.to_owned(),
            model: DEFAULT_MODEL.to_owned(),
            max_namespaces: DEFAULT_MAX_NAMESPACES,
            min_cntlid: 1,
            max_cntlid: MAX_CONTROLLER_ID,
            ana_reporting: false,
            allow_any_host: false,
        }
    }

    /// The subsystem, empty.
    #[must_use]
    pub fn build(self) -> Subsystem {
        Subsystem {
            nqn: self.nqn,
            serial: self.serial,
            model: self.model,
            max_namespaces: self.max_namespaces,
            min_cntlid: self.min_cntlid,
            max_cntlid: self.max_cntlid,
            ana_reporting: self.ana_reporting,
            allow_any_host: self.allow_any_host,
            hosts: BTreeSet::new(),
            listeners: Vec::new(),
            namespaces: BTreeMap::new(),
            ana_changes: 0,
        }
    }
}

/// A namespace to add.
#[derive(Debug)]
pub struct NewNamespace {
    /// NSID; `None` for the smallest that is free.
    pub id: Option<NamespaceId>,
    /// The name of the volume's pool.
    pub pool: String,
    /// The volume's UUID.
    pub volume: Uuid,
    /// How it is reached; `None` if it is not there.
    pub key: Option<Key>,
    /// What keeps it from being deleted.
    pub hold: Option<Hold>,
    /// NGUID; `None` for the volume's UUID.
    pub nguid: Option<Uuid>,
    /// EUI64; zeros for none.
    pub eui64: [u8; 8],
    /// UUID; `None` for the volume's.
    pub uuid: Option<Uuid>,
    /// ANAGRPID; `None` for the number of the NSID.
    pub ana_group: Option<u32>,
    /// Whether every host that may connect sees it; else hosts are named one by one.
    pub visible_to_all: bool,
}

impl NewNamespace {
    /// A volume as a namespace, with the defaults for the rest.
    #[must_use]
    pub fn of(pool: &str, volume: Uuid, key: Option<Key>) -> Self {
        Self {
            id: None,
            pool: pool.to_owned(),
            volume,
            key,
            hold: None,
            nguid: None,
            eui64: [0; 8],
            uuid: None,
            ana_group: None,
            visible_to_all: true,
        }
    }
}
