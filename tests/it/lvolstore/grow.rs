//! Pools that grow with their device.

use futures_util::future::join;
use lvolfs::block::memory::MemoryDevice;
use lvolfs::lvol::format::{LayoutError, LayoutOptions};
use lvolfs::lvol::{Error, FormatOptions, Store};
use lvolfs::units::{BlockSize, ByteCount, ClusterCount};

use super::bench::{Bench, CLUSTER, assert_valid, disk, validated};

const MIB: u64 = 1 << 20;

#[test]
fn a_pool_grows_on_request_and_only_then() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let device = disk.channel(&bench.reactor);
        let pool = bench.pool(device.clone()).await;
        let small = pool.store.info().data_clusters;
        assert_eq!(
            pool.store.grow_with_device().await,
            Ok((small, small)),
            "the device is as it was"
        );
        let volume = pool.thin("v", 100).await;
        for cluster in 0..u64::from(small.0) {
            pool.write(&volume, cluster * 16, 16, 3).await.unwrap();
        }
        let full = pool.write(&volume, 16 * u64::from(small.0), 1, 4).await;
        assert!(matches!(full, Err(Error::NoSpace { .. })), "{full:?}");
        disk.grow(ByteCount(8 * MIB));
        pool.store.close().await.unwrap();

        // An opening does not grow it.
        let pool = bench.open(device.clone()).await.unwrap();
        assert!(pool.store.recovery().clean);
        assert_eq!(pool.store.info().data_clusters, small);
        let larger = ClusterCount(small.0 + 64);
        assert_eq!(pool.store.grow_with_device().await, Ok((larger, small)));
        assert_eq!(pool.store.info().free_clusters, ClusterCount(64));
        let volume = pool.volume("v").await;
        pool.write(&volume, 16 * u64::from(small.0), 16, 4).await.unwrap();
        volume.flush().await.unwrap();
        assert_valid(&disk);
        // As after a crash.
        let crashed = disk.cut_keep(0);
        let recovered = bench.open(crashed.channel(&bench.reactor)).await.unwrap();
        assert!(!recovered.store.recovery().clean);
        assert_eq!(recovered.store.info().data_clusters, larger);
        assert_eq!(recovered.store.info().free_clusters, ClusterCount(63));
        pool.store.close().await.unwrap();
        let report = validated(&disk);
        assert!(report.clean && report.errors().count() == 0, "{:?}", report.findings);
        let pool = bench.open(device).await.unwrap();
        assert!(pool.store.recovery().clean, "its longer bitmap is believed");
        assert_eq!(pool.store.info().data_clusters, larger);
        let blocks = pool.blocks(&pool.volume("v").await).await;
        let (old, new) = blocks.split_at(small.0 as usize * 16);
        assert!(old.iter().all(|block| *block == 3) && new[..16] == [4; 16]);
    });
}

#[test]
fn growth_ends_where_the_bitmap_has_no_more_room() {
    let bench = Bench::new();
    let device = MemoryDevice::new(ByteCount(4 * MIB), BlockSize::B4096);
    bench.run(async {
        let channel = device.channel();
        let layout =
            LayoutOptions { cluster_size: ByteCount(CLUSTER), metadata_ratio_percent: 100 };
        let options = FormatOptions { name: "pool".to_owned(), uuid: None, layout };
        Store::format(&channel, &bench.arena, &options).await.unwrap();
        let pool = bench.open(channel).await.unwrap();
        let limit = pool.store.info().max_clusters;
        assert_eq!(limit.0, (4096 - 5) * 8, "one page of bits");
        device.grow(ByteCount(CLUSTER * u64::from(limit.0)));
        pool.store.grow_with_device().await.unwrap();
        device.grow(ByteCount(CLUSTER * (u64::from(limit.0) + 1)));
        let refused = pool.store.grow_with_device().await.unwrap_err();
        assert!(matches!(refused, Error::Layout(LayoutError::GrowthLimit { .. })), "{refused}");
        pool.store.close().await.unwrap();
    });
}

/// The old size or the new one, and every flushed block, wherever the power is cut: in a pool that
/// was clean and in one that was not, while a volume is written and fsynced.
#[test]
fn a_power_cut_while_a_pool_grows_leaves_the_old_or_the_new_size() {
    for was_clean in [true, false] {
        let bench = Bench::new();
        let disk = disk();
        let (small, kept) = bench.run(async {
            let device = disk.channel(&bench.reactor);
            let mut pool = bench.pool(device.clone()).await;
            let volume = pool.thin("v", 40).await;
            pool.write(&volume, 0, 16, 5).await.unwrap();
            volume.flush().await.unwrap();
            if was_clean {
                pool.store.close().await.unwrap();
                pool = bench.open(device).await.unwrap();
            }
            let volume = pool.volume("v").await;
            let small = pool.store.info().data_clusters;
            disk.grow(ByteCount(6 * MIB));
            disk.record();
            let work = async {
                for cluster in 1..5 {
                    pool.write(&volume, cluster * 16, 1, 6).await.unwrap();
                    volume.flush().await.unwrap();
                }
                disk.commands()
            };
            let (grown, kept) = join(pool.store.grow_with_device(), work).await;
            assert_eq!(grown, Ok((ClusterCount(small.0 + 32), small)));
            // Into what was gained.
            let free = pool.store.info().free_clusters;
            assert!(free.0 > 32);
            pool.store.close().await.unwrap();
            (small, kept)
        });
        let mut sizes = std::collections::BTreeSet::new();
        for (command, moment) in disk.recorded() {
            for seed in 0..8 {
                let cut = moment.cut(seed);
                let report = validated(&cut);
                let errors: Vec<_> = report.errors().collect();
                assert!(errors.is_empty(), "command {command}, seed {seed}: {errors:?}");
                bench.run(async {
                    let pool = bench.open(cut.channel(&bench.reactor)).await.unwrap();
                    let clusters = pool.store.info().data_clusters.0;
                    assert!([small.0, small.0 + 32].contains(&clusters), "{clusters}");
                    sizes.insert(clusters);
                    let blocks = pool.blocks(&pool.volume("v").await).await;
                    assert_eq!(blocks[..16], [5; 16], "command {command}, seed {seed}");
                    if command > kept {
                        let written = [16, 32, 48, 64].map(|block| blocks[block]);
                        assert_eq!(written, [6; 4], "command {command}, seed {seed}");
                    }
                    // Whatever it is, it grows and closes in order.
                    pool.store.grow_with_device().await.unwrap();
                    assert_eq!(pool.store.info().data_clusters.0, small.0 + 32);
                    pool.store.close().await.unwrap();
                });
                let report = validated(&cut);
                assert!(report.clean && report.errors().count() == 0, "{:?}", report.findings);
            }
        }
        assert_eq!(sizes.len(), 2, "{sizes:?}");
    }
}
