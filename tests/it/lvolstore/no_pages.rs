//! A pool without a free metadata page: what cannot be made durable does not happen.

use lvolfs::lvol::format::ClearMethod;
use lvolfs::lvol::{Error, NewRelative, NewVolume, Resource, VolumeInfo};
use lvolfs::sim::SimChannel;
use lvolfs::units::{BlobId, ByteCount, ByteOffset, ClusterCount};

use super::bench::{BLOCK, Bench, CLUSTER, Pool, assert_valid, disk};

/// Blocks in a cluster.
const PER_CLUSTER: u64 = CLUSTER / BLOCK as u64;
const NO_PAGE: Error = Error::NoSpace { what: Resource::MetadataPage };

/// Gives a volume attributes that need one page beside its root.
async fn fatten(pool: &Pool<SimChannel>, id: BlobId) -> Result<(), Error> {
    for name in [b"user.x", b"user.y"] {
        pool.store.set_xattr(id, name, &[b'x'; 3000]).await?;
    }
    Ok(())
}

/// Makes volumes, and then their attributes, until there is no page for more.
async fn fill(pool: &Pool<SimChannel>) {
    let mut fillers = Vec::new();
    let full = loop {
        let name = format!("filler {}", fillers.len());
        match pool.store.create_volume(NewVolume::thin(&name, ByteCount(0))).await {
            Ok(info) => fillers.push(info.id),
            Err(error) => break error,
        }
    };
    assert_eq!(full, NO_PAGE);
    for filler in fillers {
        match fatten(pool, filler).await {
            Ok(()) => {}
            Err(error) => return assert_eq!(error, NO_PAGE),
        }
    }
    panic!("there is a page for everybody");
}

fn facts(pool: &Pool<SimChannel>) -> Vec<VolumeInfo> {
    let mut volumes = pool.store.volumes();
    volumes.retain(|volume| !volume.name.starts_with("filler"));
    volumes
}

#[test]
fn an_operation_without_a_page_for_it_changes_nothing() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let volume = pool.thin("volume", 5).await;
        for cluster in [0, 3, 4] {
            pool.write(&volume, cluster * PER_CLUSTER, 1, 7).await.unwrap();
        }
        volume.flush().await.unwrap();
        let id = pool.id("volume");
        fatten(&pool, id).await.unwrap();
        pool.thin("origin", 1).await;
        let origin = pool.id("origin");
        let snapshot = NewRelative::named("snapshot");
        pool.store.snapshot_volume(origin, snapshot).await.unwrap();
        pool.write(&pool.volume("origin").await, 0, 1, 8).await.unwrap();
        fatten(&pool, origin).await.unwrap();
        fill(&pool).await;
        let (before, free) = (facts(&pool), pool.store.info().free_clusters);
        let blocks = pool.blocks(&volume).await;
        let sizes = [0, 4, 6].map(|clusters| ByteCount(clusters * CLUSTER));
        for size in sizes {
            assert_eq!(pool.store.resize_volume(id, size).await, Err(NO_PAGE), "{size}");
            assert_eq!(facts(&pool), before, "{size}");
            assert_eq!(pool.blocks(&volume).await, blocks, "{size}");
        }
        assert_eq!(pool.store.rename_volume(id, "other").await, Err(NO_PAGE));
        assert_eq!(pool.store.find("other"), None);
        assert_eq!(pool.store.set_read_only(id).await, Err(NO_PAGE));
        assert_eq!(pool.store.set_clear_method(id, ClearMethod::None).await, Err(NO_PAGE));
        assert_eq!(pool.store.set_xattr(id, b"user.z", b"z").await, Err(NO_PAGE));
        assert_eq!(pool.store.inflate_volume(origin).await, Err(NO_PAGE));
        assert_eq!(pool.store.decouple_volume(origin).await, Err(NO_PAGE));
        assert_eq!(facts(&pool), before);
        assert_eq!(pool.store.info().free_clusters, free);
        pool.write(&volume, 4 * PER_CLUSTER + 1, 1, 7).await.unwrap();
        let blocks = pool.blocks(&volume).await;
        // As after a crash.
        let cut = disk.cut_keep(0);
        assert_valid(&cut);
        assert_eq!(facts(&bench.open(cut.channel(&bench.reactor)).await.unwrap()), before);
        // A deletion needs no page, and then there are some.
        pool.store.delete_volume(pool.id("filler 0")).await.unwrap();
        pool.store.delete_volume(pool.id("filler 1")).await.unwrap();
        assert_eq!(facts(&pool), before);
        assert_eq!(pool.blocks(&volume).await, blocks);
        pool.store.rename_volume(id, "other").await.unwrap();
        pool.store.resize_volume(id, sizes[1]).await.unwrap();
        pool.store.resize_volume(id, sizes[2]).await.unwrap();
        pool.store.inflate_volume(origin).await.unwrap();
        pool.store.set_read_only(id).await.unwrap();
        pool.store.close().await.unwrap();
        assert_valid(&disk);
    });
}

#[test]
fn a_snapshot_can_be_renamed_and_stays_read_only() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let volume = pool.thin("volume", 2).await;
        pool.write(&volume, 0, 1, 7).await.unwrap();
        let made = pool.store.snapshot_volume(pool.id("volume"), NewRelative::named("old")).await;
        let snapshot = made.unwrap().id;
        pool.store.rename_volume(snapshot, "new").await.unwrap();
        assert_eq!(pool.store.find("old"), None);
        let refused = pool.store.set_xattr(snapshot, b"user.x", b"x").await;
        assert!(matches!(refused, Err(Error::ReadOnly { .. })), "{refused:?}");
        let cut = disk.cut_keep(0);
        assert_valid(&cut);
        let pool = bench.open(cut.channel(&bench.reactor)).await.unwrap();
        let found = pool.store.find("new").unwrap();
        assert!(found.snapshot && found.id == snapshot, "{found:?}");
        assert_eq!(pool.store.volume(pool.id("volume")).unwrap().parent, Some(snapshot));
        let snapshot = pool.volume("new").await;
        assert_eq!(pool.blocks(&snapshot).await[0], 7);
        assert!(pool.write(&snapshot, 0, 1, 8).await.is_err());
    });
}

#[test]
fn a_pool_that_takes_no_more_volumes_can_be_trimmed_and_closed() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let volume = pool.thin("volume", 3).await;
        pool.write(&volume, 0, 3 * PER_CLUSTER as usize, 7).await.unwrap();
        volume.flush().await.unwrap();
        for number in 0.. {
            let new = NewVolume::thin(&format!("filler {number}"), ByteCount(0));
            if let Err(error) = pool.store.create_volume(new).await {
                assert_eq!(error, NO_PAGE);
                break;
            }
        }
        volume.discard(ByteOffset(0), ByteCount(CLUSTER)).await.unwrap();
        volume.flush().await.unwrap();
        assert_eq!(volume.allocated_clusters(), ClusterCount(2));
        pool.store.rename_volume(pool.id("volume"), "other").await.unwrap();
        volume.discard(ByteOffset(CLUSTER), ByteCount(CLUSTER)).await.unwrap();
        pool.store.close().await.unwrap();
        assert_valid(&disk);
    });
}
