//! Volumes whose parent is a device outside of the pool.

use lvolfs::block::BlockDevice;
use lvolfs::lvol::{
    Error, External, ExternalName, NewRelative, ReadOnlyReason, external_name, stored_name,
};
use lvolfs::sim::{SimChannel, SimDisk, SimOptions};
use lvolfs::units::{BlobId, BlockSize, ByteCount, ByteOffset};
use uuid::Uuid;

use super::bench::{BLOCK, Bench, CLUSTER, Pool, assert_valid, disk};

const PARENT: Uuid = Uuid::from_u128(0xe5);

/// A device of `clusters` clusters and `blocks` blocks, each block filled with its number and 100.
fn parent(bench: &Bench, clusters: u64, blocks: u64, block_size: BlockSize) -> SimChannel {
    let bytes = clusters * CLUSTER + blocks * BLOCK as u64;
    let image: Vec<u8> = (0..bytes).map(|at| number(at / BLOCK as u64)).collect();
    let options = SimOptions { block_size, ..SimOptions::new(ByteCount(bytes)) };
    SimDisk::with_image(options, &image).channel(&bench.reactor)
}

/// What block `block` of the parent is filled with.
fn number(block: u64) -> u8 {
    (100 + block % 100) as u8
}

fn name() -> ExternalName {
    external_name(&stored_name(PARENT))
}

fn attach(pool: &Pool<SimChannel>, device: &SimChannel) {
    pool.io.attach_external(&name(), External::Device(device.clone()));
    pool.store.attach_external(&name(), External::Device(device.clone()));
}

async fn clone(pool: &Pool<SimChannel>, name: &str) -> BlobId {
    let new = NewRelative::named(name);
    pool.store.clone_external(&stored_name(PARENT), new).await.unwrap().id
}

fn shown(blocks: std::ops::Range<u64>) -> Vec<u8> {
    blocks.map(number).collect()
}

#[test]
fn a_clone_shows_the_device_and_keeps_what_is_written() {
    let bench = Bench::new();
    for block_size in [BlockSize::B512, BlockSize::B4096] {
        let disk = disk();
        bench.run(async {
            let pool = bench.pool(disk.channel(&bench.reactor)).await;
            let new = NewRelative::named("v");
            let missing = pool.store.clone_external(&stored_name(PARENT), new).await;
            assert_eq!(missing, Err(Error::ExternalParent), "it is not attached");
            // Three clusters and three blocks: the last cluster ends in zeros.
            let device = parent(&bench, 3, 3, block_size);
            attach(&pool, &device);
            let id = clone(&pool, "v").await;
            let info = pool.store.volume(id).unwrap();
            assert_eq!((info.size.0, info.allocated.0, info.thin), (4 * CLUSTER, 0, true));
            assert_eq!(info.external_parent, Some(stored_name(PARENT)));
            assert!(!info.degraded && info.read_only.is_none());
            let volume = pool.volume("v").await;
            let expected = [shown(0..51), vec![0; 13]].concat();
            assert_eq!(pool.blocks(&volume).await, expected);
            assert_eq!(volume.next_data(ByteOffset(5)), Some(ByteOffset(5)));
            assert_eq!(volume.next_hole(ByteOffset(0)), Some(ByteOffset(4 * CLUSTER)));

            // The rest of the cluster comes along; zeros stay zeros.
            pool.write(&volume, 20, 1, 7).await.unwrap();
            pool.write(&volume, 50, 1, 8).await.unwrap();
            let (offset, length) = (ByteOffset(0), ByteCount(CLUSTER));
            volume.discard(offset, length).await.unwrap();
            volume.write_zeroes(ByteOffset(33 * 4096), ByteCount(4096)).await.unwrap();
            let mut expected = expected;
            expected[..16].fill(0);
            (expected[20], expected[50], expected[33]) = (7, 8, 0);
            assert_eq!(pool.blocks(&volume).await, expected);
            volume.flush().await.unwrap();
            pool.store.close().await.unwrap();
            assert_valid(&disk);
            let counters = device.counters();
            assert_eq!((counters.writes, counters.discards), (0, 0), "the parent is only read");

            // Degraded, and back.
            let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
            assert_eq!(pool.store.external_parents(), [name()]);
            let info = pool.store.find("v").unwrap();
            assert!(info.degraded);
            assert_eq!(info.read_only, Some(ReadOnlyReason::ExternalParent));
            attach(&pool, &device);
            let volume = pool.volume("v").await;
            assert_eq!(pool.blocks(&volume).await, expected);
            pool.store.close().await.unwrap();
        });
    }
}

