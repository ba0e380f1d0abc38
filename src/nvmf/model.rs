//! What is exported to whom: subsystems, their namespaces, hosts and listeners, and referrals.
//!
//! One model is shared by all reactors. It holds snapshots: whoever looks up a subsystem gets it as
//! it is at that moment, and it does not change under their hands. [`Model::generation`] counts
//! changes, so that a snapshot can be kept until something changed. There are no sockets here and
//! no volumes: a namespace names its volume by UUID and key.
//!
//! A change has these steps:
//! 1. It is made to a copy, and checked. A change that breaks a rule ends here.
//! 2. The copy is kept, if there is a [`Keeper`]: written to the state file, durably. A change
//!    that cannot be kept ends here, so that no restart takes back what was answered.
//! 3. The copy becomes the model, and the generation grows.
//! 4. Subscribers are told.
//!
//! Changes are made one after the other. Look-ups never wait for them.

mod change;
mod discovery;
mod error;
mod new;
pub mod state_file;
mod subsystem;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use change::Change;
pub use discovery::Referral;
pub use error::Error;
pub use new::{NewNamespace, NewSubsystem};
pub use subsystem::{AnaState, Listener, Namespace, Refusal, Subsystem};

use crate::spec::name::check_nqn;
use crate::units::NamespaceId;
use crate::volume::{Hold, Key};

/// The most subsystems.
pub const SUBSYSTEMS: usize = 1024;
/// The most namespaces of a subsystem.
pub const NAMESPACES_PER_SUBSYSTEM: u32 = 1024;
/// The most hosts in one list.
pub const HOSTS_PER_SUBSYSTEM: usize = 1024;
/// The most listeners of a subsystem.
pub const LISTENERS_PER_SUBSYSTEM: usize = 64;
/// The most listeners of all subsystems together: each is a record of the Discovery log page.
pub const RECORDS: usize = 4096;
/// The most referrals.
pub const REFERRALS: usize = 64;
/// Namespaces of a subsystem that does not say otherwise; SPDK's.
pub const DEFAULT_MAX_NAMESPACES: u32 = 32;

/// Everything that is exported, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exports {
    /// Subsystems by NQN.
    #[serde(with = "by_name")]
    pub subsystems: BTreeMap<String, Arc<Subsystem>>,
    /// Other discovery services.
    pub referrals: Vec<Referral>,
}

/// Subsystems as they are kept: serde knows nothing of `Arc`.
mod by_name {
    use super::{Arc, BTreeMap, Deserialize, Subsystem};

    pub(super) fn serialize<S: serde::Serializer>(
        subsystems: &BTreeMap<String, Arc<Subsystem>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(subsystems.iter().map(|(nqn, subsystem)| (nqn, &**subsystem)))
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, Arc<Subsystem>>, D::Error> {
        let subsystems = BTreeMap::<String, Subsystem>::deserialize(deserializer)?;
        Ok(subsystems.into_iter().map(|(nqn, subsystem)| (nqn, Arc::new(subsystem))).collect())
    }
}

/// Keeps what is exported over a restart.
pub trait Keeper: Send + Sync {
    /// Keeps `exports`, durably. Blocks.
    ///
    /// # Errors
    /// Why it could not, for the operator.
    fn keep(&self, exports: &Exports) -> Result<(), String>;
}

/// Told of every change, on the thread that made it; may look at the model, but not change it.
type Subscriber = Arc<dyn Fn(&Change) + Send + Sync>;

/// What is exported, shared by all reactors.
pub struct Model {
    exports: RwLock<Arc<Exports>>,
    /// Held by whoever changes something.
    changing: Mutex<()>,
    generation: AtomicU64,
    /// Of the Discovery log page.
    discovery: AtomicU64,
    subscribers: RwLock<Vec<Subscriber>>,
    /// What keeps volumes from being deleted while they are namespaces. Not in the snapshots: those
    /// may live on in a connection that has not looked for a while.
    holds: Mutex<BTreeMap<Uuid, Hold>>,
    keeper: Option<Box<dyn Keeper>>,
}

impl Model {
    /// A model of nothing yet. `generation` is where the counter of the Discovery log page
    /// begins: a number that no earlier run reached, such as the time in microseconds, so that a
    /// host that remembers a page notices that it is another.
    #[must_use]
    pub fn new(generation: u64, keeper: Option<Box<dyn Keeper>>) -> Self {
        Self {
            exports: RwLock::default(),
            changing: Mutex::default(),
            generation: AtomicU64::new(1),
            discovery: AtomicU64::new(generation),
            subscribers: RwLock::default(),
            holds: Mutex::default(),
            keeper,
        }
    }

