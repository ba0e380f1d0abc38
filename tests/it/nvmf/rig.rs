//! A target with two volumes, and hosts for it.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use lvolfs::block::AnyDevice;
use lvolfs::nvmf::model::Model;
use lvolfs::nvmf::pdu::Digests;
use lvolfs::nvmf::service::Service;
use lvolfs::nvmf::target::Target;
use lvolfs::reactor::policy::SpinPermits;
use lvolfs::reactor::{Clock, Reactor, ReactorOptions, Wait};
use lvolfs::units::{BlockSize, ByteCount};
use lvolfs::volume::{Catalog, Entry};

use super::exported::{self, Exported, Source};
pub(super) use super::exported::{HOST, SUBSYSTEM, local};
use super::host::{Host, Identity};
use super::pipe::Pipe;
use crate::fuse_operations::{Served, memory_device};

pub(super) const STRANGER: &str = "nqn.2026-11.io.lvolfs:stranger";
/// Blocks of a volume.
pub(super) const BLOCKS: u64 = 1024;
pub(super) const BLOCK: usize = 4096;

pub(super) struct Rig {
    pub(super) served: Served,
    pub(super) catalog: Rc<Catalog>,
    pub(super) model: Arc<Model>,
    pub(super) target: Arc<Target>,
    pub(super) service: Rc<Service>,
    pub(super) volumes: Vec<Arc<Entry>>,
}

/// Runs a test on a target over a memory device.
pub(super) fn with_rig<F: Future<Output = ()>>(test: impl FnOnce(Rc<Rig>) -> F) {
    with_device(memory_device(64 << 20, BlockSize::B4096), async |rig| {
        test(Rc::clone(&rig)).await;
        // Whatever happened, the target still serves.
        let mut host = rig.connect().await;
        host.io.plain(lvolfs::spec::command::SubmissionEntry::flush(ONE)).await.ok();
        drop(host);
        rig.service.drain().await;
        assert_eq!(rig.service.connections(), 0);
        assert!(rig.target.controllers().is_empty(), "a controller without a connection");
    });
}

pub(super) const ONE: lvolfs::units::NamespaceId = lvolfs::units::NamespaceId(1);
pub(super) const TWO: lvolfs::units::NamespaceId = lvolfs::units::NamespaceId(2);

/// A reactor on the machine's clock, for what takes its own time.
pub(super) fn real_reactor() -> Rc<Reactor> {
    let (permits, clock) = (SpinPermits::new(1), Clock::real());
    Reactor::new(ReactorOptions { index: 0, wait: Wait::Sleep, permits, clock }).unwrap()
}

pub(super) fn with_device(device: AnyDevice, test: impl AsyncFnOnce(Rc<Rig>)) {
    let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
    reactor.block_on(async {
        let rig = Rc::new(Rig::new(&reactor, device).await);
        test(rig).await;
    });
}

impl Rig {
    pub(super) async fn new(reactor: &Rc<Reactor>, device: AnyDevice) -> Self {
        Self::of(Served::format(reactor, device).await).await
    }

    /// A target for what is served; the volumes are made unless they are there.
    pub(super) async fn of(served: Served) -> Self {
        let reactor = &Rc::clone(&served.reactor);
        let source = Source {
            reactor,
            arena: &served.arena,
            directory: &served.directory,
            pool: &served.pool,
            store: served.store(),
            channel: served.device.channel(reactor, &served.arena).unwrap(),
        };
        let size = ByteCount(BLOCKS * BLOCK as u64);
        let Exported { catalog, model, target, service, volumes } =
            Exported::new(source, &["one", "two"], size).await;
        Self { served, catalog, model, target, service, volumes }
    }

    pub(super) fn identity(&self) -> Identity {
        Identity::new(SUBSYSTEM, HOST)
    }

    /// The host's end of a new connection.
    pub(super) fn stream(&self) -> Pipe {
        exported::connect(&self.service)
    }

    pub(super) async fn initialized(&self) -> Host<Pipe> {
        Host::initialize(self.stream(), Digests::default(), 0).await
    }

    /// A controller with one I/O queue.
    pub(super) async fn connect(&self) -> Connected {
        self.connect_with(Digests::default(), 0, true).await
    }

    pub(super) async fn connect_with(
        &self,
        digests: Digests,
        alignment: u8,
        flow_control: bool,
    ) -> Connected {
        let mut admin = Host::initialize(self.stream(), digests, alignment).await;
        let id = admin.connect_admin(&self.identity(), 15_000).await;
        let io = self.io_queue(id, 1, digests, alignment, flow_control).await;
        Connected { id, admin, io }
    }

    /// A controller of another host, with one I/O queue.
    pub(super) async fn connect_as(&self, identity: &Identity, keep_alive: u32) -> Connected {
        let mut admin = self.initialized().await;
        let id = admin.connect_admin(identity, keep_alive).await;
        let mut io = self.initialized().await;
        io.connect_io(identity, id, 1, 128, true).await.ok();
        Connected { id, admin, io }
    }

    pub(super) async fn io_queue(
        &self,
        controller: u16,
        queue: u16,
        digests: Digests,
        alignment: u8,
        flow_control: bool,
    ) -> Host<Pipe> {
        let mut io = Host::initialize(self.stream(), digests, alignment).await;
        let identity = self.identity();
        io.connect_io(&identity, controller, queue, 128, flow_control).await.ok();
        io
    }
}

/// A controller, seen from its host.
pub(super) struct Connected {
    pub(super) id: u16,
    pub(super) admin: Host<Pipe>,
    pub(super) io: Host<Pipe>,
}
