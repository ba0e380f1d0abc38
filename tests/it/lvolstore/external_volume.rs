//! Volumes whose parent is a volume of another pool.

use lvolfs::block::BlockDevice;
use lvolfs::block::fault::{Fault, Faults, Faulty, Operation};
use lvolfs::lvol::{
    EXTERNAL_CHAIN_LIMIT, Error, External, ExternalName, NewRelative, ReadOnlyReason, StoreState,
    external_name, stored_name,
};
use lvolfs::sim::{SimChannel, SimDisk, SimOptions};
use lvolfs::units::{BlobId, BlockSize, ByteCount, ByteOffset};
use uuid::Uuid;

use super::bench::{BLOCK, Bench, CLUSTER, Pool, assert_valid, disk};

fn uuid_of<D: BlockDevice>(pool: &Pool<D>, volume: &str) -> Uuid {
    pool.store.find(volume).unwrap().uuid.unwrap()
}

fn name_of(uuid: Uuid) -> ExternalName {
    external_name(&stored_name(uuid))
}

/// A volume of `parent` is what volumes of `child` call by its UUID.
async fn attach<D: BlockDevice>(
    child: &Pool<D>,
    parent: &Pool<D>,
    volume: &str,
) -> Result<Uuid, Error> {
    let map = parent.store.as_external_parent(parent.id(volume)).await?;
    let uuid = uuid_of(parent, volume);
    let name = name_of(uuid);
    let volume = parent.io.volume_of(map);
    child.io.attach_external(&name, volume.as_parent());
    child.store.attach_external(&name, volume.as_parent());
    Ok(uuid)
}

async fn clone<D: BlockDevice>(
    child: &Pool<D>,
    parent: &Pool<D>,
    volume: &str,
    clone: &str,
) -> Result<BlobId, Error> {
    let uuid = attach(child, parent, volume).await?;
    let made = child.store.clone_external(&stored_name(uuid), NewRelative::named(clone)).await;
    made.map(|info| info.id)
}

async fn snapshot<D: BlockDevice>(pool: &Pool<D>, volume: &str, name: &str) -> BlobId {
    let id = pool.id(volume);
    pool.store.snapshot_volume(id, NewRelative::named(name)).await.unwrap().id
}

async fn first_byte<D: BlockDevice>(
    bench: &Bench,
    pool: &Pool<D>,
    volume: &str,
    block: u64,
) -> Result<u8, Error> {
    let offset = ByteOffset(block * BLOCK as u64);
    let read = pool.volume(volume).await.read(offset, bench.buffer(BLOCK, 0xee)).await;
    read.map(|buffer| buffer[0]).map_err(|failed| failed.error)
}

/// The golden image: four clusters, of which the first was written, then a snapshot of it, and
/// other data in the volume since.
async fn golden<D: BlockDevice>(pool: &Pool<D>) {
    let volume = pool.thin("v", 4).await;
    let blocks = CLUSTER / u64::from(volume.block_size().bytes());
    pool.write(&volume, 0, blocks as usize, 1).await.unwrap();
    pool.write(&volume, 3, 1, 2).await.unwrap();
    pool.write(&volume, 2 * blocks + 1, 1, 3).await.unwrap();
    snapshot(pool, "v", "golden").await;
    pool.write(&volume, 0, 4, 9).await.unwrap();
    pool.write(&volume, 3 * blocks, 4, 9).await.unwrap();
}

/// A disk of the usual size with blocks of another one.
fn disk_of(block_size: BlockSize) -> SimDisk {
    SimDisk::new(SimOptions { block_size, ..SimOptions::new(ByteCount(4 << 20)) })
}

