//! The target: the door through which other machines use volumes.
//!
//! What is exported is what the configuration declares, and what was changed at run time since:
//! [`Kept::merge`](crate::nvmf::model::state_file::Kept::merge) says which of the two holds. A
//! state file that is damaged exports nothing: it may have been written to take something away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use uuid::Uuid;
use zerocopy::FromBytes;

use super::reactors::ReactorThread;
use super::site::Site;
use crate::config::{self, Config};
use crate::nvmf::model::state_file::{Fence, StateFile};
use crate::nvmf::model::{
    AnaState, Exports, Keeper, Listener, Model, Namespace, NewSubsystem, Referral,
};
use crate::nvmf::service::Service;
use crate::nvmf::target::Target;
use crate::spec::fabrics::DISCOVERY_NQN;
use crate::spec::log::{LogPage, SmartLog};
use crate::units::NamespaceId;
use crate::volume::{Directory, Entry};

/// How often the drives are asked how they are. What cannot wait they say by themselves, to the log.
const HEALTH_PERIOD: Duration = Duration::from_secs(60);

/// The target, and where it listens.
pub(super) struct TargetDoor {
    pub(super) target: Arc<Target>,
    /// Where only discovery answers.
    discovery: Vec<SocketAddr>,
}

impl TargetDoor {
    /// Exports what is to be exported, and lets hosts connect. `None` if the configuration has no
    /// target.
    pub(super) fn open(
        config: &Config,
        sites: &[ReactorThread<Site>],
    ) -> anyhow::Result<Option<Arc<Self>>> {
        let Some(config) = &config.target else { return Ok(None) };
        let directory = sites[0].run(|site| async move { site.catalog.directory().clone() })?;
        let declared = declared(config, &directory);
        let (exports, keeper) = exports(config, declared);
        let model = Model::new(generation(), Some(keeper));
        bind(&model, exports, &directory)?;
        let target = Target::new(Arc::new(model));
        for site in sites {
            let target = Arc::clone(&target);
            site.run(move |site| async move {
                let service = Service::new(&site.catalog, &target);
                target.add_service(site.reactor.keep(Rc::clone(&service)));
                *site.target.borrow_mut() = Some(service);
            })?;
        }
        // The model outlives nobody: it is part of the target.
        let told = Arc::downgrade(&target);
        target.model().subscribe(move |change| {
            if let Some(target) = told.upgrade() {
                target.changed(change);
            }
        });
        let told = Arc::downgrade(&target);
        directory.watch_sizes(move |volume| {
            if let Some(target) = told.upgrade() {
                target.model().volume_changed(volume);
            }
        });
        let told = Arc::downgrade(&target);
        directory.hosts().listen(Arc::new(move |entry, notifications| {
            if let Some(target) = told.upgrade() {
                target.reservations_changed(entry.key(), notifications);
            }
        }));
        sites[0].run({
            let target = Arc::downgrade(&target);
            move |site| async move { watch_health(&site, target) }
        })?;
        let door = Self { target, discovery: config.discovery.clone() };
        door.listen_everywhere(config)?;
        Ok(Some(Arc::new(door)))
    }

    fn listen_everywhere(&self, config: &config::Target) -> anyhow::Result<()> {
        let declared: BTreeSet<SocketAddr> = config
            .discovery
            .iter()
            .chain(config.subsystems.iter().flat_map(|subsystem| &subsystem.listen))
            .copied()
            .collect();
        let all = declared.union(&self.target.model().listeners()).copied().collect::<Vec<_>>();
        for address in all {
            if !self.is_wanted(address) {
                continue;
            }
            match self.target.listen(address) {
                Ok(_) => tracing::info!(%address, "the target listens"),
                Err(error) if declared.contains(&address) => {
                    return Err(error).with_context(|| {
                        format!("the target cannot listen on {address}, as [target] declares")
                    });
                }
                Err(error) => tracing::error!(
                    %address, %error,
                    "cannot listen where a subsystem was made reachable at run time"
                ),
            }
        }
        Ok(())
    }

    /// What is exported.
    pub(super) fn model(&self) -> &Model {
        self.target.model()
    }

    /// Listens on an address, unless it does already. True if it did not.
    pub(super) fn listen(&self, address: SocketAddr) -> std::io::Result<bool> {
        if self.target.listeners().contains(&address) {
            return Ok(false);
        }
        self.target.listen(address)?;
        tracing::info!(%address, "the target listens");
        Ok(true)
    }

    /// Stops listening where nothing is to be reached any more.
    pub(super) fn stop_unused(&self) {
        for address in self.target.listeners() {
            if !self.is_wanted(address) && self.target.stop_listening(address) {
                tracing::info!(%address, "the target does not listen any more");
            }
        }
    }

    fn is_wanted(&self, address: SocketAddr) -> bool {
        self.discovery.contains(&address) || self.model().listeners().contains(&address)
    }

    /// Takes no more connections, answers what runs on those that there are, and ends them.
    pub(super) fn close(&self, sites: &[ReactorThread<Site>]) -> anyhow::Result<()> {
        self.target.close_listeners();
        for site in sites {
            site.run(|site| async move {
                let service = site.target.borrow_mut().take();
                if let Some(service) = service {
                    service.drain().await;
                }
            })?;
        }
        tracing::info!("the target is closed");
        Ok(())
    }
}