#[test]
fn without_the_device_nothing_is_made_up() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let device = parent(&bench, 4, 0, BlockSize::B4096);
        attach(&pool, &device);
        let id = clone(&pool, "v").await;
        let volume = pool.volume("v").await;
        pool.write(&volume, 16, 1, 7).await.unwrap();
        pool.store.snapshot_volume(id, NewRelative::named("s")).await.unwrap();
        let snapshot = pool.id("s");
        pool.store.clone_volume(snapshot, NewRelative::named("c")).await.unwrap();
        pool.store.detach_external(&name());
        pool.io.detach_external(&name());
        let reads = async |name: &str, block: u64, blocks: usize| {
            let volume = pool.volume(name).await;
            let buffer = bench.buffer(blocks * BLOCK, 0xee);
            let read = volume.read(ByteOffset(block * BLOCK as u64), buffer).await;
            read.map(|buffer| buffer[0]).map_err(|failed| failed.error)
        };
        for name in ["v", "s", "c"] {
            assert!(pool.store.find(name).unwrap().degraded, "{name}");
            assert_eq!(reads(name, 16, 1).await, Ok(7), "{name}: its own, or its snapshot's");
            assert_eq!(reads(name, 17, 1).await, Ok(number(17)), "{name}: copied with it");
            for (block, blocks) in [(0, 1), (15, 2), (31, 2), (16, 32)] {
                let read = reads(name, block, blocks).await;
                assert_eq!(read, Err(Error::ExternalParent), "{name}: {block}, {blocks}");
            }
        }
        for name in ["v", "c"] {
            let volume = pool.volume(name).await;
            let refused = pool.write(&volume, 0, 1, 1).await;
            assert!(matches!(refused, Err(Error::ReadOnly { .. })), "{name}: {refused:?}");
        }
        let reason = ReadOnlyReason::ExternalParent;
        let refused = Err(Error::ReadOnly { reason });
        assert_eq!(pool.store.inflate_volume(pool.id("c")).await, refused);
        assert_eq!(pool.store.decouple_volume(id).await, refused);
        assert_eq!(pool.store.resize_volume(id, ByteCount(9 * CLUSTER)).await, refused);
        attach(&pool, &device);
        assert_eq!(reads("c", 31, 2).await, Ok(number(31)));
        // Deleting needs nothing of the parent.
        pool.store.detach_external(&name());
        pool.store.delete_volume(pool.id("c")).await.unwrap();
        pool.store.close().await.unwrap();
    });
    assert_valid(&disk);
}