#[test]
fn a_clone_shows_a_snapshot_of_another_pool_and_keeps_what_is_written() {
    use BlockSize as B;
    let bench = Bench::new();
    for (outer, inner) in [(B::B4096, B::B4096), (B::B512, B::B4096), (B::B4096, B::B512)] {
        let (golden_disk, disk) = (disk_of(outer), disk_of(inner));
        bench.run(async {
            let device = golden_disk.channel(&bench.reactor);
            let parent = bench.pool(device.clone()).await;
            golden(&parent).await;
            let pool = bench.pool(disk.channel(&bench.reactor)).await;
            clone(&pool, &parent, "golden", "c").await.unwrap();
            let info = pool.store.find("c").unwrap();
            assert_eq!((info.size.0, info.allocated.0, info.thin), (4 * CLUSTER, 0, true));
            assert_eq!(info.shows, Some(name_of(uuid_of(&parent, "golden"))));
            assert!(!info.degraded && info.read_only.is_none());
            let before = device.counters();
            let volume = pool.volume("c").await;
            let mut expected = parent.content(&parent.volume("golden").await).await.unwrap();
            assert_eq!(pool.content(&volume).await.unwrap(), expected);

            // A first write takes the rest of its cluster along.
            let unit = u64::from(volume.block_size().bytes());
            let write = async |block: u64, value: u8, expected: &mut Vec<u8>| {
                pool.write(&volume, block, 1, value).await.unwrap();
                expected[(block * unit) as usize..][..unit as usize].fill(value);
            };
            write(1, 7, &mut expected).await;
            write(2 * CLUSTER / unit, 8, &mut expected).await;
            assert_eq!(pool.content(&volume).await.unwrap(), expected);
            snapshot(&pool, "c", "s").await;
            write(3 * CLUSTER / unit + 1, 6, &mut expected).await;
            assert_eq!(pool.content(&volume).await.unwrap(), expected);
            volume.flush().await.unwrap();
            pool.store.close().await.unwrap();
            assert_valid(&disk);

            // Opened without the other pool, it makes nothing up.
            let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
            let info = pool.store.find("c").unwrap();
            assert!(info.degraded);
            assert_eq!(info.read_only, Some(ReadOnlyReason::ExternalParent));
            assert_eq!(pool.store.missing_externals(), pool.store.external_parents());
            assert_eq!(first_byte(&bench, &pool, "c", 16).await, Err(Error::ExternalParent));
            attach(&pool, &parent, "golden").await.unwrap();
            assert!(pool.store.missing_externals().is_empty());
            let volume = pool.volume("c").await;
            assert_eq!(pool.content(&volume).await.unwrap(), expected);
            // The snapshot below it, too, and all of it once it is its own.
            pool.store.inflate_volume(pool.id("c")).await.unwrap();
            assert_eq!(pool.content(&volume).await.unwrap(), expected);
            assert_eq!(pool.store.volume(pool.id("c")).unwrap().shows, None);
            pool.store.close().await.unwrap();
            let after = device.counters();
            assert_eq!((after.writes, after.discards), (before.writes, before.discards));
            assert!(after.bytes_read > before.bytes_read);
            parent.store.close().await.unwrap();
        });
        assert_valid(&disk);
        assert_valid(&golden_disk);
    }
}

/// Three pools, one after the other, each with something of its own.
#[test]
fn parents_of_parents_show_through() {
    let bench = Bench::new();
    let disks = [disk(), disk(), disk()];
    bench.run(async {
        let a = bench.pool(disks[0].channel(&bench.reactor)).await;
        golden(&a).await;
        let b = bench.pool(disks[1].channel(&bench.reactor)).await;
        clone(&b, &a, "golden", "v").await.unwrap();
        b.write(&b.volume("v").await, 5, 1, 20).await.unwrap();
        snapshot(&b, "v", "s").await;
        let c = bench.pool(disks[2].channel(&bench.reactor)).await;
        clone(&c, &b, "s", "v").await.unwrap();
        let volume = c.volume("v").await;
        let mut expected = a.blocks(&a.volume("golden").await).await;
        expected[5] = 20;
        assert_eq!(c.blocks(&volume).await, expected);
        // A write over what lies two pools away.
        c.write(&volume, 32, 1, 30).await.unwrap();
        expected[32] = 30;
        assert_eq!(c.blocks(&volume).await, expected);
        assert_eq!(expected[33], 3, "it was copied with it");

        // The first parent is missing: whoever shows it is degraded, and is no parent.
        let name = name_of(uuid_of(&a, "golden"));
        b.store.detach_external(&name);
        b.io.detach_external(&name);
        assert!(b.store.find("s").unwrap().degraded);
        let refused = b.store.as_external_parent(b.id("s")).await.map(|_| ());
        assert_eq!(refused, Err(Error::ExternalParent));
        assert_eq!(first_byte(&bench, &c, "v", 48).await, Err(Error::ExternalParent));
        let refused = c.write(&volume, 48, 1, 1).await;
        assert_eq!(refused, Err(Error::ExternalParent), "what cannot be copied is not written");
        assert_eq!(first_byte(&bench, &c, "v", 5).await, Ok(20), "of the pool between");
        attach(&b, &a, "golden").await.unwrap();
        assert_eq!(c.blocks(&volume).await, expected);
        c.store.decouple_volume(c.id("v")).await.unwrap();
        assert_eq!(c.store.external_parents(), Vec::<ExternalName>::new());
        for pool in [&a, &b] {
            pool.store.close().await.unwrap();
        }
        assert_eq!(c.blocks(&volume).await, expected);
        c.store.close().await.unwrap();
    });
    disks.iter().for_each(assert_valid);
}

