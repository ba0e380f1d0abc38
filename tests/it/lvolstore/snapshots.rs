//! Snapshots, clones, and volumes that leave their parents.

use std::cell::Cell;
use std::rc::Rc;

use lvolfs::lvol::{Error, NewRelative, NewVolume, ReadOnlyReason, Resource, VolumeIo};
use lvolfs::sim::{SimChannel, SimDisk, SimOptions};
use lvolfs::units::{ByteCount, ByteOffset, ClusterCount};

use super::bench::{BLOCK, Bench, CLUSTER, Pool, assert_valid, disk, validated};

const PER_CLUSTER: u64 = CLUSTER / BLOCK as u64;

async fn snapshot(pool: &Pool<SimChannel>, of: &str, name: &str) -> VolumeIo<SimChannel> {
    pool.store.snapshot_volume(pool.id(of), NewRelative::named(name)).await.unwrap();
    pool.volume(name).await
}

async fn clone(pool: &Pool<SimChannel>, of: &str, name: &str) -> VolumeIo<SimChannel> {
    pool.store.clone_volume(pool.id(of), NewRelative::named(name)).await.unwrap();
    pool.volume(name).await
}

/// What every volume holds, by name; the same after a crash in which nothing unflushed survived,
/// and after an orderly close.
async fn assert_kept(bench: &Bench, disk: &SimDisk, pool: &Pool<SimChannel>) {
    let mut expected = Vec::new();
    for info in pool.store.volumes() {
        let volume = pool.volume(&info.name).await;
        volume.flush().await.unwrap();
        expected.push((info.name.clone(), info.parent, pool.blocks(&volume).await));
    }
    let crashed = disk.cut_keep(0);
    assert_valid(&crashed);
    pool.store.close().await.unwrap();
    assert_valid(disk);
    for disk in [&crashed, disk] {
        let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
        assert_eq!(pool.store.quarantined(), []);
        for (name, parent, blocks) in &expected {
            let info = pool.store.find(name).unwrap();
            assert_eq!(info.parent, *parent, "{name}");
            assert!(pool.blocks(&pool.volume(name).await).await == *blocks, "{name}");
        }
        assert_eq!(pool.store.volumes().len(), expected.len());
        pool.store.close().await.unwrap();
        assert_eq!(pool.store.info().free_clusters, validated(disk).free_clusters);
    }
}

#[test]
fn a_chain_of_snapshots_and_clones_keeps_what_each_had() {
    for thin in [true, false] {
        let (bench, disk) = (Bench::new(), disk());
        bench.run(async {
            let pool = bench.pool(disk.channel(&bench.reactor)).await;
            let size = ByteCount(4 * CLUSTER);
            pool.store
                .create_volume(NewVolume { thin, ..NewVolume::thin("v", size) })
                .await
                .unwrap();
            let v = pool.volume("v").await;
            pool.write(&v, 0, 20, 1).await.unwrap();
            let one = snapshot(&pool, "v", "one").await;
            assert_eq!(v.allocated_clusters(), ClusterCount(0));
            pool.write(&v, 1, 1, 2).await.unwrap();
            assert_eq!(v.allocated_clusters(), ClusterCount(1), "a first write copies a cluster");
            let two = snapshot(&pool, "v", "two").await;
            pool.write(&v, 2, 1, 3).await.unwrap();
            let c = clone(&pool, "one", "c").await;
            pool.write(&c, 3, 1, 4).await.unwrap();
            assert_eq!(pool.blocks(&one).await[..5], [1, 1, 1, 1, 1]);
            assert_eq!(pool.blocks(&two).await[..5], [1, 2, 1, 1, 1]);
            assert_eq!(pool.blocks(&v).await[..5], [1, 2, 3, 1, 1]);
            assert_eq!(pool.blocks(&c).await[..5], [1, 1, 1, 4, 1]);
            assert!(pool.blocks(&v).await[20..].iter().all(|byte| *byte == 0));
            let marked = Error::ReadOnly { reason: ReadOnlyReason::Marked };
            assert_eq!(pool.write(&one, 0, 1, 9).await, Err(marked.clone()));
            let again = pool.store.snapshot_volume(one.map().blob(), NewRelative::named("x")).await;
            assert_eq!(again.unwrap_err(), marked);
            let of_writable =
                pool.store.clone_volume(v.map().blob(), NewRelative::named("x")).await;
            assert!(matches!(of_writable, Err(Error::Unsuitable(_))));
            let info = pool.store.find("one").unwrap();
            assert!(info.snapshot && info.clones.len() == 2);
            let refused = pool.store.delete_volume(info.id).await;
            let names = vec!["two".to_owned(), "c".to_owned()];
            assert_eq!(refused, Err(Error::HasClones { names }));
            assert_kept(&bench, &disk, &pool).await;
        });
    }
}

