//! What the pool's operations do, and what each costs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures_channel::oneshot;
use lvolfs::block::fault::{Fault, Faults, Faulty, Operation};
use lvolfs::block::memory::MemoryDevice;
use lvolfs::block::recording::{Recorder, Recording};
use lvolfs::block::{BlockDevice, BlockError, Counters, Durability, Geometry, Transfer};
use lvolfs::hw::dma::DmaBuffer;
use lvolfs::lvol::format::Contents;
use lvolfs::lvol::{Error, NewVolume, Resource, StoreIo, StoreState, VolumeIo};
use lvolfs::sim::SimDisk;
use lvolfs::units::{BlockCount, BlockSize, ByteCount, ByteOffset, ClusterCount, Lba};

use super::bench::{BLOCK, Bench, CLUSTER, assert_valid, disk, validated};

/// Blocks in a cluster.
const PER_CLUSTER: u64 = CLUSTER / BLOCK as u64;

#[test]
fn a_pool_is_made_only_on_a_blank_device() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let device = disk.channel(&bench.reactor);
        let missing = bench.open(device.clone()).await.err();
        assert!(matches!(missing, Some(Error::SuperBlock(_))), "{missing:?}");
        bench.format(&device).await;
        let pool = bench.open(device.clone()).await.unwrap();
        assert_eq!(pool.store.info().name, "pool");
        assert!(pool.store.recovery().clean, "there is nothing to recover in a new pool");
        pool.store.close().await.unwrap();
        assert_valid(&disk);
        let options = lvolfs::lvol::FormatOptions {
            name: "other".to_owned(),
            uuid: None,
            layout: Default::default(),
        };
        let again = lvolfs::lvol::Store::format(&device, &bench.arena, &options).await;
        assert_eq!(again, Err(Error::NotBlank(Contents::Lvolstore)));
    });
}

#[test]
fn what_was_written_is_read_before_and_after_reopening() {
    for clean in [true, false] {
        let bench = Bench::new();
        let disk = disk();
        bench.run(async {
            let pool = bench.pool(disk.channel(&bench.reactor)).await;
            let thin = pool.thin("thin", 20).await;
            let thick = pool.thick("thick", 3).await;
            let empty = pool.thin("empty", 0).await;
            assert_eq!(empty.size(), ByteCount(0));
            for volume in [&thin, &thick] {
                assert!(pool.blocks(volume).await.iter().all(|byte| *byte == 0));
                pool.write(volume, 0, 1, 1).await.unwrap();
                pool.write(volume, 5, 40, 2).await.unwrap();
                pool.write(volume, 3 * PER_CLUSTER - 1, 1, 3).await.unwrap();
            }
            assert_eq!(thin.allocated_clusters(), ClusterCount(3));
            assert_eq!(thick.allocated_clusters(), ClusterCount(3));
            let expected = [pool.blocks(&thin).await, pool.blocks(&thick).await];
            assert_eq!(&expected[0][..8], [1, 0, 0, 0, 0, 2, 2, 2]);
            assert_eq!(expected[0][44..49], [2, 0, 0, 3, 0]);
            let disk = if clean {
                pool.store.close().await.unwrap();
                disk.cut_keep(0)
            } else {
                thin.flush().await.unwrap();
                thick.flush().await.unwrap();
                disk.cut_keep(0)
            };
            assert_valid(&disk);
            assert_eq!(validated(&disk).clean, clean);
            let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
            assert_eq!(pool.store.recovery().clean, clean);
            assert_eq!(pool.store.volumes().len(), 3);
            for (name, expected) in ["thin", "thick"].into_iter().zip(expected) {
                let volume = pool.volume(name).await;
                assert_eq!(pool.blocks(&volume).await, expected, "{name}");
            }
        });
    }
}