#[test]
fn relatives_of_a_clone_show_the_device_too() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let device = parent(&bench, 4, 0, BlockSize::B4096);
        attach(&pool, &device);
        let id = clone(&pool, "v").await;
        let volume = pool.volume("v").await;
        pool.write(&volume, 0, 1, 1).await.unwrap();
        pool.store.snapshot_volume(id, NewRelative::named("s")).await.unwrap();
        pool.write(&volume, 16, 1, 2).await.unwrap();
        pool.store.clone_volume(pool.id("s"), NewRelative::named("c")).await.unwrap();
        let of_snapshot = [vec![1], shown(1..64)].concat();
        let mut of_volume = of_snapshot.clone();
        of_volume[16] = 2;
        let expect = async |name: &str, expected: &[u8]| {
            assert_eq!(pool.blocks(&pool.volume(name).await).await, expected, "{name}");
        };
        for (name, expected) in [("s", &of_snapshot), ("c", &of_snapshot), ("v", &of_volume)] {
            expect(name, expected).await;
        }
        // What a smaller or larger size shows is zeros, not the device again.
        let c = pool.id("c");
        pool.store.resize_volume(c, ByteCount(2 * CLUSTER)).await.unwrap();
        pool.store.resize_volume(c, ByteCount(6 * CLUSTER)).await.unwrap();
        expect("c", &[of_snapshot[..32].to_vec(), vec![0; 64]].concat()).await;
        pool.store.resize_volume(c, ByteCount(4 * CLUSTER)).await.unwrap();
        // Decoupled from the snapshot, it has the device itself; then nothing at all.
        pool.store.decouple_volume(c).await.unwrap();
        assert_eq!(pool.store.volume(c).unwrap().external_parent, Some(stored_name(PARENT)));
        expect("c", &[of_snapshot[..32].to_vec(), vec![0; 32]].concat()).await;
        pool.store.decouple_volume(c).await.unwrap();
        let info = pool.store.volume(c).unwrap();
        assert_eq!((info.external_parent, info.parent), (None, None));
        assert_eq!(info.allocated.0, 4, "all that it showed is its own");
        // Merging the snapshot away, then all of its own.
        pool.store.delete_volume(pool.id("s")).await.unwrap();
        expect("v", &of_volume).await;
        assert_eq!(pool.store.volume(id).unwrap().external_parent, Some(stored_name(PARENT)));
        pool.store.inflate_volume(id).await.unwrap();
        assert_eq!(pool.store.external_parents(), Vec::<ExternalName>::new());
        pool.store.detach_external(&name());
        pool.io.detach_external(&name());
        expect("v", &of_volume).await;
        expect("c", &[of_snapshot[..32].to_vec(), vec![0; 32]].concat()).await;
        pool.store.close().await.unwrap();
    });
    assert_valid(&disk);
}

#[test]
fn a_thin_volume_gets_a_device_as_its_parent() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let device = parent(&bench, 3, 0, BlockSize::B4096);
        let (thin, thick) = (pool.thin("thin", 4).await, pool.thick("thick", 4).await);
        pool.thin("small", 2).await;
        pool.write(&thin, 16, 1, 9).await.unwrap();
        let set = async |name: &str| {
            pool.store.set_external_parent(pool.id(name), &stored_name(PARENT)).await
        };
        assert_eq!(set("thin").await, Err(Error::ExternalParent));
        attach(&pool, &device);
        assert!(matches!(set("thick").await, Err(Error::Unsuitable(_))));
        assert!(matches!(set("small").await, Err(Error::Unsuitable(_))));
        set("thin").await.unwrap();
        let expected = [shown(0..16), vec![9], vec![0; 15], shown(32..48), vec![0; 16]].concat();
        assert_eq!(pool.blocks(&thin).await, expected);
        assert!(pool.blocks(&thick).await.iter().all(|block| *block == 0));
        pool.store.close().await.unwrap();
    });
    assert_valid(&disk);
}