#[test]
fn a_snapshot_with_one_clone_is_merged_into_it() {
    let (bench, disk) = (Bench::new(), disk());
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let v = pool.thin("v", 6).await;
        pool.write(&v, 0, 3 * PER_CLUSTER as usize, 1).await.unwrap();
        snapshot(&pool, "v", "one").await;
        pool.write(&v, 0, 2 * PER_CLUSTER as usize, 2).await.unwrap();
        snapshot(&pool, "v", "two").await;
        pool.write(&v, PER_CLUSTER, 1, 3).await.unwrap();
        let before = pool.blocks(&v).await;
        pool.store.delete_volume(pool.id("two")).await.unwrap();
        assert_eq!(v.allocated_clusters(), ClusterCount(2));
        assert_eq!(pool.blocks(&v).await, before);
        assert_eq!(pool.store.find("v").unwrap().parent, Some(pool.id("one")));
        pool.store.delete_volume(pool.id("one")).await.unwrap();
        assert_eq!(v.allocated_clusters(), ClusterCount(3));
        assert_eq!(pool.blocks(&v).await, before);
        assert_eq!(pool.store.find("v").unwrap().parent, None);
        pool.write(&v, 0, 1, 7).await.unwrap();
        assert_kept(&bench, &disk, &pool).await;
        let used = pool.store.info().data_clusters.0 - pool.store.info().free_clusters.0;
        assert_eq!(used, 3, "what only the snapshots had is free");
    });
}

#[test]
fn volumes_leave_their_parents() {
    let (bench, disk) = (Bench::new(), disk());
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let v = pool.thin("v", 5).await;
        pool.write(&v, 0, 1, 1).await.unwrap();
        snapshot(&pool, "v", "one").await;
        pool.write(&v, PER_CLUSTER, 1, 2).await.unwrap();
        snapshot(&pool, "v", "two").await;
        pool.write(&v, 2 * PER_CLUSTER, 1, 3).await.unwrap();
        let before = pool.blocks(&v).await;
        pool.store.decouple_volume(v.map().blob()).await.unwrap();
        assert_eq!(v.allocated_clusters(), ClusterCount(2), "only what the parent itself had");
        assert_eq!(pool.store.find("v").unwrap().parent, Some(pool.id("one")));
        assert_eq!(pool.blocks(&v).await, before);
        pool.store.inflate_volume(v.map().blob()).await.unwrap();
        let info = pool.store.find("v").unwrap();
        assert_eq!((info.parent, info.thin, info.allocated), (None, false, ClusterCount(5)));
        assert_eq!(pool.blocks(&v).await, before);
        let alone = pool.store.decouple_volume(v.map().blob()).await;
        assert!(matches!(alone, Err(Error::Unsuitable(_))));
        let w = pool.thin("w", 5).await;
        pool.write(&w, 4 * PER_CLUSTER, 1, 9).await.unwrap();
        pool.store.set_parent(w.map().blob(), pool.id("two")).await.unwrap();
        let mut expected = pool.blocks(&pool.volume("two").await).await;
        expected[4 * PER_CLUSTER as usize] = 9;
        assert_eq!(pool.blocks(&w).await, expected);
        let thick = pool.store.set_parent(v.map().blob(), pool.id("two")).await;
        assert!(matches!(thick, Err(Error::Unsuitable(_))));
        pool.thin("small", 1).await;
        let small = pool.store.set_parent(pool.id("small"), pool.id("two")).await;
        assert!(matches!(small, Err(Error::Unsuitable(_))));
        assert_kept(&bench, &disk, &pool).await;
    });
}

