//! Thin pools that fill: who is told, who waits, and whose space is kept.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use lvolfs::block::BlockDevice;
use lvolfs::lvol::{
    Error, Interruption, OnFull, Resource, SpaceState, VolumeIo, WAIT_LIMIT, WAITERS_LIMIT,
};
use lvolfs::units::{ByteCount, ByteOffset, ClusterCount};

use super::bench::{BLOCK, Bench, CLUSTER, Pool, disk};

/// Blocks in a cluster.
const PER_CLUSTER: u64 = CLUSTER / BLOCK as u64;

/// Writes to new clusters of a volume from cluster `from` on until one fails; how many did not.
async fn fill<D: BlockDevice>(pool: &Pool<D>, volume: &VolumeIo<D>, from: u64) -> (u64, Error) {
    for cluster in from.. {
        if let Err(error) = pool.write(volume, cluster * PER_CLUSTER, 1, 1).await {
            return (cluster - from, error);
        }
    }
    unreachable!("a pool ends");
}

async fn give_back<D: BlockDevice>(volume: &VolumeIo<D>, clusters: std::ops::Range<u64>) {
    let (offset, length) = (clusters.start * CLUSTER, (clusters.end - clusters.start) * CLUSTER);
    volume.discard(ByteOffset(offset), ByteCount(length)).await.unwrap();
    volume.flush().await.unwrap();
}

const FULL: Error = Error::NoSpace { what: Resource::Cluster };

#[test]
fn each_change_of_what_is_left_is_told_once() {
    let bench = Bench::new();
    bench.run(async {
        let pool = bench.pool(disk().channel(&bench.reactor)).await;
        let volume = pool.thin("v", 1000).await;
        let told: Rc<RefCell<Vec<_>>> = Rc::default();
        let tell = Rc::clone(&told);
        pool.store
            .on_space(move |change| tell.borrow_mut().push((change.state, change.free.get())));
        pool.store.set_low_water(ClusterCount(16));
        let (all, error) = fill(&pool, &volume, 0).await;
        assert_eq!(error, FULL);
        assert_eq!(pool.store.space_state(), SpaceState::Full);
        assert_eq!(told.take(), [(SpaceState::Low, 15), (SpaceState::Full, 0)]);
        // Still full: nothing new.
        assert_eq!(pool.write(&volume, all * PER_CLUSTER, 1, 1).await, Err(FULL));
        give_back(&volume, 0..4).await;
        bench.reactor.sleep(Duration::from_secs(1)).await;
        assert_eq!(told.take(), [(SpaceState::Low, 4)]);
        give_back(&volume, 4..20).await;
        bench.reactor.sleep(Duration::from_secs(1)).await;
        assert_eq!(told.take(), [(SpaceState::Ok, 20)]);
        assert_eq!(fill(&pool, &volume, 0).await.0, all, "as many as before");
    });
}

#[test]
fn a_volume_that_waits_goes_on_when_space_comes_back() {
    let bench = Bench::new();
    bench.run(async {
        let pool = Rc::new(bench.pool(disk().channel(&bench.reactor)).await);
        let (filler, waiter) = (pool.thin("filler", 1000).await, pool.thin("waiter", 10).await);
        pool.store.set_on_full(pool.id("waiter"), OnFull::Wait).await.unwrap();
        fill(&pool, &filler, 0).await;
        let write = {
            let (pool, waiter) = (Rc::clone(&pool), waiter.clone());
            bench.reactor.task(async move { pool.write(&waiter, 0, 1, 7).await })
        };
        bench.reactor.sleep(Duration::from_secs(10)).await;
        assert_eq!(waiter.allocated_clusters(), ClusterCount(0));
        give_back(&filler, 0..1).await;
        write.await.unwrap();
        assert_eq!(pool.blocks(&waiter).await[0], 7);
        // Nobody gives anything back: the wait has an end, and it is the error of the others.
        let before = bench.reactor.now();
        assert_eq!(pool.write(&waiter, PER_CLUSTER, 1, 7).await, Err(FULL));
        assert!(bench.reactor.now().since(before) >= WAIT_LIMIT);
    });
}