/// The clone is there as a whole or not at all, and so is a parent; what was copied from the
/// device and flushed stays.
#[test]
fn a_power_cut_leaves_a_clone_or_none() {
    let bench = Bench::new();
    let disk = disk();
    let device = parent(&bench, 4, 0, BlockSize::B4096);
    let flushed = bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        attach(&pool, &device);
        let thin = pool.thin("thin", 4).await;
        pool.write(&thin, 0, 1, 9).await.unwrap();
        thin.flush().await.unwrap();
        disk.record();
        clone(&pool, "v").await;
        let volume = pool.volume("v").await;
        pool.write(&volume, 16, 1, 7).await.unwrap();
        volume.flush().await.unwrap();
        let flushed = disk.commands();
        pool.store.set_external_parent(pool.id("thin"), &stored_name(PARENT)).await.unwrap();
        pool.store.inflate_volume(pool.id("v")).await.unwrap();
        flushed
    });
    let mut seen = std::collections::BTreeSet::new();
    for (command, moment) in disk.recorded() {
        for seed in 0..12 {
            let cut = moment.cut(seed);
            assert_valid(&cut);
            bench.run(async {
                let pool = bench.open(cut.channel(&bench.reactor)).await.unwrap();
                attach(&pool, &device);
                let what = format!("command {command}, seed {seed}");
                let thin = pool.blocks(&pool.volume("thin").await).await;
                let (with, without) = (
                    [vec![9], vec![0; 15], shown(16..64)].concat(),
                    [vec![9], vec![0; 63]].concat(),
                );
                assert!(thin == with || thin == without, "{what}");
                seen.insert(("thin", thin == with));
                let Some(info) = pool.store.find("v") else {
                    assert!(command <= flushed, "{what}");
                    seen.insert(("clone", false));
                    return;
                };
                seen.insert(("clone", true));
                seen.insert(("inflated", info.external_parent.is_none()));
                let blocks = pool.blocks(&pool.volume("v").await).await;
                let mut expected = shown(0..64);
                if command > flushed || blocks[16] == 7 {
                    expected[16] = 7;
                }
                assert_eq!(blocks, expected, "{what}");
            });
        }
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
}

/// What a volume has of its own, and nothing else, at the same places.
#[test]
fn a_shallow_copy_moves_what_a_volume_has_of_its_own() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let volume = pool.thin("v", 8).await;
        pool.write(&volume, 0, 16, 1).await.unwrap();
        pool.write(&volume, 48, 1, 2).await.unwrap();
        let id = pool.id("v");
        pool.store.snapshot_volume(id, NewRelative::named("s1")).await.unwrap();
        pool.write(&volume, 5, 1, 3).await.unwrap();
        pool.write(&volume, 80, 16, 4).await.unwrap();
        pool.store.snapshot_volume(id, NewRelative::named("s2")).await.unwrap();
        let target = |clusters: u64| {
            let options = SimOptions {
                block_size: BlockSize::B512,
                ..SimOptions::new(ByteCount(clusters * CLUSTER))
            };
            SimDisk::new(options)
        };
        let (small, large) = (target(7), target(9));
        let channel = large.channel(&bench.reactor);
        let refuse = async |name: &str, disk: &SimDisk| {
            let channel = disk.channel(&bench.reactor);
            pool.store.shallow_copy(pool.id(name), &channel, || {}).await
        };
        assert!(matches!(refuse("v", &large).await, Err(Error::Unsuitable(_))), "not read-only");
        assert!(matches!(refuse("s1", &small).await, Err(Error::Unsuitable(_))), "too small");
        let copied = std::cell::Cell::new(0);
        let count = || copied.set(copied.get() + 1);
        let total = pool.store.check_shallow_copy(pool.id("s2"), &channel).unwrap();
        pool.store.shallow_copy(pool.id("s2"), &channel, count).await.unwrap();
        assert_eq!((total.0, copied.get()), (2, 2));
        let blocks = |disk: &SimDisk| {
            let mut bytes = vec![0; 8 * CLUSTER as usize];
            disk.read_at(0, &mut bytes);
            bytes.chunks(BLOCK).map(|block| block[0]).collect::<Vec<_>>()
        };
        let mut expected = vec![1; 16];
        expected[5] = 3;
        expected.resize(80, 0);
        expected.resize(96, 4);
        expected.resize(128, 0);
        assert_eq!(blocks(&large), expected);
        assert_eq!(large.undecided(), 0, "it is durable");
        // With the parent's copy below it, it is the volume.
        let whole = target(8);
        for name in ["s1", "s2"] {
            let channel = whole.channel(&bench.reactor);
            pool.store.shallow_copy(pool.id(name), &channel, || {}).await.unwrap();
        }
        assert_eq!(blocks(&whole), pool.blocks(&pool.volume("s2").await).await);
        pool.write(&volume, 0, 1, 5).await.unwrap();
        pool.store.close().await.unwrap();
    });
    assert_valid(&disk);
}