#[test]
fn ranges_are_checked() {
    let bench = Bench::new();
    bench.run(async {
        let pool = bench.pool(disk().channel(&bench.reactor)).await;
        let volume = pool.thin("v", 2).await;
        let end = 2 * CLUSTER;
        for (offset, bytes) in [(end, BLOCK), (end - BLOCK as u64, 2 * BLOCK), (1 << 63, BLOCK)] {
            let buffer = bench.buffer(bytes, 1);
            let error = volume.write(ByteOffset(offset), buffer, Durability::Cached).await;
            let error = error.unwrap_err();
            assert!(matches!(error.error, Error::OutOfRange { .. }), "{offset}");
            let read = volume.read(ByteOffset(offset), error.buffer.unwrap()).await;
            assert!(matches!(read.unwrap_err().error, Error::OutOfRange { .. }));
            let discard = volume.discard(ByteOffset(offset), ByteCount(bytes as u64)).await;
            assert!(matches!(discard, Err(Error::OutOfRange { .. })));
        }
        let crooked = volume.read(ByteOffset(512), bench.buffer(BLOCK, 0)).await;
        assert!(matches!(crooked.unwrap_err().error, Error::Unaligned { .. }));
        let nothing = volume.discard(ByteOffset(0), ByteCount(0)).await;
        assert!(matches!(nothing, Err(Error::Unaligned { .. })));
    });
}

#[test]
fn discards_read_as_zeros_and_give_whole_clusters_back() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        for (name, allocated) in [("thin", 2), ("thick", 4)] {
            let volume = match name {
                "thin" => pool.thin(name, 4).await,
                _ => pool.thick(name, 4).await,
            };
            let blocks = 4 * PER_CLUSTER as usize;
            pool.write(&volume, 0, blocks, 9).await.unwrap();
            volume.flush().await.unwrap();
            // From the middle of the first cluster to the second block of the last.
            let from = 10;
            let to = 3 * PER_CLUSTER + 2;
            let bytes = ByteCount((to - from) * BLOCK as u64);
            volume.discard(ByteOffset(from * BLOCK as u64), bytes).await.unwrap();
            let zero = |block: u64| (from..to).contains(&block);
            let now = pool.blocks(&volume).await;
            let expected: Vec<u8> =
                (0..blocks as u64).map(|block| if zero(block) { 0 } else { 9 }).collect();
            assert_eq!(now, expected, "{name}");
            assert_eq!(volume.allocated_clusters(), ClusterCount(allocated), "{name}");
            volume.flush().await.unwrap();
            let cut = disk.cut_keep(0);
            let pool = bench.open(cut.channel(&bench.reactor)).await.unwrap();
            assert_eq!(pool.blocks(&pool.volume(name).await).await, expected, "{name}, reopened");
        }
        let thin = pool.volume("thin").await;
        let (data, hole) = (ByteOffset(CLUSTER), ByteOffset(3 * CLUSTER));
        assert_eq!(thin.next_hole(ByteOffset(0)), Some(data));
        assert_eq!(thin.next_data(data), Some(hole));
        assert_eq!(thin.next_hole(hole), Some(ByteOffset(4 * CLUSTER)));
        assert_eq!(thin.next_data(ByteOffset(4 * CLUSTER)), None);
        thin.allocate(ByteOffset(0), ByteCount(4 * CLUSTER)).await.unwrap();
        assert_eq!(thin.allocated_clusters(), ClusterCount(4));
        assert_eq!(pool.blocks(&thin).await[20], 0);
        thin.write_zeroes(ByteOffset(0), ByteCount(4 * CLUSTER)).await.unwrap();
        assert!(pool.blocks(&thin).await.iter().all(|byte| *byte == 0));
        assert_eq!(thin.allocated_clusters(), ClusterCount(4));
        pool.store.close().await.unwrap();
        assert_valid(&disk);
    });
}

#[test]
fn a_new_volume_never_shows_what_another_one_wrote() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let secret = pool.thick("secret", 30).await;
        pool.write(&secret, 0, 30 * PER_CLUSTER as usize, 0x55).await.unwrap();
        pool.store.delete_volume(pool.id("secret")).await.unwrap();
        let gone = secret.read(ByteOffset(0), bench.buffer(BLOCK, 0)).await;
        assert_eq!(gone.unwrap_err().error, Error::NotFound);
        assert_eq!(secret.flush().await, Err(Error::NotFound));
        let thin = pool.thin("thin", 30).await;
        let thick = pool.thick("thick", 20).await;
        for cluster in 0..30 {
            pool.write(&thin, cluster * PER_CLUSTER + 3, 1, 1).await.unwrap();
        }
        assert!(!pool.blocks(&thin).await.contains(&0x55));
        assert!(pool.blocks(&thick).await.iter().all(|byte| *byte == 0));
    });
}