    /// Counts changes: while it stands still, snapshots stay what they are. Take it before the
    /// snapshot; then the snapshot is never older than it.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Everything, as it is now.
    #[must_use]
    pub fn exports(&self) -> Arc<Exports> {
        // No statement that holds the lock can panic half-way; so for all locks here.
        Arc::clone(&self.exports.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The subsystem with a name, as it is now.
    #[must_use]
    pub fn subsystem(&self, nqn: &str) -> Option<Arc<Subsystem>> {
        self.exports().subsystems.get(nqn).cloned()
    }

    /// The subsystem in which a volume is a namespace, and which.
    #[must_use]
    pub fn namespace_of(&self, volume: Key) -> Option<(Arc<Subsystem>, NamespaceId)> {
        let exports = self.exports();
        exports.subsystems.values().find_map(|subsystem| {
            let mut namespaces = subsystem.namespaces.values();
            let found = namespaces.find(|namespace| namespace.key == Some(volume))?;
            Some((Arc::clone(subsystem), found.id))
        })
    }

    /// The addresses of all listeners.
    #[must_use]
    pub fn listeners(&self) -> BTreeSet<SocketAddr> {
        let exports = self.exports();
        let listeners = exports.subsystems.values().flat_map(|subsystem| &subsystem.listeners);
        listeners.map(|listener| listener.address).collect()
    }

    /// The Discovery log page for a host that came through `local`, of one moment as a whole. Its
    /// generation differs from that of every page that may differ.
    #[must_use]
    pub fn discovery_log(&self, host: &str, local: SocketAddr) -> Vec<u8> {
        // The counter grows after the change is there: a page that is too new for its number is
        // read once more, one that is too old for it would not be.
        let generation = self.discovery.load(Ordering::Acquire);
        discovery::log(&self.exports(), generation, host, local)
    }

    /// Has `subscriber` told of every change from now on.
    pub fn subscribe(&self, subscriber: impl Fn(&Change) + Send + Sync + 'static) {
        let mut subscribers = self.subscribers.write().unwrap_or_else(PoisonError::into_inner);
        subscribers.push(Arc::new(subscriber));
    }

    /// A volume has another size now: hosts that see it are told. Never blocks on a file.
    pub fn volume_changed(&self, key: Key) {
        if let Some((subsystem, namespace)) = self.namespace_of(key) {
            let subsystem = subsystem.nqn.clone();
            self.tell(&[Change::Namespace { subsystem, namespace }]);
        }
    }

    /// Replaces everything by `exports`, without keeping it: it is what was kept, or declared.
    ///
    /// # Errors
    /// The first rule that it breaks; then nothing is changed.
    pub fn load(&self, exports: Exports) -> Result<(), Error> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        exports.check()?;
        let names: BTreeSet<String> =
            self.exports().subsystems.keys().chain(exports.subsystems.keys()).cloned().collect();
        self.replace(exports);
        let mut changes: Vec<Change> =
            names.into_iter().map(|subsystem| Change::Hosts { subsystem }).collect();
        changes.push(Change::Discovery);
        self.tell(&changes);
        Ok(())
    }

    /// Creates a subsystem.
    ///
    /// # Errors
    /// If its fields break a rule, or it is there.
    pub fn create_subsystem(&self, new: NewSubsystem) -> Result<(), Error> {
        self.add_subsystem(new.build())
    }

    /// Adds a whole subsystem.
    ///
    /// # Errors
    /// If its fields break a rule, or it is there.
    pub fn add_subsystem(&self, subsystem: Subsystem) -> Result<(), Error> {
        let nqn = subsystem.nqn.clone();
        self.change(|exports| {
            subsystem.check()?;
            if exports.subsystems.contains_key(&nqn) {
                return Err(Error::SubsystemExists { nqn });
            }
            exports.subsystems.insert(nqn, Arc::new(subsystem));
            Ok(vec![Change::Discovery])
        })
    }

    /// Deletes a subsystem; whoever is connected to it must go.
    ///
    /// # Errors
    /// [`Error::NoSubsystem`].
    pub fn delete_subsystem(&self, nqn: &str) -> Result<(), Error> {
        let subsystem = nqn.to_owned();
        self.change(|exports| match exports.subsystems.remove(&subsystem) {
            Some(_) => Ok(vec![Change::Hosts { subsystem }, Change::Discovery]),
            None => Err(unknown(nqn)),
        })
    }

    /// Makes a subsystem reachable at an address.
    ///
    /// # Errors
    /// If it is already, the address is not possible, or there are too many listeners.
    pub fn add_listener(&self, nqn: &str, listener: Listener) -> Result<(), Error> {
        self.edit(nqn, |subsystem| {
            subsystem.listeners.push(listener);
            Ok(vec![Change::Discovery])
        })
    }

    /// Makes a subsystem unreachable at an address; whoever is connected through it must go.
    ///
    /// # Errors
    /// [`Error::NoSubsystem`], [`Error::NoListener`].
    pub fn remove_listener(&self, nqn: &str, address: SocketAddr) -> Result<(), Error> {
        self.edit(nqn, |subsystem| {
            let before = subsystem.listeners.len();
            subsystem.listeners.retain(|listener| listener.address != address);
            if subsystem.listeners.len() == before {
                return Err(Error::NoListener { address });
            }
            Ok(vec![Change::Hosts { subsystem: subsystem.nqn.clone() }, Change::Discovery])
        })
    }

    /// Sets the state of an ANA group on a listener, or of all of them.
    ///
    /// # Errors
    /// [`Error::NoSubsystem`], [`Error::NoListener`], [`Error::NoAna`], [`Error::AnaGroup`].
    pub fn set_ana_state(
        &self,
        nqn: &str,
        address: SocketAddr,
        group: Option<u32>,
        state: AnaState,
    ) -> Result<(), Error> {
        self.edit(nqn, |subsystem| {
            if !subsystem.ana_reporting {
                return Err(Error::NoAna);
            }
            let mut listeners = subsystem.listeners.iter_mut();
            let listener = listeners.find(|listener| listener.address == address);
            let listener = listener.ok_or(Error::NoListener { address })?;
            match group {
                Some(group) => {
                    listener.groups.insert(group, state);
                }
                None => {
                    listener.state = state;
                    listener.groups.clear();
                }
            }
            subsystem.ana_changes += 1;
            Ok(vec![Change::Ana { subsystem: subsystem.nqn.clone() }])
        })
    }

    /// Adds a volume as a namespace; its NSID.
    ///
    /// # Errors
    /// If a number is taken or out of range, or the volume is a namespace already.
    pub fn add_namespace(&self, nqn: &str, new: NewNamespace) -> Result<NamespaceId, Error> {
        let mut added = NamespaceId(0);
        self.edit(nqn, |subsystem| {
            let max = subsystem.max_namespaces;
            let id = match new.id {
                Some(id) => id,
                None => subsystem.free_id().ok_or(Error::NoFreeNamespace { max })?,
            };
            if subsystem.namespaces.contains_key(&id) {
                return Err(Error::NamespaceExists { id });
            }
            let namespace = Namespace {
                id,
                pool: new.pool,
                volume: new.volume,
                key: new.key,
                nguid: new.nguid.or(new.uuid).unwrap_or(new.volume),
                eui64: new.eui64,
                uuid: new.uuid.unwrap_or(new.volume),
                ana_group: new.ana_group.unwrap_or(id.get()),
                visible_to: (!new.visible_to_all).then(BTreeSet::new),
            };
            subsystem.namespaces.insert(id, namespace);
            added = id;
            let subsystem = subsystem.nqn.clone();
            Ok(vec![Change::Namespace { subsystem, namespace: id }])
        })?;
        if let Some(hold) = new.hold {
            self.hold(new.volume, hold);
        }
        Ok(added)
    }

    /// Keeps the volume of a namespace from being deleted for as long as it is one.
    pub fn hold(&self, volume: Uuid, hold: Hold) {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner).insert(volume, hold);
    }

