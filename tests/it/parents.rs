//! Volumes that are parents of volumes of other pools, as the layer of names sees them: who needs
//! one keeps it.

use std::rc::Rc;
use std::sync::Arc;

use lvolfs::block::Durability;
use lvolfs::fuse::errno::Errno;
use lvolfs::hw::dma::DmaArena;
use lvolfs::lvol::format::LayoutOptions;
use lvolfs::lvol::{self, FormatOptions, stored_name};
use lvolfs::reactor::Reactor;
use lvolfs::units::{BlockSize, ByteCount, ByteOffset};
use lvolfs::volume::{
    Catalog, Directory, Entry, Error, NewVolume, Pool, PoolOwner, Replace, Store,
};

use super::fuse_operations::{defaults, memory_device, reactor};

const CLUSTER: u64 = 64 << 10;

/// Pools on memory devices in one directory.
struct Pools {
    reactor: Rc<Reactor>,
    arena: DmaArena,
    directory: Directory,
    catalog: Rc<Catalog>,
}

/// One of them.
struct Open {
    owner: Rc<PoolOwner>,
    pool: Arc<Pool>,
}

impl Pools {
    fn new(reactor: &Rc<Reactor>) -> Self {
        let arena = DmaArena::new(ByteCount(32 << 20), false).unwrap();
        let directory = Directory::default();
        let catalog = Rc::new(Catalog::new(reactor, &arena, &directory));
        Self { reactor: Rc::clone(reactor), arena, directory, catalog }
    }

    async fn pool(&self, name: &str) -> Open {
        let device = memory_device(16 << 20, BlockSize::B4096);
        let channel = device.channel(&self.reactor, &self.arena).unwrap();
        let layout = LayoutOptions { cluster_size: ByteCount(CLUSTER), ..Default::default() };
        let options = FormatOptions { name: name.to_owned(), uuid: None, layout };
        Store::format(&channel, &self.arena, &options).await.unwrap();
        let store = Store::open(channel.clone(), &self.reactor, &self.arena).await.unwrap();
        let remote = store.remote().unwrap();
        let opened = PoolOwner::open(&self.reactor, store, &self.directory, defaults()).await;
        let (owner, pool) = opened.unwrap();
        self.catalog.attach(&pool, remote, channel).await.unwrap();
        Open { owner, pool }
    }

    /// As the daemon does it.
    async fn attach(&self, child: &Open, parent: &Open, entry: &Entry) -> Result<(), Error> {
        let map = parent.owner.make_parent(entry, child.pool.key()).await?;
        let way = self.catalog.as_parent(parent.pool.key(), &map)?;
        self.catalog.attach_external(child.pool.key(), &entry.external_name(), way.clone());
        child.owner.store().attach_external(&entry.external_name(), way);
        Ok(())
    }

    async fn clone(
        &self,
        child: &Open,
        parent: &Open,
        entry: &Entry,
        name: &str,
    ) -> Result<Arc<Entry>, Error> {
        self.attach(child, parent, entry).await?;
        child.owner.clone_external(&child.pool, &stored_name(entry.uuid()), name).await
    }

    async fn first_byte(&self, entry: &Entry) -> Result<u8, Error> {
        let volume = self.catalog.volume(entry.key()).await?;
        let read = volume.read(ByteOffset(0), 4096).await?.unwrap();
        Ok(read.buffer[read.range.start])
    }
}

impl Open {
    /// A volume that begins with a 7, and a snapshot of it.
    async fn golden(&self, pools: &Pools) -> (Arc<Entry>, Arc<Entry>) {
        let (name, size) = ("v".to_owned(), ByteCount(4 * CLUSTER));
        let new = NewVolume { name, size, thin: true, uuid: None, attributes: None };
        let volume = self.owner.create(&self.pool, new).await.unwrap();
        let handle = pools.catalog.volume(volume.key()).await.unwrap();
        let mut buffer = pools.arena.allocate(4096).unwrap();
        buffer.fill(7);
        let written = handle.write(ByteOffset(0), buffer, Durability::Cached).await;
        written.unwrap();
        let snapshot = self.owner.snapshot(&volume, "golden").await.unwrap();
        (volume, snapshot)
    }
}

fn parent_of(by: &str) -> Result<(), Error> {
    Err(Error::ParentOf { by: by.to_owned() })
}

