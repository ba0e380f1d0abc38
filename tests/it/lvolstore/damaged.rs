//! Pools of which something is lost, or in which things contradict each other: what is damaged is
//! not served, what it may have is neither erased nor handed out, and when the damage is put right
//! it is there again. The rest is served.

use std::collections::BTreeSet;

use lvolfs::lvol::format::{
    Blob, ExtentPage, ExtentTable, Mapping, PageBytes, TableSlot, VolumeName, blob_id, lvolstore,
    root_page,
};
use lvolfs::lvol::repair::ImageWrite;
use lvolfs::lvol::validate::ImageRead;
use lvolfs::lvol::{Error, ReadOnlyReason};
use lvolfs::sim::{SimChannel, SimDisk, SimOptions};
use lvolfs::units::{BlobId, BlockSize, ClusterCount, ClusterIndex, PageIndex, VolumeCluster};

use super::bench::{Bench, CLUSTER, Pool};
use super::check::Scene;
use super::image::Image;

const PAGE: usize = 4096;

fn disk_of(scene: &Scene) -> SimDisk {
    let size = scene.image.size().unwrap();
    let options = SimOptions { block_size: BlockSize::B512, ..SimOptions::new(size) };
    SimDisk::with_image(options, &scene.image.bytes())
}

async fn open(bench: &Bench, disk: &SimDisk) -> Pool<SimChannel> {
    bench.open(disk.channel(&bench.reactor)).await.unwrap()
}

fn image_of(disk: &SimDisk) -> Image {
    let mut bytes = vec![0; disk.size().0 as usize];
    disk.read_at(0, &mut bytes);
    Image::new(bytes)
}

fn quarantined(pool: &Pool<SimChannel>) -> BTreeSet<BlobId> {
    pool.store.quarantined().iter().map(|found| found.id).collect()
}

/// A blob whose root is metadata page `root`, and whose only extent page is `page`.
fn blob(root: PageIndex, name: &str, page: PageIndex, clusters: usize) -> Blob {
    let uuid = uuid::Uuid::from_u128(root.0.into());
    let name = VolumeName::new(name).unwrap();
    let mut blob = lvolstore::volume_blob(blob_id(root), &name, uuid, ClusterCount(0));
    blob.flags.thin = true;
    let mut table = ExtentTable::new(ClusterCount(clusters as u32));
    table.set(TableSlot(0), page);
    blob.mapping = Mapping::Table(table);
    blob
}

fn put_extents(scene: &Scene, owner: BlobId, page: PageIndex, clusters: &[ClusterIndex]) {
    let clusters = clusters.iter().copied().map(Some).collect();
    let extent = ExtentPage { blob: owner, first: VolumeCluster(0), clusters };
    scene.put(page, &extent.encode());
}

/// Damages a page, so that its checksum is wrong; what it was.
fn tear(scene: &Scene, page: PageIndex) -> PageBytes {
    let before = scene.page(page);
    scene.change(scene.place(page) + 100, |byte| *byte ^= 1);
    before
}

fn extent_page(scene: &Scene, name: &str) -> PageIndex {
    let Mapping::Table(table) = scene.blob(scene.id(name)).mapping else { panic!("no table") };
    table.get(TableSlot(0)).unwrap()
}

/// Takes all clusters that are free, and writes to them.
async fn fill(pool: &Pool<SimChannel>) {
    let free = u64::from(pool.store.info().free_clusters.0);
    let volume = pool.thick("filler", free).await;
    let blocks = CLUSTER / u64::from(volume.block_size().bytes());
    for cluster in 0..free {
        pool.write(&volume, cluster * blocks, blocks as usize, 0x5a).await.unwrap();
    }
    volume.flush().await.unwrap();
    assert_eq!(pool.store.info().free_clusters, ClusterCount(0));
}