#[test]
fn a_wait_for_space_can_be_given_up() {
    let bench = Bench::new();
    bench.run(async {
        let pool = Rc::new(bench.pool(disk().channel(&bench.reactor)).await);
        let (filler, waiter) = (pool.thin("filler", 1000).await, pool.thin("waiter", 10).await);
        assert!(!waiter.map().waits_for_space());
        pool.store.set_on_full(pool.id("waiter"), OnFull::Wait).await.unwrap();
        assert!(waiter.map().waits_for_space());
        fill(&pool, &filler, 0).await;
        let interruption = Interruption::default();
        let hasty = waiter.interruptible(&interruption);
        let write = |volume: &VolumeIo<_>, cluster: u64| {
            let (pool, volume) = (Rc::clone(&pool), volume.clone());
            let at = cluster * PER_CLUSTER;
            bench.reactor.task(async move { pool.write(&volume, at, 1, 7).await })
        };
        let (patient, given_up) = (write(&waiter, 0), write(&hasty, 1));
        bench.reactor.sleep(Duration::from_secs(1)).await;
        let before = bench.reactor.now();
        interruption.happen();
        assert_eq!(given_up.await, Err(Error::WaitInterrupted));
        assert_eq!(write(&hasty, 2).await, Err(Error::WaitInterrupted), "it has happened before");
        assert!(bench.reactor.now().since(before) < Duration::from_secs(1));
        give_back(&filler, 0..4).await;
        patient.await.unwrap();
        // Nothing to wait for, nothing to give up.
        write(&hasty, 3).await.unwrap();
        let blocks = pool.blocks(&waiter).await;
        let at = |cluster: u64| blocks[(cluster * PER_CLUSTER) as usize];
        assert_eq!([at(0), at(1), at(2), at(3)], [7, 0, 0, 7]);
    });
}

#[test]
fn no_more_wait_than_may_and_none_when_the_pool_is_about_to_close() {
    let bench = Bench::new();
    bench.run(async {
        let pool = Rc::new(bench.pool(disk().channel(&bench.reactor)).await);
        let filler = pool.thin("filler", 1000).await;
        let waiter = pool.thin("waiter", 1000).await;
        pool.store.set_on_full(pool.id("waiter"), OnFull::Wait).await.unwrap();
        fill(&pool, &filler, 0).await;
        let write = |cluster: u64| {
            let (pool, waiter) = (Rc::clone(&pool), waiter.clone());
            bench
                .reactor
                .task(async move { pool.write(&waiter, cluster * PER_CLUSTER, 1, 7).await })
        };
        let waiting: Vec<_> = (0..WAITERS_LIMIT as u64).map(write).collect();
        bench.reactor.sleep(Duration::from_secs(1)).await;
        let before = bench.reactor.now();
        assert_eq!(write(900).await, Err(FULL), "one more than may wait");
        pool.store.stop_waiting();
        for write in waiting {
            assert_eq!(write.await, Err(FULL));
        }
        assert!(bench.reactor.now().since(before) < Duration::from_secs(1));
        pool.store.close().await.unwrap();
    });
}

#[test]
fn a_reserve_is_kept_for_its_volume_and_outlives_the_pool() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let (filler, kept) = (pool.thin("filler", 1000).await, pool.thin("kept", 100).await);
        let id = pool.id("kept");
        pool.write(&kept, 0, 1, 1).await.unwrap();
        let free = u64::from(pool.store.info().free_clusters.get());
        let most = ByteCount((free + 2) * CLUSTER);
        assert_eq!(pool.store.set_reserve(id, most).await, Err(FULL), "more than there is");
        pool.store.set_reserve(id, ByteCount(5 * CLUSTER - 1)).await.unwrap();
        assert_eq!(pool.store.info().promised_clusters, ClusterCount(4));
        assert_eq!(fill(&pool, &filler, 0).await, (free - 4, FULL));
        let thick = lvolfs::lvol::NewVolume::thick("thick", ByteCount(CLUSTER));
        assert_eq!(pool.store.create_volume(thick).await, Err(FULL));
        pool.store.close().await.unwrap();

        let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
        let (filler, kept) = (pool.volume("filler").await, pool.volume("kept").await);
        let info = pool.store.find("kept").unwrap();
        assert_eq!((info.reserve, info.on_full), (ClusterCount(5), OnFull::Error));
        assert_eq!(pool.write(&filler, 999 * PER_CLUSTER, 1, 1).await, Err(FULL));
        assert_eq!(fill(&pool, &kept, 1).await, (4, FULL));
        // Without the promise, what is given back is anybody's.
        give_back(&kept, 1..5).await;
        assert_eq!(pool.write(&filler, 999 * PER_CLUSTER, 1, 1).await, Err(FULL));
        pool.store.set_reserve(pool.id("kept"), ByteCount(0)).await.unwrap();
        pool.write(&filler, 999 * PER_CLUSTER, 1, 1).await.unwrap();
        assert!(pool.store.xattrs(pool.id("kept")).unwrap().is_empty());
    });
}