#[test]
fn who_needs_a_parent_keeps_it() {
    let reactor = reactor();
    reactor.block_on(async {
        let pools = Pools::new(&reactor);
        let (a, b) = (pools.pool("a").await, pools.pool("b").await);
        let (volume, golden) = a.golden(&pools).await;
        let refused = pools.attach(&b, &a, &volume).await.unwrap_err();
        assert!(matches!(refused, Error::Store(lvol::Error::Unsuitable(_))), "{refused:?}");
        let clone = pools.clone(&b, &a, &golden, "c").await.unwrap();
        assert_eq!(pools.first_byte(&clone).await, Ok(7));

        let refused = a.owner.delete(&golden).await;
        assert_eq!(refused, parent_of("b/c"));
        assert_eq!(Errno::from(refused.unwrap_err()), Errno::EBUSY);
        let replaced = a.owner.rename(&volume, "golden", Replace::Existing).await;
        assert_eq!(replaced, parent_of("b/c"));
        let destroyed = a.owner.destroy(&a.pool).await.unwrap_err();
        let Error::PoolInUse { volume: which, by } = destroyed else { panic!("{destroyed:?}") };
        assert_eq!((&*which, by.contains("b/c")), ("golden", true), "{by}");
        // None of that has changed anything.
        assert_eq!(pools.first_byte(&golden).await, Ok(7));
        assert_eq!(pools.first_byte(&clone).await, Ok(7));
        let second = pools.clone(&b, &a, &golden, "d").await.unwrap();
        b.owner.rename(&clone, "e", Replace::Never).await.unwrap();
        b.owner.rename_pool(&b.pool, "q").await.unwrap();
        a.owner.rename_pool(&a.pool, "p").await.unwrap();
        assert_eq!(a.owner.delete(&golden).await, parent_of("q/e, q/d"));

        b.owner.decouple(&clone).await.unwrap();
        assert_eq!(a.owner.delete(&golden).await, parent_of("q/d"));
        b.owner.delete(&second).await.unwrap();
        a.owner.delete(&golden).await.unwrap();
        assert_eq!(pools.attach(&b, &a, &golden).await, Err(Error::Deleted));
        for entry in [&clone, &volume] {
            assert_eq!(pools.first_byte(entry).await, Ok(7));
        }
        a.owner.destroy(&a.pool).await.unwrap();
        b.owner.close(&b.pool).await.unwrap();
    });
}

/// A pool that is gone needs nothing, and one that cannot tell is believed to need all.
#[test]
fn a_pool_that_is_destroyed_lets_go_of_parents() {
    let reactor = reactor();
    reactor.block_on(async {
        let pools = Pools::new(&reactor);
        let (a, b) = (pools.pool("a").await, pools.pool("b").await);
        let (_, golden) = a.golden(&pools).await;
        pools.clone(&b, &a, &golden, "c").await.unwrap();
        b.owner.store().close().await.unwrap();
        let refused = a.owner.delete(&golden).await.unwrap_err().to_string();
        assert!(refused.contains("pool b, as far as can be known"), "{refused}");
        let (a, b) = (pools.pool("a2").await, pools.pool("b2").await);
        let (_, golden) = a.golden(&pools).await;
        pools.clone(&b, &a, &golden, "c").await.unwrap();
        b.owner.destroy(&b.pool).await.unwrap();
        pools.catalog.detach(&b.pool);
        a.owner.delete(&golden).await.unwrap();
    });
}

/// The snapshot that a copy leaves goes with the copy, unless another pool needs it.
#[test]
fn a_copys_snapshot_stays_for_a_clone_in_another_pool() {
    let reactor = reactor();
    reactor.block_on(async {
        let pools = Pools::new(&reactor);
        let (a, b) = (pools.pool("a").await, pools.pool("b").await);
        let (volume, _) = a.golden(&pools).await;
        let empty = || NewVolume {
            name: "copy".to_owned(),
            size: ByteCount(0),
            thin: true,
            uuid: None,
            attributes: None,
        };
        let hidden = || {
            let volumes = pools.directory.volumes(a.pool.key());
            volumes.into_iter().find(|entry| entry.name().starts_with(".copy-"))
        };
        for needed in [true, false] {
            let copy = a.owner.create(&a.pool, empty()).await.unwrap();
            a.owner.copy_whole(&volume, &copy).await.unwrap();
            let snapshot = hidden().unwrap();
            let clone = match needed {
                true => Some(pools.clone(&b, &a, &snapshot, "c").await.unwrap()),
                false => None,
            };
            a.owner.delete(&copy).await.unwrap();
            assert_eq!(hidden().is_some(), needed);
            if let Some(clone) = clone {
                assert_eq!(pools.first_byte(&clone).await, Ok(7));
                b.owner.delete(&clone).await.unwrap();
                a.owner.delete(&snapshot).await.unwrap();
            }
        }
    });
}

/// A clone reads through its parent as long as that's pool is open, and never zeros after that.
#[test]
fn two_pools_with_parents_in_each_other_can_both_be_closed() {
    let reactor = reactor();
    reactor.block_on(async {
        let pools = Pools::new(&reactor);
        let (a, b) = (pools.pool("a").await, pools.pool("b").await);
        let ((_, of_a), (_, of_b)) = (a.golden(&pools).await, b.golden(&pools).await);
        let in_b = pools.clone(&b, &a, &of_a, "c").await.unwrap();
        let in_a = pools.clone(&a, &b, &of_b, "c").await.unwrap();
        assert_eq!(pools.first_byte(&in_a).await, Ok(7));
        a.owner.close(&a.pool).await.unwrap();
        let closed = Box::new(lvol::Error::Closed);
        let failed = Err(Error::Store(lvol::Error::ExternalVolume(closed)));
        assert_eq!(pools.first_byte(&in_b).await, failed);
        pools.catalog.detach(&a.pool);
        let failed = Err(Error::Store(lvol::Error::ExternalParent));
        assert_eq!(pools.first_byte(&in_b).await, failed);
        b.owner.close(&b.pool).await.unwrap();
    });
}