/// Two pools of which each has a parent in the other; then volumes that name each other; then one
/// that names itself. A read ends.
#[test]
fn a_circle_of_parents_ends_in_an_error() {
    let bench = Bench::new();
    let disks = [disk(), disk()];
    bench.run(async {
        let a = bench.pool(disks[0].channel(&bench.reactor)).await;
        let b = bench.pool(disks[1].channel(&bench.reactor)).await;
        golden(&a).await;
        golden(&b).await;
        // Devices stand for what is not there yet.
        let stand_in = |pool: &Pool<SimChannel>, uuid: Uuid| {
            let device = disk().channel(&bench.reactor);
            pool.io.attach_external(&name_of(uuid), External::Device(device.clone()));
            pool.store.attach_external(&name_of(uuid), External::Device(device));
        };
        let make = async |pool: &Pool<SimChannel>, parent: Uuid, clone: &str| {
            stand_in(pool, parent);
            let new = NewRelative::named(clone);
            let info = pool.store.clone_external(&stored_name(parent), new).await.unwrap();
            info.uuid.unwrap()
        };
        let set_parent = async |pool: &Pool<SimChannel>, name: &str, parent: Uuid| {
            stand_in(pool, parent);
            let id = pool.id(name);
            pool.store.set_external_parent(id, &stored_name(parent)).await.unwrap();
            pool.store.set_read_only(id).await.unwrap();
        };
        let x = make(&a, Uuid::from_u128(1), "x").await;
        let y = make(&b, x, "y").await;
        make(&b, x, "w").await;
        set_parent(&a, "x", y).await;
        b.store.set_read_only(b.id("y")).await.unwrap();
        // a/x is a clone of b/y, which is a clone of a/x.
        attach(&a, &b, "y").await.unwrap();
        attach(&b, &a, "x").await.unwrap();
        for (pool, name) in [(&a, "x"), (&b, "y"), (&b, "w")] {
            let read = first_byte(&bench, pool, name, 1).await;
            assert_eq!(read, Err(Error::ExternalDepth), "{name}");
        }
        let w = b.volume("w").await;
        assert_eq!(b.write(&w, 1, 1, 1).await, Err(Error::ExternalDepth));
        // Of itself.
        let own = make(&a, y, "own").await;
        set_parent(&a, "own", own).await;
        attach(&a, &a, "own").await.unwrap();
        assert_eq!(first_byte(&bench, &a, "own", 1).await, Err(Error::ExternalDepth));
        a.store.close().await.unwrap();
        b.store.close().await.unwrap();
    });
}

#[test]
fn a_chain_is_read_as_far_as_the_limit() {
    let bench = Bench::new();
    bench.run(async {
        let mut pools = vec![bench.pool(disk().channel(&bench.reactor)).await];
        golden(&pools[0]).await;
        let mut parent = "golden";
        for _ in 0..=EXTERNAL_CHAIN_LIMIT {
            let pool = bench.pool(disk().channel(&bench.reactor)).await;
            clone(&pool, pools.last().unwrap(), parent, "c").await.unwrap();
            pool.store.set_read_only(pool.id("c")).await.unwrap();
            pools.push(pool);
            parent = "c";
        }
        let limit = usize::from(EXTERNAL_CHAIN_LIMIT);
        assert_eq!(first_byte(&bench, &pools[limit], "c", 3).await, Ok(2));
        let deeper = first_byte(&bench, &pools[limit + 1], "c", 3).await;
        assert_eq!(deeper, Err(Error::ExternalDepth));
    });
}