#[test]
fn volumes_grow_and_shrink() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let free = pool.store.info().free_clusters;
        for name in ["thin", "thick"] {
            let volume = match name {
                "thin" => pool.thin(name, 3).await,
                _ => pool.thick(name, 3).await,
            };
            let id = pool.id(name);
            pool.write(&volume, 0, 3 * PER_CLUSTER as usize, 7).await.unwrap();
            for clusters in [10, 2, 0, 5, 600] {
                let fits = pool.store.resize_volume(id, ByteCount(clusters * CLUSTER)).await;
                if name == "thick" && clusters == 600 {
                    assert_eq!(fits, Err(Error::NoSpace { what: Resource::Cluster }));
                    assert_eq!(volume.size(), ByteCount(5 * CLUSTER));
                    continue;
                }
                fits.unwrap();
                assert_eq!(volume.size(), ByteCount(clusters * CLUSTER));
                if clusters == 10 {
                    let blocks = pool.blocks(&volume).await;
                    assert_eq!(blocks.iter().filter(|byte| **byte == 7).count(), 48);
                    pool.write(&volume, 9 * PER_CLUSTER, 1, 8).await.unwrap();
                }
                assert_valid(&disk.cut_keep(0));
                let reopened = bench.open(disk.cut_keep(0).channel(&bench.reactor)).await.unwrap();
                let size = reopened.store.find(name).unwrap().size;
                assert_eq!(size, ByteCount(clusters * CLUSTER), "{name}");
            }
            assert!(pool.blocks(&volume).await.iter().all(|byte| *byte == 0), "{name}");
        }
        let too_much = pool.store.resize_volume(pool.id("thin"), ByteCount(1 << 60)).await;
        assert!(matches!(too_much, Err(Error::TooLarge { .. })));
        for name in ["thin", "thick"] {
            pool.store.delete_volume(pool.id(name)).await.unwrap();
        }
        assert_eq!(pool.store.info().free_clusters, free);
        pool.store.close().await.unwrap();
        assert_valid(&disk);
        assert_eq!(validated(&disk).free_clusters, free);
    });
}

#[test]
fn names_and_attributes() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        pool.thin("a", 1).await;
        pool.thin("b", 1).await;
        let (a, store) = (pool.id("a"), &pool.store);
        let taken = store.rename_volume(a, "b").await;
        assert_eq!(taken, Err(Error::Exists { name: "b".to_owned() }));
        let duplicate = store.create_volume(NewVolume::thin("b", ByteCount(1))).await;
        assert!(matches!(duplicate, Err(Error::Exists { .. })));
        for bad in ["", &"x".repeat(64), "a\0b"] {
            let refused = store.create_volume(NewVolume::thin(bad, ByteCount(1))).await;
            assert!(matches!(refused, Err(Error::InvalidName(_))), "{bad:?}");
        }
        store.rename_volume(a, "a").await.unwrap();
        store.rename_volume(a, "c").await.unwrap();
        store.rename("new pool").await.unwrap();
        assert_eq!(store.find("a"), None);
        store.set_xattr(a, b"lvolfs.mode", b"0640").await.unwrap();
        store.set_xattr(a, b"big", &[5; 3000]).await.unwrap();
        store.set_xattr(a, b"bigger", &[6; 4000]).await.unwrap();
        store.set_xattr(a, b"lvolfs.mode", b"0600").await.unwrap();
        store.remove_xattr(a, b"big").await.unwrap();
        assert_eq!(store.remove_xattr(a, b"big").await, Err(Error::NoAttribute));
        let large = store.set_xattr(a, b"huge", &[0; 5000]).await;
        assert!(matches!(large, Err(Error::InvalidAttribute(_))));
        assert_eq!(store.set_xattr(a, b"name", b"x").await, Err(Error::ReservedAttribute));
        store.set_read_only(pool.id("b")).await.unwrap();
        let b = pool.volume("b").await;
        assert!(matches!(pool.write(&b, 0, 1, 1).await, Err(Error::ReadOnly { .. })));
        let named = store.set_xattr(pool.id("b"), b"user.x", b"x").await;
        assert!(matches!(named, Err(Error::ReadOnly { .. })));
        store.rename_volume(pool.id("b"), "x").await.unwrap();
        store.rename_volume(pool.id("x"), "b").await.unwrap();
        let cut = disk.cut_keep(0);
        assert_valid(&cut);
        let pool = bench.open(cut.channel(&bench.reactor)).await.unwrap();
        let mut names: Vec<_> =
            pool.store.volumes().into_iter().map(|volume| volume.name).collect();
        names.sort();
        assert_eq!(
            (names, pool.store.info().name),
            (vec!["b".into(), "c".into()], "new pool".into())
        );
        let expected =
            [(b"lvolfs.mode".to_vec(), b"0600".to_vec()), (b"bigger".to_vec(), vec![6; 4000])];
        let xattrs = pool.store.xattrs(pool.id("c")).unwrap().into_iter();
        let xattrs: Vec<_> = xattrs.map(|xattr| (xattr.name, xattr.value)).collect();
        assert_eq!(xattrs, expected);
        assert!(pool.volume("b").await.map().is_read_only());
    });
}