    /// Takes a namespace away.
    ///
    /// # Errors
    /// [`Error::NoSubsystem`], [`Error::NoNamespace`].
    pub fn remove_namespace(&self, nqn: &str, id: NamespaceId) -> Result<(), Error> {
        self.edit(nqn, |subsystem| {
            subsystem.namespaces.remove(&id).ok_or(Error::NoNamespace { id })?;
            Ok(vec![Change::Namespace { subsystem: subsystem.nqn.clone(), namespace: id }])
        })
    }

    /// A pool has another name: its namespaces are found by that one after a restart.
    ///
    /// # Errors
    /// [`Error::NotKept`].
    pub fn rename_pool(&self, from: &str, to: &str) -> Result<(), Error> {
        let of_pool = |subsystem: &Subsystem| {
            subsystem.namespaces.values().any(|namespace| namespace.pool == from)
        };
        if !self.exports().subsystems.values().any(|subsystem| of_pool(subsystem)) {
            return Ok(());
        }
        self.change(|exports| {
            for subsystem in exports.subsystems.values_mut().filter(|known| of_pool(known)) {
                let namespaces = Arc::make_mut(subsystem).namespaces.values_mut();
                for namespace in namespaces.filter(|namespace| namespace.pool == from) {
                    to.clone_into(&mut namespace.pool);
                }
            }
            // Hosts do not see a pool's name.
            Ok(Vec::new())
        })
    }

