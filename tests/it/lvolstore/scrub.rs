//! Scrubs: everything is read, faults are named, changes under way are no faults.

use std::time::Duration;

use lvolfs::block::fault::{Fault, Faults, Faulty, Operation};
use lvolfs::block::{BlockDevice, Durability};
use lvolfs::lvol::{Error, LOWEST_RATE, NewRelative, ScrubReport, ScrubState};
use lvolfs::units::{BlobId, ByteCount, ByteOffset, Lba};

use super::bench::{BLOCK, Bench, CLUSTER, Pool, disk};

const RATE: ByteCount = ByteCount(1 << 20);

/// Runs a scrub to its end.
async fn scrubbed<D: BlockDevice>(bench: &Bench, pool: &Pool<D>) -> ScrubReport {
    pool.store.start_scrub(RATE).unwrap();
    for _ in 0..100_000 {
        let report = pool.store.scrub_report();
        if report.state != ScrubState::Running {
            return report;
        }
        bench.reactor.sleep(Duration::from_millis(10)).await;
    }
    panic!("the scrub does not end");
}

#[test]
fn everything_is_read_at_the_rate_that_was_set() {
    let bench = Bench::new();
    bench.run(async {
        let device = disk().channel(&bench.reactor);
        let pool = bench.pool(device.clone()).await;
        assert_eq!(pool.store.scrub_report().state, ScrubState::Never);
        let (thin, _thick) = (pool.thin("thin", 20).await, pool.thick("thick", 3).await);
        for cluster in [0, 7, 19] {
            pool.write(&thin, cluster * CLUSTER / BLOCK as u64, 1, 1).await.unwrap();
        }
        thin.flush().await.unwrap();
        let before = device.counters();
        let report = scrubbed(&bench, &pool).await;
        assert_eq!((report.state, report.faults), (ScrubState::Done, 0), "{report:?}");
        assert_eq!(report.clusters, 6);
        // The super block; the roots of both volumes and of the pool's own blob; two extent pages.
        assert_eq!(report.pages, 6);
        assert_eq!((report.read, report.total), (report.total, ByteCount(6 * (4096 + CLUSTER))));
        let read = device.counters().bytes_read - before.bytes_read;
        assert_eq!(read, report.read.get());
        let least = Duration::from_secs_f64((read - CLUSTER) as f64 / RATE.get() as f64);
        assert!(report.elapsed >= least, "{:?} is faster than allowed", report.elapsed);
        assert_eq!(device.counters().writes, before.writes);
        pool.store.close().await.unwrap();
    });
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_read() {
    let bench = Bench::new();
    let faults = Faults::default();
    bench.run(async {
        let device = Faulty::new(disk().channel(&bench.reactor), faults.clone());
        let pool = bench.pool(device).await;
        let volume = pool.thick("v", 3).await;
        let at = pool.place_of_first_cluster(&volume);
        let blocks = Some(at + 5..at + 6);
        faults.inject(Fault { operation: Operation::Read, blocks, after: 0, times: u64::MAX });
        let report = scrubbed(&bench, &pool).await;
        assert_eq!((report.state, report.faults, report.clusters), (ScrubState::Done, 1, 3));
        assert!(report.findings[0].contains("volume v: 65536 bytes at byte 0"), "{report:?}");
        faults.clear();
        assert_eq!(scrubbed(&bench, &pool).await.faults, 0);
    });
}

#[test]
fn damaged_metadata_is_found_and_named() {
    let bench = Bench::new();
    bench.run(async {
        let disk = disk();
        let device = disk.channel(&bench.reactor);
        let pool = bench.pool(device.clone()).await;
        let (volume, other) = (pool.thin("v", 3).await, pool.thick("w", 1).await);
        pool.write(&volume, 0, 1, 1).await.unwrap();
        volume.flush().await.unwrap();
        // The layout of a new pool: four pages, then the metadata region.
        let root = |id: BlobId| Lba(4 + (id.0 & 0xffff_ffff));
        let good = device.read(root(pool.id("v")), bench.buffer(BLOCK, 0)).await.unwrap();
        let mut bad = bench.buffer(BLOCK, 0);
        bad.copy_from_slice(&good);
        bad[100] ^= 1;
        device.write(root(pool.id("v")), bad, Durability::Cached).await.unwrap();
        device.write(root(pool.id("w")), good, Durability::Cached).await.unwrap();
        let report = scrubbed(&bench, &pool).await;
        assert_eq!(report.faults, 2, "{report:?}");
        let found = |part: &str| report.findings.iter().any(|finding| finding.contains(part));
        assert!(found("volume v: root page") && found("checksum"), "{report:?}");
        assert!(found("volume w: root page") && found("belongs to blob"), "{report:?}");
        // A commit writes roots anew.
        for volume in [&volume, &other] {
            volume.discard(ByteOffset(0), ByteCount(CLUSTER)).await.unwrap();
        }
        pool.store.set_xattr(pool.id("v"), b"user.x", b"y").await.unwrap();
        pool.store.set_xattr(pool.id("w"), b"user.x", b"y").await.unwrap();
        assert_eq!(scrubbed(&bench, &pool).await.faults, 0);
    });
}

/// A snapshot has taken over its volume's extent pages, which name the volume still.
#[test]
fn snapshots_and_clones_have_no_faults() {
    let bench = Bench::new();
    bench.run(async {
        let pool = bench.pool(disk().channel(&bench.reactor)).await;
        let volume = pool.thin("v", 4).await;
        pool.write(&volume, 0, 1, 1).await.unwrap();
        for name in ["first", "second"] {
            pool.store.snapshot_volume(pool.id("v"), NewRelative::named(name)).await.unwrap();
            pool.write(&volume, 0, 1, 2).await.unwrap();
            volume.flush().await.unwrap();
        }
        let clone = NewRelative::named("clone");
        pool.store.clone_volume(pool.id("first"), clone).await.unwrap();
        let report = scrubbed(&bench, &pool).await;
        assert_eq!((report.state, report.findings), (ScrubState::Done, Vec::<String>::new()));
        assert_eq!(report.clusters, 3);
    });
}

#[test]
fn a_pool_that_changes_meanwhile_has_no_faults() {
    for seed in 0..30 {
        let bench = Bench::new();
        let mut random = fastrand::Rng::with_seed(seed);
        bench.run(async {
            let pool = bench.pool(disk().channel(&bench.reactor)).await;
            let volume = pool.thin("v", 16).await;
            let mut snapshots = Vec::new();
            pool.store.start_scrub(RATE).unwrap();
            while pool.store.scrub_report().state == ScrubState::Running {
                let cluster = random.u64(..16);
                match random.u32(..8) {
                    0 => {
                        let offset = ByteOffset(cluster * CLUSTER);
                        volume.discard(offset, ByteCount(CLUSTER)).await.unwrap();
                    }
                    1 => volume.flush().await.unwrap(),
                    2 => {
                        if let Some(other) = pool.store.find("w") {
                            pool.store.delete_volume(other.id).await.unwrap();
                        } else {
                            pool.thick("w", 2).await;
                        }
                    }
                    3 if snapshots.len() < 6 => {
                        let new = NewRelative::named(&format!("s{}", snapshots.len()));
                        let made = pool.store.snapshot_volume(pool.id("v"), new).await;
                        snapshots.push(made.unwrap().id);
                    }
                    4 => {
                        if let Some(snapshot) = snapshots.pop() {
                            pool.store.delete_volume(snapshot).await.unwrap();
                        }
                    }
                    _ => {
                        let block = cluster * CLUSTER / BLOCK as u64;
                        pool.write(&volume, block, 1, seed as u8).await.unwrap();
                    }
                }
                let pause = Duration::from_micros(random.u64(..20_000));
                bench.reactor.sleep(pause).await;
            }
            let report = pool.store.scrub_report();
            assert_eq!(
                (report.state, report.faults),
                (ScrubState::Done, 0),
                "seed {seed}: {report:?}"
            );
            pool.store.close().await.unwrap();
        });
    }
}

#[test]
fn one_at_a_time_and_none_outlives_the_pool() {
    let bench = Bench::new();
    bench.run(async {
        let pool = bench.pool(disk().channel(&bench.reactor)).await;
        pool.thick("v", 8).await;
        pool.store.start_scrub(ByteCount(1)).unwrap();
        assert_eq!(pool.store.scrub_report().rate, LOWEST_RATE);
        assert!(matches!(pool.store.start_scrub(RATE), Err(Error::Busy { .. })));
        pool.store.stop_scrub();
        bench.reactor.sleep(Duration::from_secs(10)).await;
        assert_eq!(pool.store.scrub_report().state, ScrubState::Stopped);
        pool.store.start_scrub(RATE).unwrap();
        pool.store.close().await.unwrap();
        bench.reactor.sleep(Duration::from_secs(10)).await;
        assert_eq!(pool.store.scrub_report().state, ScrubState::Stopped);
        assert_eq!(pool.store.start_scrub(RATE), Err(Error::Closed));
    });
}
