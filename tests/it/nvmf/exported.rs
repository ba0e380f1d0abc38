//! A target for volumes of one pool, on one reactor. Made of lvolfs alone, so that the fuzz targets
//! have the same one.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use lvolfs::block::AnyChannel;
use lvolfs::hw::dma::DmaArena;
use lvolfs::nvmf::model::{Listener, Model, NewNamespace, NewSubsystem};
use lvolfs::nvmf::service::Service;
use lvolfs::nvmf::target::{Peer, Target};
use lvolfs::reactor::{Reactor, Remote};
use lvolfs::units::ByteCount;
use lvolfs::volume::{Catalog, Directory, Entry, NewVolume, Pool, Store};

use super::pipe::{self, Pipe};

pub(crate) const SUBSYSTEM: &str = "nqn.2026-11.io.lvolfs:test";
pub(crate) const HOST: &str = "nqn.2026-11.io.lvolfs:host";

pub(crate) fn local() -> SocketAddr {
    "127.0.0.1:4420".parse().unwrap()
}

/// The pool whose volumes are exported.
pub(crate) struct Source<'a> {
    pub(crate) reactor: &'a Rc<Reactor>,
    pub(crate) arena: &'a DmaArena,
    pub(crate) directory: &'a Directory,
    pub(crate) pool: &'a Arc<Pool>,
    pub(crate) store: Remote<Store>,
    pub(crate) channel: AnyChannel,
}

pub(crate) struct Exported {
    pub(crate) catalog: Rc<Catalog>,
    pub(crate) model: Arc<Model>,
    pub(crate) target: Arc<Target>,
    pub(crate) service: Rc<Service>,
    pub(crate) volumes: Vec<Arc<Entry>>,
}

impl Exported {
    /// The subsystem [`SUBSYSTEM`] for the host [`HOST`], with the volumes `names` as namespaces
    /// from 1 on; they are made unless they are there.
    pub(crate) async fn new(source: Source<'_>, names: &[&str], size: ByteCount) -> Self {
        let Source { reactor, arena, directory, pool, store, channel } = source;
        let catalog = Rc::new(Catalog::new(reactor, arena, directory));
        catalog.attach(pool, store, channel).await.unwrap();
        let model = Arc::new(Model::new(1, None));
        let subsystem = NewSubsystem { ana_reporting: true, ..NewSubsystem::named(SUBSYSTEM) };
        model.create_subsystem(subsystem).unwrap();
        model.add_host(SUBSYSTEM, HOST).unwrap();
        let listener =
            Listener { address: local(), state: Default::default(), groups: Default::default() };
        model.add_listener(SUBSYSTEM, listener).unwrap();
        let mut volumes = Vec::new();
        for name in names {
            let new = NewVolume {
                name: (*name).to_owned(),
                size,
                thin: true,
                uuid: None,
                attributes: None,
            };
            let entry = match directory.find_volume(pool.key(), name) {
                Some(entry) => entry,
                None => catalog.create(pool, new).await.unwrap(),
            };
            let new = NewNamespace::of("p", entry.uuid(), Some(entry.key()));
            model.add_namespace(SUBSYSTEM, new).unwrap();
            volumes.push(entry);
        }
        let target = Target::new(Arc::clone(&model));
        let told = Arc::clone(&target);
        model.subscribe(move |change| told.changed(change));
        let told = Arc::clone(&target);
        let listener = move |entry: &Arc<Entry>, notifications: &[_]| {
            told.reservations_changed(entry.key(), notifications);
        };
        directory.hosts().listen(Arc::new(listener));
        let service = Service::new(&catalog, &target);
        target.add_service(reactor.keep(Rc::clone(&service)));
        Self { catalog, model, target, service, volumes }
    }
}

/// The host's end of a new connection.
pub(crate) fn connect(service: &Rc<Service>) -> Pipe {
    connect_through(service, local())
}

/// The host's end of a new connection to this address of the target.
pub(crate) fn connect_through(service: &Rc<Service>, local: SocketAddr) -> Pipe {
    let (ours, theirs) = pipe::pair();
    service.serve(theirs, Peer { local, remote: "127.0.0.1:5000".parse().unwrap() });
    ours
}