#[test]
fn a_parent_that_is_gone_or_poisoned_never_shows_zeros() {
    let bench = Bench::new();
    let (faults, golden_disk, disk) = (Faults::default(), disk(), disk());
    bench.run(async {
        let device = Faulty::new(golden_disk.channel(&bench.reactor), faults.clone());
        let parent = bench.pool(device).await;
        golden(&parent).await;
        let pool = Faulty::new(disk.channel(&bench.reactor), Faults::default());
        let pool = bench.pool(pool).await;
        let writable = parent.store.as_external_parent(parent.id("v")).await.map(|_| ());
        assert!(matches!(writable, Err(Error::Unsuitable(_))), "{writable:?}");
        clone(&pool, &parent, "golden", "c").await.unwrap();
        // Its device fails once: that is told as the parent's failure, not as the pool's.
        let fault = Fault { operation: Operation::Read, blocks: None, after: 0, times: 1 };
        faults.inject(fault.clone());
        let failed = first_byte(&bench, &pool, "c", 3).await;
        assert!(matches!(failed, Err(Error::ExternalVolume(_))), "{failed:?}");
        let free = pool.store.info().free_clusters;
        faults.inject(fault);
        let volume = pool.volume("c").await;
        let failed = pool.write(&volume, 1, 1, 1).await;
        assert!(matches!(failed, Err(Error::ExternalVolume(_))), "{failed:?}");
        assert_eq!(pool.store.info().free_clusters, free, "the cluster is back");
        assert_eq!(first_byte(&bench, &pool, "c", 3).await, Ok(2));

        // Poisoned: what was on the medium before goes on being shown, and there are no new clones.
        let flush = Fault { operation: Operation::Flush, blocks: None, after: 0, times: 1 };
        faults.inject(flush);
        let read_only = parent.store.set_read_only(parent.id("v")).await;
        assert!(matches!(read_only, Err(Error::Poisoned { .. })), "{read_only:?}");
        assert!(matches!(parent.store.info().state, StoreState::Poisoned(_)));
        assert_eq!(first_byte(&bench, &pool, "c", 3).await, Ok(2));
        // That "v" is read-only is not on the medium.
        for name in ["v", "golden"] {
            let unknown = parent.store.as_external_parent(parent.id(name)).await.map(|_| ());
            assert!(matches!(unknown, Err(Error::Poisoned { .. })), "{name}: {unknown:?}");
        }

        drop(parent.store.close().await);
        let closed = first_byte(&bench, &pool, "c", 3).await;
        assert_eq!(closed, Err(Error::ExternalVolume(Box::new(Error::Closed))));
        let uuid = uuid_of(&pool, "c");
        let name = stored_name(uuid);
        assert_eq!(
            pool.store.clone_external(&name, NewRelative::named("d")).await,
            Err(Error::ExternalParent)
        );
        drop(parent);
        assert_eq!(first_byte(&bench, &pool, "c", 3).await, Err(Error::ExternalParent));
        assert_eq!(pool.write(&volume, 1, 1, 1).await, Err(Error::ExternalParent));
        pool.store.close().await.unwrap();
    });
    assert_valid(&disk);
}

/// A pool says who needs a parent, and lets go of it when nobody does, for good.
#[test]
fn a_parent_is_let_go_when_nobody_needs_it() {
    let bench = Bench::new();
    let (golden_disk, disk) = (disk(), disk());
    bench.run(async {
        let parent = bench.pool(golden_disk.channel(&bench.reactor)).await;
        golden(&parent).await;
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let c = clone(&pool, &parent, "golden", "c").await.unwrap();
        let d = clone(&pool, &parent, "golden", "d").await.unwrap();
        snapshot(&pool, "d", "s").await;
        let uuid = uuid_of(&parent, "golden");
        let name = name_of(uuid);
        let needed = async || pool.store.release_external(&name).await.unwrap();
        let mut both = needed().await;
        both.sort();
        assert_eq!(both, ["c", "s"], "the snapshot has it now");
        pool.store.rename_volume(c, "renamed").await.unwrap();
        pool.store.inflate_volume(d).await.unwrap();
        pool.store.delete_volume(pool.id("s")).await.unwrap();
        assert_eq!(needed().await, ["renamed"]);
        assert_eq!(first_byte(&bench, &pool, "renamed", 3).await, Ok(2));
        pool.store.decouple_volume(c).await.unwrap();
        assert_eq!(needed().await, Vec::<String>::new());
        // What was let go makes no clones any more.
        let new = NewRelative::named("e");
        let refused = pool.store.clone_external(&stored_name(uuid), new).await;
        assert_eq!(refused.map(|_| ()), Err(Error::ExternalParent));
        parent.store.delete_volume(parent.id("golden")).await.unwrap();
        for name in ["renamed", "d"] {
            assert_eq!(first_byte(&bench, &pool, name, 3).await, Ok(2), "{name}");
        }
        pool.store.close().await.unwrap();
        assert_eq!(pool.store.release_external(&name).await, Err(Error::Closed));
        parent.store.close().await.unwrap();
    });
    assert_valid(&disk);
    assert_valid(&golden_disk);
}

