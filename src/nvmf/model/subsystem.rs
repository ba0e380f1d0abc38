//! A subsystem: who may connect to it, through which listeners, and which volumes they see there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Error, HOSTS_PER_SUBSYSTEM, LISTENERS_PER_SUBSYSTEM, NAMESPACES_PER_SUBSYSTEM};
use crate::spec::fabrics::MAX_CONTROLLER_ID;
use crate::spec::name::{check_model, check_nqn, check_serial, check_subsystem_nqn};
use crate::units::NamespaceId;
use crate::volume::Key;

/// The state of an ANA group, with its number on the wire (Base 5.1.12.1.13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnaState {
    /// The best path.
    #[default]
    Optimized = 1,
    /// A path that works, and that others are better than.
    NonOptimized = 2,
    /// A path that does not work now.
    Inaccessible = 3,
    /// A path that will never work again.
    PersistentLoss = 4,
    /// Between two states.
    Change = 0xf,
}

impl AnaState {
    /// Its number on the wire.
    #[must_use]
    pub const fn wire(self) -> u8 {
        self as u8
    }

    /// Whether I/O is done through such a path.
    #[must_use]
    pub const fn is_accessible(self) -> bool {
        matches!(self, Self::Optimized | Self::NonOptimized)
    }
}

/// An address at which a subsystem can be reached, and the states of its ANA groups there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Address and port. An address of all zeros stands for every address of the machine.
    pub address: SocketAddr,
    /// The state of each group that is not in `groups`.
    pub state: AnaState,
    /// Groups whose state was set one by one.
    #[serde(default)]
    pub groups: BTreeMap<u32, AnaState>,
}

impl Listener {
    /// The state of a group.
    #[must_use]
    pub fn ana_state(&self, group: u32) -> AnaState {
        self.groups.get(&group).copied().unwrap_or(self.state)
    }
}

/// A volume as a namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// NSID; never 0.
    pub id: NamespaceId,
    /// The name of the volume's pool.
    pub pool: String,
    /// The UUID of the volume.
    pub volume: Uuid,
    /// How the volume is reached; `None` as long as it is not there, and then no host sees the
    /// namespace.
    #[serde(skip)]
    pub key: Option<Key>,
    /// NGUID; the volume's UUID unless somebody chose another.
    pub nguid: Uuid,
    /// EUI64; zeros for none.
    pub eui64: [u8; 8],
    /// UUID; the volume's unless somebody chose another.
    pub uuid: Uuid,
    /// ANAGRPID, from 1 to the subsystem's `max_namespaces`.
    pub ana_group: u32,
    /// Hosts that see it; `None` for all that may connect.
    pub visible_to: Option<BTreeSet<String>>,
}

impl PartialEq for Namespace {
    /// Compares what it is, not whether its volume is there.
    fn eq(&self, other: &Self) -> bool {
        let this = (self.id, &self.pool, self.volume, self.nguid, self.eui64, self.uuid);
        let that = (other.id, &other.pool, other.volume, other.nguid, other.eui64, other.uuid);
        this == that && self.ana_group == other.ana_group && self.visible_to == other.visible_to
    }
}

impl Namespace {
    /// Whether a host that may connect sees it.
    #[must_use]
    pub fn is_visible(&self, host: &str) -> bool {
        self.key.is_some() && self.visible_to.as_ref().is_none_or(|hosts| hosts.contains(host))
    }
}

/// Why a host may not connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not in the list of hosts.
    #[error("the host is not allowed to connect to this subsystem")]
    Host,
    /// The subsystem is not there at this address.
    #[error("the subsystem has no listener at this address")]
    Listener,
}

/// A subsystem with its namespaces. A snapshot: changes make a new one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subsystem {
    /// NQN.
    pub nqn: String,
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// The largest NSID that a namespace can have (NN), and the largest ANAGRPID.
    pub max_namespaces: u32,
    /// The smallest CNTLID.
    pub min_cntlid: u16,
    /// The largest CNTLID.
    pub max_cntlid: u16,
    /// Whether hosts are told of ANA groups. If not, every path is optimized.
    pub ana_reporting: bool,
    /// Whether every host may connect, in the list or not.
    pub allow_any_host: bool,
    /// Hosts that may connect.
    pub hosts: BTreeSet<String>,
    /// Where it can be reached.
    pub listeners: Vec<Listener>,
    /// Namespaces by NSID, also those whose volume is not there.
    pub namespaces: BTreeMap<NamespaceId, Namespace>,
    /// Counts changes of ANA states and groups.
    #[serde(skip)]
    pub ana_changes: u64,
}

impl Subsystem {
    /// Whether a host may connect.
    #[must_use]
    pub fn allows(&self, host: &str) -> bool {
        self.allow_any_host || self.hosts.contains(host)
    }

    /// Whether hosts may connect through the local end of a connection.
    #[must_use]
    pub fn listens_on(&self, local: SocketAddr) -> bool {
        self.listener(local).is_some()
    }

