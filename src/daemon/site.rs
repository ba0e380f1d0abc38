//! What the daemon keeps on each reactor.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use futures_channel::oneshot;

use crate::block::AnyChannel;
use crate::block::nvme::NvmeController;
use crate::fuse::operations::Operations;
use crate::hw::dma::DmaArena;
use crate::nvmf::service::Service;
use crate::reactor::Reactor;
use crate::volume::{Catalog, Directory, Key, Pool, PoolOwner};

/// One reactor's share of everything.
pub(super) struct Site {
    pub(super) reactor: Rc<Reactor>,
    pub(super) arena: DmaArena,
    pub(super) catalog: Rc<Catalog>,
    /// This reactor's channels, by the device's name.
    channels: RefCell<BTreeMap<String, AnyChannel>>,
    /// The NVMe controllers that this reactor polls, by the device's name.
    pub(super) controllers: RefCell<Vec<(String, Rc<NvmeController>)>>,
    /// The pools whose metadata this reactor owns.
    pub(super) owned: RefCell<Vec<(Rc<PoolOwner>, Arc<Pool>)>>,
    /// The file operations that run here, while the mount is there.
    pub(super) files: RefCell<Option<FileService>>,
    /// The target's share of this reactor, while it is open.
    pub(super) target: RefCell<Option<Rc<Service>>>,
}

/// Serving files on one reactor.
pub(super) struct FileService {
    pub(super) operations: Rc<Operations>,
    /// Each way that requests come.
    pub(super) ways: Vec<Way>,
}

/// Serving what comes by one transport.
pub(super) struct Way {
    /// Asks for the end.
    pub(super) stop: oneshot::Sender<()>,
    /// Comes when every request was answered.
    pub(super) drained: oneshot::Receiver<()>,
    /// Comes when the kernel asks for nothing more.
    pub(super) ended: oneshot::Receiver<()>,
}

impl Site {
    pub(super) fn new(reactor: &Rc<Reactor>, arena: &DmaArena, directory: &Directory) -> Self {
        Self {
            reactor: Rc::clone(reactor),
            arena: arena.clone(),
            catalog: Rc::new(Catalog::new(reactor, arena, directory)),
            channels: RefCell::default(),
            controllers: RefCell::default(),
            owned: RefCell::default(),
            files: RefCell::default(),
            target: RefCell::default(),
        }
    }

    pub(super) fn add_channel(&self, device: &str, channel: AnyChannel) {
        self.channels.borrow_mut().insert(device.to_owned(), channel);
    }

    pub(super) fn drop_channel(&self, device: &str) {
        drop(self.channels.borrow_mut().remove(device));
    }

    /// The NVMe controller of that name, which this reactor polls.
    pub(super) fn controller(&self, name: &str) -> Option<Rc<NvmeController>> {
        let controllers = self.controllers.borrow();
        controllers.iter().find(|(known, _)| known == name).map(|(_, found)| Rc::clone(found))
    }

    pub(super) fn drop_channels(&self) {
        self.channels.borrow_mut().clear();
    }

    /// This reactor's channel to a device.
    pub(super) fn channel(&self, device: &str) -> anyhow::Result<AnyChannel> {
        let found = self.channels.borrow().get(device).cloned();
        found.with_context(|| format!("device {device:?} is not open"))
    }

    /// The owner of a pool, if this is its reactor.
    pub(super) fn owner_of(&self, pool: Key) -> Option<Rc<PoolOwner>> {
        let owned = self.owned.borrow();
        owned.iter().find(|(_, known)| known.key() == pool).map(|(owner, _)| Rc::clone(owner))
    }

    /// All channels, by the device's name.
    pub(super) fn channels(&self) -> Vec<(String, AnyChannel)> {
        let channels = self.channels.borrow();
        channels.iter().map(|(name, channel)| (name.clone(), channel.clone())).collect()
    }
}