    /// Moves a namespace to another ANA group.
    ///
    /// # Errors
    /// [`Error::NoSubsystem`], [`Error::NoNamespace`], [`Error::NoAna`], [`Error::AnaGroup`].
    pub fn set_ana_group(&self, nqn: &str, id: NamespaceId, group: u32) -> Result<(), Error> {
        self.edit(nqn, |subsystem| {
            if !subsystem.ana_reporting {
                return Err(Error::NoAna);
            }
            let namespace = subsystem.namespaces.get_mut(&id).ok_or(Error::NoNamespace { id })?;
            namespace.ana_group = group;
            subsystem.ana_changes += 1;
            let subsystem = subsystem.nqn.clone();
            Ok(vec![
                Change::Namespace { subsystem: subsystem.clone(), namespace: id },
                Change::Ana { subsystem },
            ])
        })
    }

    /// Shows a namespace to a host, or hides it again. Only a namespace that was added as not
    /// visible to all has such a list.
    ///
    /// # Errors
    /// [`Error::NoSubsystem`], [`Error::NoNamespace`], [`Error::VisibleToAll`],
    /// [`Error::NoHost`] when it is to be hidden from a host that is not in the list.
    pub fn set_visible(
        &self,
        nqn: &str,
        id: NamespaceId,
        host: &str,
        visible: bool,
    ) -> Result<(), Error> {
        check_nqn(host)?;
        self.edit(nqn, |subsystem| {
            let namespace = subsystem.namespaces.get_mut(&id).ok_or(Error::NoNamespace { id })?;
            let hosts = namespace.visible_to.as_mut().ok_or(Error::VisibleToAll { id })?;
            if visible {
                hosts.insert(host.to_owned());
            } else if !hosts.remove(host) {
                return Err(Error::NoHost { nqn: host.to_owned() });
            }
            Ok(vec![Change::Namespace { subsystem: subsystem.nqn.clone(), namespace: id }])
        })
    }

    /// Lets a host connect. It is no error if it may already.
    ///
    /// # Errors
    /// [`Error::NoSubsystem`], [`Error::Name`], [`Error::TooManyHosts`].
    pub fn add_host(&self, nqn: &str, host: &str) -> Result<(), Error> {
        check_nqn(host)?;
        self.edit(nqn, |subsystem| {
            subsystem.hosts.insert(host.to_owned());
            Ok(vec![Change::Discovery])
        })
    }

    /// Lets a host no longer connect; if it is connected, it must go.
    ///
    /// # Errors
    /// [`Error::NoSubsystem`], [`Error::NoHost`].
    pub fn remove_host(&self, nqn: &str, host: &str) -> Result<(), Error> {
        self.edit(nqn, |subsystem| {
            if !subsystem.hosts.remove(host) {
                return Err(Error::NoHost { nqn: host.to_owned() });
            }
            // Namespaces do not remember a host that cannot see them.
            for namespace in subsystem.namespaces.values_mut() {
                if let Some(hosts) = &mut namespace.visible_to {
                    hosts.remove(host);
                }
            }
            Ok(vec![Change::Hosts { subsystem: subsystem.nqn.clone() }, Change::Discovery])
        })
    }

    /// Lets every host connect, or only those of the list.
    ///
    /// # Errors
    /// [`Error::NoSubsystem`].
    pub fn set_allow_any_host(&self, nqn: &str, allow: bool) -> Result<(), Error> {
        self.edit(nqn, |subsystem| {
            subsystem.allow_any_host = allow;
            Ok(vec![Change::Hosts { subsystem: subsystem.nqn.clone() }, Change::Discovery])
        })
    }