/// A snapshot takes over all that a volume has, so that its reserve is missing anew.
#[test]
fn a_snapshot_is_refused_that_would_break_the_reserve() {
    let bench = Bench::new();
    bench.run(async {
        let pool = bench.pool(disk().channel(&bench.reactor)).await;
        let (filler, kept) = (pool.thin("filler", 1000).await, pool.thin("kept", 8).await);
        let id = pool.id("kept");
        for cluster in 0..8 {
            pool.write(&kept, cluster * PER_CLUSTER, 1, 1).await.unwrap();
        }
        pool.store.set_reserve(id, ByteCount(6 * CLUSTER)).await.unwrap();
        assert_eq!(pool.store.info().promised_clusters, ClusterCount(0));
        let free = u64::from(pool.store.info().free_clusters.get());
        for cluster in 0..free - 5 {
            pool.write(&filler, cluster * PER_CLUSTER, 1, 1).await.unwrap();
        }
        let named = lvolfs::lvol::NewRelative::named;
        let refused = pool.store.snapshot_volume(id, named("snapshot")).await;
        assert_eq!(refused, Err(FULL));
        assert_eq!(pool.store.find("snapshot"), None);
        give_back(&filler, 0..1).await;
        bench.reactor.sleep(Duration::from_secs(1)).await;
        pool.store.snapshot_volume(id, named("snapshot")).await.unwrap();
        assert_eq!(pool.store.info().promised_clusters, ClusterCount(6));
        assert_eq!(pool.write(&filler, 999 * PER_CLUSTER, 1, 1).await, Err(FULL));
        pool.write(&kept, 0, 1, 2).await.unwrap();
        assert_eq!(pool.store.info().promised_clusters, ClusterCount(5));
        // What is deleted is promised nothing.
        pool.store.delete_volume(id).await.unwrap();
        assert_eq!(pool.store.info().promised_clusters, ClusterCount(0));
    });
}

/// What data on its way holds of the memory comes back; whoever copies or commits waits for it.
#[test]
fn copies_and_commits_wait_for_memory() {
    let bench = Bench::new();
    bench.run(async {
        let pool = Rc::new(bench.pool(disk().channel(&bench.reactor)).await);
        let volume = pool.thin("v", 8).await;
        pool.write(&volume, 0, 16, 1).await.unwrap();
        let named = lvolfs::lvol::NewRelative::named;
        let id = pool.id("v");
        pool.store.snapshot_volume(id, named("snapshot")).await.unwrap();
        let data = bench.buffer(BLOCK, 7);
        let mut all = Vec::new();
        while let Some(buffer) = bench.arena.allocate(BLOCK) {
            all.push(buffer);
        }
        let write = {
            let volume = volume.clone();
            bench.reactor.task(async move {
                let offset = ByteOffset(BLOCK as u64);
                volume.write(offset, data, lvolfs::block::Durability::Cached).await.map(drop)
            })
        };
        bench.reactor.sleep(Duration::from_secs(1)).await;
        assert_eq!(volume.allocated_clusters(), ClusterCount(0), "it waits");
        drop(all);
        write.await.unwrap();
        volume.flush().await.unwrap();
        assert_eq!(pool.blocks(&volume).await[..3], [1, 7, 1]);
    });
}