#[test]
fn a_full_pool_fails_the_writer_and_nothing_else() {
    let bench = Bench::new();
    let disk = disk();
    let full = Error::NoSpace { what: Resource::Cluster };
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let (one, two) = (pool.thin("one", 1000).await, pool.thin("two", 4).await);
        pool.write(&two, 0, 1, 2).await.unwrap();
        let free = u64::from(pool.store.info().free_clusters.0);
        for cluster in 0..free {
            pool.write(&one, cluster * PER_CLUSTER, 1, 1).await.unwrap();
        }
        assert_eq!(pool.write(&one, free * PER_CLUSTER, 1, 1).await, Err(full.clone()));
        let range = (ByteOffset(free * CLUSTER), ByteCount(CLUSTER));
        assert_eq!(one.allocate(range.0, range.1).await, Err(full.clone()));
        let thick = pool.store.create_volume(NewVolume::thick("three", ByteCount(1))).await;
        assert_eq!(thick.unwrap_err(), full);
        pool.write(&one, 5, 1, 3).await.unwrap();
        pool.write(&two, 1, 1, 3).await.unwrap();
        one.flush().await.unwrap();
        // A discarded cluster can be used at once, by whoever comes.
        one.discard(ByteOffset(0), ByteCount(CLUSTER)).await.unwrap();
        pool.write(&two, PER_CLUSTER, 1, 4).await.unwrap();
        assert_eq!(pool.write(&two, 2 * PER_CLUSTER, 1, 4).await, Err(full));
        two.flush().await.unwrap();
        assert_eq!(pool.blocks(&two).await[..17], {
            let mut expected = [0; 17];
            (expected[0], expected[1], expected[16]) = (2, 3, 4);
            expected
        });
        pool.store.close().await.unwrap();
        assert_valid(&disk);
    });
}

#[test]
fn concurrent_first_writes_of_a_cluster_share_it() {
    let bench = Bench::new();
    let disk = SimDisk::new(lvolfs::sim::SimOptions {
        delays: Some(3),
        ..lvolfs::sim::SimOptions::new(ByteCount(4 << 20))
    });
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let volume = pool.thin("v", 4).await;
        let blocks = (0..4 * PER_CLUSTER).rev();
        let writes = blocks.map(|block| pool.write(&volume, block, 1, block as u8 + 1));
        for written in futures_util::future::join_all(writes).await {
            written.unwrap();
        }
        assert_eq!(volume.allocated_clusters(), ClusterCount(4));
        let expected: Vec<u8> = (1..=4 * PER_CLUSTER as u8).collect();
        assert_eq!(pool.blocks(&volume).await, expected);
        assert_eq!(pool.store.counters().clusters_allocated, 4);
    });
}

/// Flushes that the device saw while `work` ran.
async fn flushes<R>(recorder: &Recorder, work: impl Future<Output = R>) -> (usize, R) {
    drop(recorder.take());
    let result = work.await;
    let records = recorder.take();
    let flushes =
        records.iter().filter(|record| record.operation == Operation::Flush && record.ended);
    (flushes.count(), result)
}