/// What two unfinished snapshots have, or one has more than once, is given back once.
#[test]
fn what_unfinished_snapshots_name_is_freed_once() {
    let bench = Bench::new();
    for (blobs, clusters) in [(2, 1), (1, 3), (2, 3)] {
        let scene = Scene::new("c64k-b512-dirty");
        let free = scene.report().free_clusters;
        let last = scene.spare().0;
        let page = PageIndex(last - 5);
        let nobodys = ClusterIndex(scene.layout.clusters().0 - 1);
        put_extents(&scene, blob_id(scene.spare()), page, &vec![nobodys; clusters]);
        for number in 0..blobs {
            let name = format!("unfinished {number}");
            let mut unfinished = blob(PageIndex(last - number), &name, page, clusters);
            unfinished.set_snapshot_of(Some(scene.id("thick")));
            scene.put_blob(&unfinished);
        }
        let disk = disk_of(&scene);
        bench.run(async {
            let pool = open(&bench, &disk).await;
            assert_eq!(quarantined(&pool), BTreeSet::new());
            assert_eq!(pool.store.info().free_clusters, free);
            pool.thin("new", 1).await;
            pool.store.close().await.unwrap();
        });
        let image = image_of(&disk);
        scene.assert_contents(&image, "after unfinished snapshots");
        let pages = scene.place(page) as usize;
        assert!(image.bytes()[pages..][..PAGE].iter().all(|byte| *byte == 0), "it was erased");
    }
}

/// An unfinished snapshot shares everything with the volume that it was made of. If that volume
/// cannot be served, nobody can tell, and both stay as they are.
#[test]
fn an_unfinished_snapshot_follows_its_volume_into_quarantine() {
    let bench = Bench::new();
    for deletion in [false, true] {
        let scene = Scene::new("c64k-b512-dirty");
        let (clone, parent) = (scene.id("clone1"), scene.id("snap1"));
        let mut unfinished = scene.unfinished_snapshot("clone1");
        if deletion {
            unfinished.set_snapshot_of(None);
            unfinished.set_deleting_for(Some(clone));
        }
        scene.put_blob(&unfinished);
        let (root, free) = (root_page(parent).unwrap(), scene.report().free_clusters);
        let before = tear(&scene, root);
        let disk = disk_of(&scene);
        bench.run(async {
            let pool = open(&bench, &disk).await;
            let lost = quarantined(&pool);
            assert!([clone, parent, unfinished.id].iter().all(|id| lost.contains(id)), "{lost:?}");
            assert_eq!(pool.store.info().free_clusters, free);
            fill(&pool).await;
            pool.store.close().await.unwrap();
        });
        let image = image_of(&disk);
        image.write_at(scene.place(root), &before).unwrap();
        scene.assert_contents(&image, "after the parent is back");
    }
}

/// A snapshot whose making ended late, and whose clone is in quarantine for another reason: it is
/// not made a finished one.
#[test]
fn a_nearly_finished_snapshot_follows_its_clone_into_quarantine() {
    let scene = Scene::new("c64k-b512-dirty");
    scene.nearly_finished_snapshot("thick");
    let thick = scene.id("thick");
    let mut clone = scene.blob(thick);
    let snapshot = scene.blob(blob_id(scene.spare()));
    // A name is missing.
    clone.xattrs = Default::default();
    scene.put_blob(&clone);
    let disk = disk_of(&scene);
    let before = image_of(&disk);
    let bench = Bench::new();
    bench.run(async {
        let pool = open(&bench, &disk).await;
        assert_eq!(quarantined(&pool), BTreeSet::from([thick, snapshot.id]));
    });
    assert!(image_of(&disk).bytes() == before.bytes(), "opening wrote nothing");
}