/// Keeps the target's hosts informed of the health of the drives, for as long as both are there.
/// The first reactor polls all controllers.
fn watch_health(site: &Rc<Site>, target: Weak<Target>) {
    let (reactor, site) = (Rc::clone(&site.reactor), Rc::downgrade(site));
    reactor.spawn(async move {
        while let (Some(target), Some(site)) = (target.upgrade(), site.upgrade()) {
            let drives = read_health(&site).await;
            target.set_health(&drives);
            let pause = site.reactor.sleep(HEALTH_PERIOD);
            drop((target, site));
            pause.await;
        }
    });
}

async fn read_health(site: &Site) -> Vec<SmartLog> {
    let controllers = site.controllers.borrow().clone();
    let mut drives = Vec::new();
    for (name, controller) in controllers {
        match controller.read_log(LogPage::SMART, size_of::<SmartLog>()).await {
            Ok(page) => drives.extend(SmartLog::read_from_bytes(&page).ok()),
            Err(error) => tracing::debug!(controller = name, %error, "no health page"),
        }
    }
    drives
}

/// What the configuration declares, as a model.
fn declared(config: &config::Target, directory: &Directory) -> Exports {
    let mut exports = Exports::default();
    for subsystem in &config.subsystems {
        let new = NewSubsystem {
            nqn: subsystem.nqn.clone(),
            serial: subsystem.serial.clone(),
            model: subsystem.model.clone(),
            max_namespaces: subsystem.max_namespaces,
            ana_reporting: subsystem.ana,
            allow_any_host: subsystem.allow_any_host,
            ..NewSubsystem::named(&subsystem.nqn)
        };
        let mut built = new.build();
        built.hosts = subsystem.hosts.iter().cloned().collect();
        let listener = |address: &SocketAddr| Listener {
            address: *address,
            state: AnaState::Optimized,
            groups: BTreeMap::new(),
        };
        built.listeners = subsystem.listen.iter().map(listener).collect();
        for namespace in &subsystem.namespaces {
            let name = &namespace.volume;
            let pool = directory.find_pool(name.pool());
            let entry = pool.and_then(|pool| directory.find_volume(pool.key(), name.volume()));
            let Some(entry) = entry else {
                tracing::warn!(subsystem = subsystem.nqn, volume = %name, "no such volume to export");
                continue;
            };
            let id = NamespaceId(namespace.nsid);
            let namespace = Namespace {
                id,
                pool: name.pool().to_owned(),
                volume: entry.uuid(),
                key: None,
                nguid: entry.uuid(),
                eui64: [0; 8],
                uuid: entry.uuid(),
                ana_group: namespace.ana_group,
                visible_to: namespace.hosts.as_ref().map(|list| list.iter().cloned().collect()),
            };
            built.namespaces.insert(id, namespace);
        }
        exports.subsystems.insert(subsystem.nqn.clone(), Arc::new(built));
    }
    let referral =
        |address: &SocketAddr| Referral { address: *address, nqn: DISCOVERY_NQN.to_owned() };
    exports.referrals = config.referrals.iter().map(referral).collect();
    exports
}

/// What to export, and what keeps changes of it.
fn exports(config: &config::Target, declared: Exports) -> (Exports, Box<dyn Keeper>) {
    let file = StateFile::new(&config.state_dir, declared.clone());
    match file.load() {
        Ok(None) => (declared, Box::new(file)),
        Ok(Some(kept)) => {
            let (exports, dropped) = kept.merge(&declared);
            for what in &dropped {
                tracing::warn!(state = %file.path().display(), "dropped {what}");
            }
            // Else an edit that is taken back would bring back what was dropped.
            if !dropped.is_empty()
                && let Err(error) = file.keep(&exports)
            {
                tracing::error!("{error}");
            }
            (exports, Box::new(file))
        }
        Err(damage) => {
            let reason = format!(
                "the target's state file {} is not used: {damage}. Nothing is exported. Move the \
                 file away and restart, to export what the configuration declares",
                file.path().display()
            );
            tracing::error!("{reason}");
            (Exports::default(), Box::new(Fence(reason)))
        }
    }
}

/// Finds the volumes of all namespaces, holds them, and makes them the model.
fn bind(model: &Model, mut exports: Exports, directory: &Directory) -> anyhow::Result<()> {
    let mut holds = Vec::new();
    for subsystem in exports.subsystems.values_mut() {
        let subsystem = Arc::make_mut(subsystem);
        for namespace in subsystem.namespaces.values_mut() {
            let entry = find(directory, &namespace.pool, namespace.volume);
            let held = entry.as_ref().map(|entry| entry.hold(&subsystem.nqn));
            match (entry, held) {
                (Some(entry), Some(Ok(hold))) => {
                    namespace.key = Some(entry.key());
                    holds.push((namespace.volume, hold));
                }
                (_, refused) => {
                    let reason = match refused {
                        Some(Err(error)) => error.to_string(),
                        _ => format!("its volume is not in pool {}", namespace.pool),
                    };
                    let id = namespace.id.get();
                    let (nqn, volume) = (&subsystem.nqn, namespace.volume);
                    tracing::warn!(subsystem = nqn, namespace = id, %volume, reason, "not exported");
                }
            }
        }
    }
    model.load(exports).context("what is to be exported cannot be")?;
    for (volume, hold) in holds {
        model.hold(volume, hold);
    }
    Ok(())
}

fn find(directory: &Directory, pool: &str, volume: Uuid) -> Option<Arc<Entry>> {
    let pool = directory.find_pool(pool)?;
    directory.volumes(pool.key()).into_iter().find(|entry| entry.uuid() == volume)
}

/// Where the counter of the Discovery log page begins: microseconds since the epoch, which no
/// earlier run reached unless it made a million changes a second.
fn generation() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(1)
}