#[test]
fn an_fsync_costs_one_flush_or_a_commit() {
    let bench = Bench::new();
    let disk = disk();
    let recorder = Recorder::default();
    bench.run(async {
        let device = Recording::new(disk.channel(&bench.reactor), recorder.clone());
        let pool = bench.pool(device).await;
        let volume = pool.thin("v", 8).await;
        let other = pool.thin("w", 8).await;
        pool.write(&other, 0, 1, 1).await.unwrap();
        pool.write(&volume, 0, 1, 1).await.unwrap();
        let fsync = |volume: &VolumeIo<_>| {
            let volume = volume.clone();
            async move { volume.flush().await.unwrap() }
        };
        assert_eq!(flushes(&recorder, fsync(&volume)).await.0, 2, "a changed mapping");
        pool.write(&volume, 1, 1, 2).await.unwrap();
        assert_eq!(flushes(&recorder, fsync(&volume)).await.0, 1, "an overwrite");
        let many = futures_util::future::join_all((0..50).map(|_| fsync(&volume)));
        assert_eq!(flushes(&recorder, many).await.0, 1, "shared by those who ask together");
        pool.write(&volume, PER_CLUSTER, 1, 1).await.unwrap();
        let many = futures_util::future::join_all((0..50).map(|_| fsync(&volume)));
        assert_eq!(flushes(&recorder, many).await.0, 2, "a commit shared");
        // Force unit access: no flush where the mapping is durable.
        let fua = |block: u64| {
            let buffer = bench.buffer(BLOCK, 4);
            let offset = ByteOffset(block * BLOCK as u64);
            let volume = volume.clone();
            async move {
                drop(volume.write(offset, buffer, Durability::ForceUnitAccess).await.unwrap());
            }
        };
        assert_eq!(flushes(&recorder, fua(2)).await.0, 0);
        assert_eq!(flushes(&recorder, fua(3 * PER_CLUSTER)).await.0, 2);
        assert_eq!(flushes(&recorder, fsync(&other)).await.0, 2);
        let counters = pool.store.counters();
        assert!(counters.commits < counters.commit_requests);
    });
}

#[test]
fn without_a_cache_nothing_is_flushed() {
    let bench = Bench::new();
    bench.run(async {
        let device = MemoryDevice::new(ByteCount(8 << 20), BlockSize::B512).channel();
        let pool = bench.pool(device.clone()).await;
        let volume = pool.thin("v", 8).await;
        pool.write(&volume, 0, 3, 1).await.unwrap();
        volume.flush().await.unwrap();
        pool.store.close().await.unwrap();
        assert_eq!(device.counters().flushes, 0);
    });
}

/// What a failed flush or metadata write leaves: reads, and nothing else until reopened.
#[test]
fn a_failed_flush_or_metadata_write_poisons_the_pool() {
    for (operation, after) in
        [(Operation::Flush, 0), (Operation::Flush, 1), (Operation::Write, 0), (Operation::Write, 1)]
    {
        let bench = Bench::new();
        let disk = disk();
        let faults = Faults::default();
        bench.run(async {
            let device = Faulty::new(disk.channel(&bench.reactor), faults.clone());
            let pool = bench.pool(device).await;
            let (volume, other) = (pool.thin("v", 8).await, pool.thick("w", 1).await);
            pool.write(&volume, 0, 1, 1).await.unwrap();
            let what = format!("{operation:?} {after}");
            faults.inject(Fault { operation, blocks: None, after, times: 1 });
            let failed = volume.flush().await;
            assert!(matches!(failed, Err(Error::Poisoned { .. })), "{what}: {failed:?}");
            assert_eq!(pool.blocks(&volume).await[0], 1, "reads go on");
            let error = failed.unwrap_err();
            assert_eq!(pool.write(&volume, 0, 1, 2).await, Err(error.clone()), "{what}");
            assert_eq!(pool.write(&other, 0, 1, 2).await, Err(error.clone()), "{what}");
            assert_eq!(volume.flush().await, Err(error.clone()), "no flush is tried again");
            let create = pool.store.create_volume(NewVolume::thin("x", ByteCount(1))).await;
            assert_eq!(create.unwrap_err(), error);
            assert_eq!(pool.store.info().state, StoreState::Poisoned(error.clone()));
            assert_eq!(pool.store.close().await, Err(error));
            let pool = bench.open(disk.cut(5).channel(&bench.reactor)).await.unwrap();
            assert_eq!(pool.store.info().state, StoreState::Ok);
            assert_eq!(pool.store.volumes().len(), 2, "{what}");
        });
    }
}

