//! Zeroed clusters that wait for first writes.

use std::time::Duration;

use lvolfs::block::Discard;
use lvolfs::lvol::Error;
use lvolfs::sim::{SimDisk, SimOptions};
use lvolfs::units::ByteCount;

use super::bench::{BLOCK, Bench, CLUSTER, assert_valid, validated};

/// Idle for long enough.
const A_WHILE: Duration = Duration::from_secs(1);

/// A disk of 4 MiB that is full of rubbish but for its start.
fn used_disk(discard: Discard) -> SimDisk {
    let mut old = vec![0xaa; 4 << 20];
    old[..128 << 10].fill(0);
    SimDisk::with_image(SimOptions { discard, ..SimOptions::new(ByteCount(4 << 20)) }, &old)
}

#[test]
fn first_writes_find_zeros_and_nobody_loses_space() {
    for discard in [Discard::Unspecified, Discard::Zeroes, Discard::Ignored] {
        let bench = Bench::new();
        let disk = used_disk(discard);
        bench.run(async {
            let pool = bench.pool(disk.channel(&bench.reactor)).await;
            let volume = pool.thin("v", 100).await;
            pool.store.keep_zeroed_clusters();
            let all = pool.store.info().free_clusters.0;
            bench.reactor.sleep(A_WHILE).await;
            assert_eq!(pool.store.zeroed_clusters().0, 0, "nobody has written yet");
            pool.write(&volume, 0, 1, 1).await.unwrap();
            bench.reactor.sleep(A_WHILE).await;
            let ready = pool.store.zeroed_clusters().0;
            assert_eq!(ready, 3, "a sixteenth of the pool");
            assert_eq!(pool.store.info().free_clusters.0, all - 1, "they count as free");
            let before = pool.store.counters();
            for cluster in 1..3 {
                pool.write(&volume, cluster * 16 + 5, 1, 2).await.unwrap();
            }
            let after = pool.store.counters();
            assert_eq!(after.clusters_ready - before.clusters_ready, 2);
            assert_eq!(after.bytes_zeroed, before.bytes_zeroed, "nothing was left to zero");
            volume.flush().await.unwrap();
            // On the medium as in memory, and in a copy after a power cut.
            for disk in [disk.clone(), disk.cut_keep(0)] {
                let mut content = vec![0; 4 << 20];
                disk.read_at(0, &mut content);
                let written = content.chunks(CLUSTER as usize).filter(|cluster| {
                    cluster[5 * BLOCK] == 2 && cluster[..5 * BLOCK].iter().all(|byte| *byte == 0)
                });
                assert_eq!(written.count(), 2, "{discard:?}");
            }
            let blocks = pool.blocks(&volume).await;
            assert_eq!(blocks.iter().filter(|block| **block != 0).count(), 3);

            // When nothing else is free, the supply is; then the pool is full.
            bench.reactor.sleep(A_WHILE).await;
            assert_eq!(pool.store.zeroed_clusters().0, 3);
            pool.thick("rest", u64::from(all) - 3).await;
            assert_eq!(pool.store.zeroed_clusters().0, 0);
            let full = pool.write(&volume, 80 * 16, 1, 1).await;
            assert!(matches!(full, Err(Error::NoSpace { .. })), "{full:?}");
            pool.store.delete_volume(pool.id("rest")).await.unwrap();
            pool.write(&volume, 80 * 16, 1, 1).await.unwrap();
            bench.reactor.sleep(A_WHILE).await;
            assert_eq!(pool.store.info().free_clusters.0, all - 4);
            pool.store.close().await.unwrap();
        });
        assert_valid(&disk);
        let report = validated(&disk);
        assert!(report.clean);
        bench.run(async {
            let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
            assert_eq!(pool.store.info().free_clusters, report.free_clusters, "none is lost");
            assert!(pool.store.recovery().clean);
            pool.store.close().await.unwrap();
        });
    }
}