/// What a blob in quarantine has, nobody else changes or gives away.
#[test]
fn an_owner_in_quarantine_is_an_owner() {
    let bench = Bench::new();
    for shares_page in [false, true] {
        let scene = Scene::new("c64k-b512-dirty");
        let report = scene.report();
        let clusters: Vec<_> = report.volume("thick").unwrap().map().device_clusters().collect();
        let free = report.free_clusters;
        let mut page = extent_page(&scene, "thick");
        if !shares_page {
            page = PageIndex(scene.spare().0 - 1);
            put_extents(&scene, blob_id(scene.spare()), page, &clusters);
        }
        let mut orphan = blob(scene.spare(), "orphan", page, clusters.len());
        orphan.set_parent(Some(blob_id(PageIndex(scene.spare().0 - 7))));
        scene.put_blob(&orphan);
        let disk = disk_of(&scene);
        bench.run(async {
            let pool = open(&bench, &disk).await;
            assert_eq!(quarantined(&pool), BTreeSet::from([orphan.id]));
            let thick = pool.store.find("thick").unwrap();
            let other = match thick.read_only {
                Some(ReadOnlyReason::SharedCluster { other, .. }) => other,
                Some(ReadOnlyReason::SharedPage { other, .. }) if shares_page => other,
                reason => panic!("{reason:?}"),
            };
            assert_eq!(other, orphan.id);
            let volume = pool.volume("thick").await;
            let refused = pool.write(&volume, 0, 8, 1).await;
            assert!(matches!(refused, Err(Error::ReadOnly { .. })), "{refused:?}");
            let refused = pool.store.delete_volume(thick.id).await;
            assert!(matches!(refused, Err(Error::ReadOnly { .. })), "{refused:?}");
            assert_eq!(pool.store.info().free_clusters, free);
            pool.store.close().await.unwrap();
        });
        scene.assert_contents(&image_of(&disk), "with an orphan");
    }
}

/// The volumes that are not served keep what they have, whichever page of one is torn, and whoever
/// wrote it: snapshots have the pages of the volume they were made of.
#[test]
fn what_a_damaged_volume_has_is_not_handed_out() {
    let bench = Bench::new();
    for name in ["snap1", "snap2", "thick", "clone1"] {
        let scene = Scene::new("c64k-b512-dirty");
        let (lost, free) = (scene.id(name), scene.report().free_clusters);
        let root = root_page(lost).unwrap();
        let before = tear(&scene, root);
        let disk = disk_of(&scene);
        bench.run(async {
            let pool = open(&bench, &disk).await;
            assert!(quarantined(&pool).contains(&lost));
            assert_eq!(pool.store.info().free_clusters, free, "{name}");
            fill(&pool).await;
            pool.store.close().await.unwrap();
        });
        let image = image_of(&disk);
        image.write_at(scene.place(root), &before).unwrap();
        scene.assert_contents(&image, name);
    }
}

/// In a store that was closed in order once, the bitmaps of that close tell what a lost extent page
/// cannot: after a change and a crash, too.
#[test]
fn what_the_bitmaps_had_is_not_handed_out_after_a_crash() {
    let bench = Bench::new();
    for (name, lost) in [("thick", true), ("snap1", true), ("thick", false), ("snap2", false)] {
        let scene = Scene::new("c64k-b512-clean");
        let (id, free) = (scene.id(name), scene.report().free_clusters);
        let page = if lost { extent_page(&scene, name) } else { root_page(id).unwrap() };
        let before = tear(&scene, page);
        let disk = disk_of(&scene);
        let crashed = bench.run(async {
            let pool = open(&bench, &disk).await;
            assert!(pool.store.recovery().clean && quarantined(&pool).contains(&id));
            assert_eq!(pool.store.info().free_clusters, free, "{name}");
            pool.thin("new", 1).await;
            disk.cut_keep(0)
        });
        bench.run(async {
            let pool = open(&bench, &crashed).await;
            assert!(!pool.store.recovery().clean && quarantined(&pool).contains(&id));
            assert_eq!(pool.store.info().free_clusters, free, "{name}");
            fill(&pool).await;
            pool.store.close().await.unwrap();
        });
        let image = image_of(&crashed);
        image.write_at(scene.place(page), &before).unwrap();
        scene.assert_contents(&image, name);
    }
}