#[test]
fn a_failed_data_write_fails_its_writer_only() {
    let bench = Bench::new();
    let disk = disk();
    let faults = Faults::default();
    bench.run(async {
        let pool = bench.pool(Faulty::new(disk.channel(&bench.reactor), faults.clone())).await;
        let volume = pool.thin("v", 8).await;
        let free = pool.store.info().free_clusters;
        for operation in [Operation::Write, Operation::WriteZeroes] {
            faults.inject(Fault { operation, blocks: None, after: 0, times: 1 });
            let failed = pool.write(&volume, 3, 1, 1).await;
            assert!(matches!(failed, Err(Error::Device(_))), "{failed:?}");
            assert_eq!(volume.allocated_clusters(), ClusterCount(0));
            assert_eq!(pool.store.info().free_clusters, free);
        }
        pool.write(&volume, 3, 1, 1).await.unwrap();
        volume.flush().await.unwrap();
        pool.store.close().await.unwrap();
        assert_valid(&disk);
    });
}

/// A device whose reads stop before the answer until they are let go.
#[derive(Clone)]
struct Slow<D> {
    inner: D,
    stopped: Rc<Cell<bool>>,
    let_go: Rc<RefCell<Vec<oneshot::Sender<()>>>>,
}

impl<D: BlockDevice> BlockDevice for Slow<D> {
    fn geometry(&self) -> &Geometry {
        self.inner.geometry()
    }

    async fn read(&self, start: Lba, buffer: DmaBuffer) -> Transfer {
        if self.stopped.get() {
            let (let_go, waiting) = oneshot::channel();
            self.let_go.borrow_mut().push(let_go);
            waiting.await.unwrap();
        }
        self.inner.read(start, buffer).await
    }

    async fn write(&self, start: Lba, buffer: DmaBuffer, durability: Durability) -> Transfer {
        self.inner.write(start, buffer, durability).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.inner.flush().await
    }

    async fn discard(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        self.inner.discard(start, blocks).await
    }

    async fn write_zeroes(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        self.inner.write_zeroes(start, blocks).await
    }

    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}

#[test]
fn a_cluster_is_not_reused_while_a_read_of_it_is_under_way() {
    let bench = Bench::new();
    let inner = disk().channel(&bench.reactor);
    let device = Slow { inner, stopped: Rc::default(), let_go: Rc::default() };
    bench.run(async {
        let pool = bench.pool(device.clone()).await;
        let (one, two) = (pool.thin("one", 1).await, pool.thin("two", 100).await);
        pool.write(&one, 0, 16, 1).await.unwrap();
        one.flush().await.unwrap();
        device.stopped.set(true);
        let reading = {
            let (one, buffer) = (one.clone(), bench.buffer(BLOCK, 9));
            bench.reactor.task(async move { one.read(ByteOffset(0), buffer).await })
        };
        bench.reactor.sleep(Duration::from_secs(1)).await;
        let free = u64::from(pool.store.info().free_clusters.0);
        one.discard(ByteOffset(0), ByteCount(CLUSTER)).await.unwrap();
        one.flush().await.unwrap();
        for cluster in 0..free {
            pool.write(&two, cluster * PER_CLUSTER, 1, 2).await.unwrap();
        }
        let waiting = {
            let (two, buffer) = (two.clone(), bench.buffer(BLOCK, 3));
            let offset = ByteOffset(free * CLUSTER);
            bench.reactor.task(async move { two.write(offset, buffer, Durability::Cached).await })
        };
        bench.reactor.sleep(Duration::from_secs(1)).await;
        assert_eq!(u64::from(two.allocated_clusters().0), free, "the last cluster waits");
        device.stopped.set(false);
        device.let_go.take().into_iter().for_each(|let_go| let_go.send(()).unwrap());
        let read = reading.await.unwrap();
        assert!(read.iter().all(|byte| *byte == 1), "old, or zeros, but not another volume's");
        waiting.await.unwrap();
        assert_eq!(u64::from(two.allocated_clusters().0), free + 1);
    });
}