/// A clone with a damaged extent page is not served, and may be repaired: its parent stays.
#[test]
fn a_clone_in_quarantine_keeps_its_parent() {
    let bench = Bench::new();
    let (golden_disk, disk) = (disk(), disk());
    bench.run(async {
        let parent = bench.pool(golden_disk.channel(&bench.reactor)).await;
        golden(&parent).await;
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        clone(&pool, &parent, "golden", "c").await.unwrap();
        pool.write(&pool.volume("c").await, 1, 1, 7).await.unwrap();
        pool.store.close().await.unwrap();
        let name = name_of(uuid_of(&parent, "golden"));
        let mut image = vec![0; disk.size().get() as usize];
        disk.read_at(0, &mut image);
        let mut seen = 0;
        // One of the first pages is the extent page.
        for page in 1..128 {
            let byte = page * BLOCK + 100;
            image[byte] ^= 1;
            let damaged = SimDisk::with_image(SimOptions::new(disk.size()), &image);
            image[byte] ^= 1;
            let Ok(pool) = bench.open(damaged.channel(&bench.reactor)).await else { continue };
            let quarantined = pool.store.quarantined();
            if let Some(found) = quarantined.iter().find(|found| found.name.as_deref() == Some("c"))
            {
                assert_eq!(found.external_parent.as_ref(), Some(&name), "page {page}");
                let missing = pool.store.missing_externals();
                assert_eq!(missing, std::slice::from_ref(&name), "page {page}");
                let needed = pool.store.release_external(&name).await.unwrap();
                assert_eq!(needed, ["c (in quarantine)"], "page {page}");
                seen += 1;
            }
            drop(pool.store.close().await);
        }
        assert_eq!(seen, 1);
        parent.store.close().await.unwrap();
    });
}

/// First writes over a volume of another pool, cut at each command.
#[test]
fn a_power_cut_keeps_what_was_flushed_over_a_volume_of_another_pool() {
    let bench = Bench::new();
    let (golden_disk, disk) = (disk(), disk());
    let (parent, before, flushed) = bench.run(async {
        let parent = bench.pool(golden_disk.channel(&bench.reactor)).await;
        golden(&parent).await;
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        clone(&pool, &parent, "golden", "c").await.unwrap();
        let volume = pool.volume("c").await;
        let before = pool.blocks(&volume).await;
        disk.record();
        pool.write(&volume, 1, 1, 7).await.unwrap();
        pool.write(&volume, 33, 1, 7).await.unwrap();
        volume.flush().await.unwrap();
        let flushed = disk.commands();
        pool.write(&volume, 2, 1, 8).await.unwrap();
        pool.write(&volume, 50, 1, 8).await.unwrap();
        volume.flush().await.unwrap();
        pool.store.decouple_volume(pool.id("c")).await.unwrap();
        (parent, before, flushed)
    });
    let mut seen = std::collections::BTreeSet::new();
    for (command, moment) in disk.recorded() {
        for seed in 0..12 {
            let cut = moment.cut(seed);
            assert_valid(&cut);
            bench.run(async {
                let what = format!("command {command}, seed {seed}");
                let pool = bench.open(cut.channel(&bench.reactor)).await.unwrap();
                attach(&pool, &parent, "golden").await.unwrap();
                let blocks = pool.blocks(&pool.volume("c").await).await;
                for (block, value) in blocks.iter().enumerate() {
                    let written = match block {
                        1 | 33 => 7,
                        2 | 50 => 8,
                        _ => before[block],
                    };
                    let old = *value == before[block];
                    assert!(old || *value == written, "{what}: block {block} is {value}");
                    if command > flushed && written == 7 {
                        assert_eq!(*value, 7, "{what}: block {block} was flushed");
                    }
                    if written != before[block] {
                        seen.insert((block, old));
                    }
                }
                seen.insert((99, pool.store.find("c").unwrap().external_parent.is_none()));
            });
        }
    }
    assert_eq!(seen.len(), 10, "each block old and new, before and after decoupling: {seen:?}");
}