    /// Tells hosts of another discovery service.
    ///
    /// # Errors
    /// [`Error::ReferralExists`], [`Error::TooManyReferrals`], [`Error::Name`], [`Error::Port`].
    pub fn add_referral(&self, referral: Referral) -> Result<(), Error> {
        self.change(|exports| {
            if exports.referrals.contains(&referral) {
                return Err(Error::ReferralExists { address: referral.address });
            }
            exports.referrals.push(referral);
            Ok(vec![Change::Discovery])
        })
    }

    /// Tells hosts no longer of it.
    ///
    /// # Errors
    /// [`Error::NoReferral`].
    pub fn remove_referral(&self, referral: &Referral) -> Result<(), Error> {
        self.change(|exports| {
            let before = exports.referrals.len();
            exports.referrals.retain(|known| known != referral);
            if exports.referrals.len() == before {
                return Err(Error::NoReferral { address: referral.address });
            }
            Ok(vec![Change::Discovery])
        })
    }

    /// Changes one subsystem.
    fn edit(
        &self,
        nqn: &str,
        edit: impl FnOnce(&mut Subsystem) -> Result<Vec<Change>, Error>,
    ) -> Result<(), Error> {
        self.change(|exports| {
            let subsystem = exports.subsystems.get_mut(nqn).ok_or_else(|| unknown(nqn))?;
            let changes = edit(Arc::make_mut(subsystem))?;
            subsystem.check()?;
            Ok(changes)
        })
    }

    /// The four steps of a change.
    fn change(
        &self,
        change: impl FnOnce(&mut Exports) -> Result<Vec<Change>, Error>,
    ) -> Result<(), Error> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // 1.
        let mut copy = (*self.exports()).clone();
        let changes = change(&mut copy)?;
        copy.check_together()?;
        // 2.
        if let Some(keeper) = &self.keeper {
            keeper.keep(&copy).map_err(|reason| Error::NotKept { reason })?;
        }
        // 3.
        self.replace(copy);
        // 4.
        self.tell(&changes);
        Ok(())
    }

    /// Lets go of the volumes that are no namespaces any more.
    fn replace(&self, exports: Exports) {
        let namespaces = exports.subsystems.values().flat_map(|known| known.namespaces.values());
        let volumes: BTreeSet<Uuid> = namespaces.map(|namespace| namespace.volume).collect();
        *self.exports.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(exports);
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        holds.retain(|volume, _| volumes.contains(volume));
    }

    /// Counts the change and tells subscribers.
    fn tell(&self, changes: &[Change]) {
        self.generation.fetch_add(1, Ordering::Release);
        if changes.contains(&Change::Discovery) {
            self.discovery.fetch_add(1, Ordering::Release);
        }
        let subscribers = self.subscribers.read().unwrap_or_else(PoisonError::into_inner).clone();
        for change in changes {
            for subscriber in &subscribers {
                subscriber(change);
            }
        }
    }
}

impl Exports {
    /// Holds everything against its rules.
    ///
    /// # Errors
    /// The first that is broken.
    pub fn check(&self) -> Result<(), Error> {
        for (nqn, subsystem) in &self.subsystems {
            subsystem.check()?;
            if *nqn != subsystem.nqn {
                return Err(unknown(nqn));
            }
        }
        self.check_together()
    }

    /// The rules that are not about one subsystem alone.
    fn check_together(&self) -> Result<(), Error> {
        if self.subsystems.len() > SUBSYSTEMS {
            return Err(Error::TooManySubsystems);
        }
        let records: usize = self.subsystems.values().map(|known| known.listeners.len()).sum();
        if records > RECORDS {
            return Err(Error::TooManyListeners);
        }
        if self.referrals.len() > REFERRALS {
            return Err(Error::TooManyReferrals);
        }
        for referral in &self.referrals {
            check_nqn(&referral.nqn)?;
            subsystem::check_address(referral.address)?;
        }
        let mut exported: BTreeMap<Uuid, (&str, NamespaceId)> = BTreeMap::new();
        for subsystem in self.subsystems.values() {
            for namespace in subsystem.namespaces.values() {
                let place = (subsystem.nqn.as_str(), namespace.id);
                if let Some((nqn, id)) = exported.insert(namespace.volume, place) {
                    return Err(Error::VolumeExported { nqn: nqn.to_owned(), id });
                }
            }
        }
        Ok(())
    }
}

fn unknown(nqn: &str) -> Error {
    Error::NoSubsystem { nqn: nqn.to_owned() }
}