    /// Whether a host may connect through `local`, the local end of its connection.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, host: &str, local: SocketAddr) -> Result<(), Refusal> {
        if !self.allows(host) {
            return Err(Refusal::Host);
        }
        if !self.listens_on(local) {
            return Err(Refusal::Listener);
        }
        Ok(())
    }

    /// The listener of a connection by its local end: one for this very address, else one for
    /// every address.
    #[must_use]
    pub fn listener(&self, local: SocketAddr) -> Option<&Listener> {
        let local = canonical(local);
        let exact = self.listeners.iter().find(|listener| canonical(listener.address) == local);
        exact.or_else(|| self.listeners.iter().find(|listener| covers(listener.address, local)))
    }

    /// A namespace that a host sees.
    #[must_use]
    pub fn namespace(&self, host: &str, id: NamespaceId) -> Option<&Namespace> {
        self.namespaces.get(&id).filter(|namespace| namespace.is_visible(host))
    }

    /// The namespaces that a host sees, in the order of their identifiers.
    pub fn visible<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Namespace> {
        self.namespaces.values().filter(move |namespace| namespace.is_visible(host))
    }

    /// The state of an ANA group, seen through the local end of a connection. Where the listener
    /// is gone, nothing can be reached.
    #[must_use]
    pub fn ana_state(&self, local: SocketAddr, group: u32) -> AnaState {
        if !self.ana_reporting {
            return AnaState::Optimized;
        }
        self.listener(local).map_or(AnaState::Inaccessible, |listener| listener.ana_state(group))
    }

    /// The ANA groups that a host sees and the namespaces it sees in each, in order.
    #[must_use]
    pub fn ana_groups(&self, host: &str) -> BTreeMap<u32, Vec<NamespaceId>> {
        let mut groups: BTreeMap<u32, Vec<NamespaceId>> = BTreeMap::new();
        for namespace in self.visible(host) {
            groups.entry(namespace.ana_group).or_default().push(namespace.id);
        }
        groups
    }

    /// The smallest NSID that no namespace has.
    pub(super) fn free_id(&self) -> Option<NamespaceId> {
        (1..=self.max_namespaces).map(NamespaceId).find(|id| !self.namespaces.contains_key(id))
    }

    /// Holds every field against its rule: what comes from a file is not trusted.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(super) fn check(&self) -> Result<(), Error> {
        check_subsystem_nqn(&self.nqn)?;
        check_serial(&self.serial)?;
        check_model(&self.model)?;
        if !(1..=NAMESPACES_PER_SUBSYSTEM).contains(&self.max_namespaces) {
            return Err(Error::MaxNamespaces);
        }
        let controllers = 1..=MAX_CONTROLLER_ID;
        let fits = controllers.contains(&self.min_cntlid) && controllers.contains(&self.max_cntlid);
        if !fits || self.min_cntlid > self.max_cntlid {
            return Err(Error::ControllerIds);
        }
        if self.hosts.len() > HOSTS_PER_SUBSYSTEM {
            return Err(Error::TooManyHosts);
        }
        for host in &self.hosts {
            check_nqn(host)?;
        }
        if self.listeners.len() > LISTENERS_PER_SUBSYSTEM {
            return Err(Error::TooManyListeners);
        }
        for (index, listener) in self.listeners.iter().enumerate() {
            let address = listener.address;
            check_address(address)?;
            if self.listeners[..index].iter().any(|other| other.address == address) {
                return Err(Error::ListenerExists { address });
            }
            for group in listener.groups.keys() {
                self.check_group(*group)?;
            }
        }
        for (id, namespace) in &self.namespaces {
            self.check_namespace(*id, namespace)?;
        }
        Ok(())
    }

    fn check_namespace(&self, id: NamespaceId, namespace: &Namespace) -> Result<(), Error> {
        if id != namespace.id || !(1..=self.max_namespaces).contains(&id.get()) {
            return Err(Error::NamespaceId { max: self.max_namespaces });
        }
        self.check_group(namespace.ana_group)?;
        let hosts = namespace.visible_to.iter().flatten();
        if namespace.visible_to.as_ref().is_some_and(|hosts| hosts.len() > HOSTS_PER_SUBSYSTEM) {
            return Err(Error::TooManyHosts);
        }
        for host in hosts {
            check_nqn(host)?;
        }
        let same = |other: &&Namespace| other.id != id && other.uuid == namespace.uuid;
        if let Some(other) = self.namespaces.values().find(same) {
            return Err(Error::NotUnique { id: other.id });
        }
        Ok(())
    }

    /// Checks the number of an ANA group.
    pub(super) fn check_group(&self, group: u32) -> Result<(), Error> {
        if (1..=self.max_namespaces).contains(&group) {
            Ok(())
        } else {
            Err(Error::AnaGroup { max: self.max_namespaces })
        }
    }
}

/// Checks the address of a listener.
pub(super) fn check_address(address: SocketAddr) -> Result<(), Error> {
    if address.port() == 0 { Err(Error::Port) } else { Ok(()) }
}

/// The address without the dress that IPv6 gives to IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether a listener is for every address, `local` among them.
pub(super) fn covers(listener: SocketAddr, local: SocketAddr) -> bool {
    let same_port = listener.port() == local.port();
    match listener.ip() {
        IpAddr::V4(ip) => ip.is_unspecified() && local.is_ipv4() && same_port,
        // Linux takes IPv4 on such a listener too.
        IpAddr::V6(ip) => ip.is_unspecified() && same_port,
    }
}