/// A hole cannot be told from "as the parent": what is discarded or cut off must not come back.
#[test]
fn nothing_of_a_parent_shows_where_a_clone_gave_it_up() {
    let (bench, disk) = (Bench::new(), disk());
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let v = pool.thin("v", 6).await;
        pool.write(&v, 0, 4 * PER_CLUSTER as usize, 1).await.unwrap();
        snapshot(&pool, "v", "one").await;
        v.discard(ByteOffset(0), ByteCount(CLUSTER)).await.unwrap();
        pool.write(&v, 5 * PER_CLUSTER, 1, 2).await.unwrap();
        v.discard(ByteOffset(5 * CLUSTER), ByteCount(CLUSTER)).await.unwrap();
        assert_eq!(v.allocated_clusters(), ClusterCount(1), "where the parent has nothing: back");
        for clusters in [3, 6] {
            let size = ByteCount(clusters * CLUSTER);
            pool.store.resize_volume(v.map().blob(), size).await.unwrap();
        }
        let blocks = pool.blocks(&v).await;
        let ones = blocks.iter().filter(|byte| **byte == 1).count() as u64;
        assert_eq!(ones, 2 * PER_CLUSTER);
        // A parent smaller than its own parent hides the rest of that.
        pool.store.resize_volume(v.map().blob(), ByteCount(2 * CLUSTER)).await.unwrap();
        snapshot(&pool, "v", "two").await;
        pool.store.resize_volume(v.map().blob(), ByteCount(6 * CLUSTER)).await.unwrap();
        let blocks = pool.blocks(&v).await;
        pool.store.delete_volume(pool.id("two")).await.unwrap();
        assert_eq!(pool.blocks(&v).await, blocks);
        assert!(blocks[2 * PER_CLUSTER as usize..].iter().all(|byte| *byte == 0));
        assert_kept(&bench, &disk, &pool).await;
    });
}

/// Writers write rising numbers to blocks in turn; a snapshot must hold a state that was.
#[test]
fn a_snapshot_is_one_moment_for_all_writers() {
    for seed in 0..20 {
        let bench = Bench::new();
        let options = SimOptions { delays: Some(seed), ..SimOptions::new(ByteCount(4 << 20)) };
        let disk = SimDisk::new(options);
        bench.run(async {
            let pool = bench.pool(disk.channel(&bench.reactor)).await;
            let v = pool.thin("v", 4).await;
            pool.write(&v, 0, 1, 1).await.unwrap();
            let acknowledged = Rc::new(Cell::new(0));
            let writer = async {
                for round in 0..60_u8 {
                    pool.write(&v, u64::from(round), 1, round + 1).await.unwrap();
                    acknowledged.set(round + 1);
                }
            };
            let snapshots = async {
                let mut seen = Vec::new();
                for number in 0..4 {
                    let before = acknowledged.get();
                    let taken = snapshot(&pool, "v", &format!("s{number}")).await;
                    seen.push((before, acknowledged.get(), taken));
                }
                seen
            };
            let ((), seen) = futures_util::future::join(writer, snapshots).await;
            for (before, after, taken) in seen {
                let blocks = pool.blocks(&taken).await;
                let written = blocks[1..60].iter().take_while(|byte| **byte != 0).count() + 1;
                let rest = &blocks[written..60];
                assert!(rest.iter().all(|byte| *byte == 0), "seed {seed}: in order");
                assert!(written >= usize::from(before), "seed {seed}: what was acknowledged");
                assert!(written <= usize::from(after) + 1, "seed {seed}: and nothing later");
            }
            assert_kept(&bench, &disk, &pool).await;
        });
    }
}

#[test]
fn inflating_takes_nothing_if_there_is_not_enough_for_all() {
    let (bench, disk) = (Bench::new(), disk());
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let free = pool.store.info().free_clusters;
        let large = pool.thin("large", u64::from(free.0) + 1).await;
        let (id, size) = (large.map().blob(), ByteCount(u64::from(free.0) * CLUSTER));
        let no_space = Err(Error::NoSpace { what: Resource::Cluster });
        assert_eq!(pool.store.inflate_volume(id).await, no_space);
        assert_eq!(
            (large.allocated_clusters(), pool.store.info().free_clusters),
            (ClusterCount(0), free)
        );
        pool.store.resize_volume(id, size).await.unwrap();
        // A cluster is promised to another.
        pool.thin("other", 1).await;
        pool.store.set_reserve(pool.id("other"), ByteCount(CLUSTER)).await.unwrap();
        assert_eq!(pool.store.inflate_volume(id).await, no_space);
        assert_eq!(large.allocated_clusters(), ClusterCount(0));
        pool.store.set_reserve(pool.id("other"), ByteCount(0)).await.unwrap();
        pool.store.inflate_volume(id).await.unwrap();
        assert_eq!(large.allocated_clusters(), free);
    });
}