#[test]
fn volumes_are_used_from_several_reactors() {
    let device = MemoryDevice::new(ByteCount(32 << 20), BlockSize::B4096);
    let (send_remote, remotes) = crossbeam_channel::bounded(2);
    let (done, all_done) = oneshot::channel::<()>();
    let options = |index| lvolfs::reactor::ReactorOptions {
        index,
        clock: lvolfs::reactor::Clock::real(),
        ..lvolfs::reactor::ReactorOptions::deterministic()
    };
    let owner = {
        let device = device.clone();
        std::thread::spawn(move || {
            let bench = Bench::with(options(0));
            bench.run(async {
                let pool = bench.pool(device.channel()).await;
                pool.thin("v", 200).await;
                for _ in 0..2 {
                    send_remote.send((pool.store.remote().unwrap(), pool.id("v"))).unwrap();
                }
                all_done.await.unwrap();
                let volume = pool.volume("v").await;
                let blocks = pool.blocks(&volume).await;
                pool.store.close().await.unwrap();
                blocks
            })
        })
    };
    let writers = [1_u8, 2].map(|index| {
        let (device, remotes) = (device.clone(), remotes.clone());
        std::thread::spawn(move || {
            let bench = Bench::with(options(index.into()));
            let (remote, id) = remotes.recv().unwrap();
            bench.run(async {
                let device = device.channel();
                let io = StoreIo::attach(remote, &bench.reactor, device, &bench.arena).await;
                let volume = io.unwrap().volume(id).await.unwrap();
                for block in 0..200 * PER_CLUSTER {
                    // Both write each cluster: odd blocks the one, even ones the other.
                    if block % 2 == u64::from(index) - 1 && block % 7 < 4 {
                        let buffer = bench.buffer(BLOCK, index);
                        let offset = ByteOffset(block * BLOCK as u64);
                        volume.write(offset, buffer, Durability::Cached).await.unwrap();
                    }
                    if block % 100 == 0 {
                        volume.flush().await.unwrap();
                    }
                    let cluster = block / PER_CLUSTER;
                    if index == 1 && block % (10 * PER_CLUSTER) == 0 && cluster >= 20 {
                        let offset = ByteOffset((cluster - 20) / 20 * 20 * CLUSTER);
                        volume.discard(offset, ByteCount(CLUSTER)).await.unwrap();
                    }
                }
            });
        })
    });
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    done.send(()).unwrap();
    let blocks = owner.join().unwrap();
    for (block, found) in (0..).zip(blocks) {
        let expected = if block % 7 < 4 { 1 + (block % 2) as u8 } else { 0 };
        // The other writer may come to a discarded cluster before or after it was discarded.
        let discarded = (block / PER_CLUSTER).is_multiple_of(20);
        assert!(found == expected || (discarded && found == 0), "block {block}: {found}");
    }
}

#[test]
fn a_closed_pool_answers_nothing_more() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let volume = pool.thin("v", 8).await;
        pool.write(&volume, 3, 1, 1).await.unwrap();
        pool.store.close().await.unwrap();
        assert_eq!(pool.write(&volume, 3, 1, 1).await, Err(Error::Closed));
        assert_eq!(volume.flush().await, Err(Error::Closed));
        assert_eq!(pool.store.close().await, Err(Error::Closed));
        assert_eq!(pool.store.rename("x").await, Err(Error::Closed));
        assert_eq!(pool.store.info().state, StoreState::Closed);
        assert!(pool.store.remote().is_err());
        let before = validated(&disk);
        assert!(before.clean && before.findings.is_empty(), "{:?}", before.findings);
        let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
        assert!(pool.store.recovery().clean);
        assert_eq!(pool.blocks(&pool.volume("v").await).await[3], 1);
        assert!(validated(&disk).clean, "reading leaves it clean");
        pool.write(&pool.volume("v").await, 100, 1, 1).await.unwrap();
        pool.volume("v").await.flush().await.unwrap();
        assert!(!validated(&disk.cut_keep(0)).clean);
    });
}
