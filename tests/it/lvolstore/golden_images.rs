//! Pools that SPDK made, served by us.

use lvolfs::block::Durability;
use lvolfs::lvol::validate::validate;
use lvolfs::lvol::{Error, External, ReadOnlyReason, external_name};
use lvolfs::sim::{SimChannel, SimDisk, SimOptions};
use lvolfs::units::{ByteCount, ByteOffset};

use super::bench::{Bench, Pool};
use crate::golden::{EXTERNAL_TAG, Golden, IMAGES, pattern, sha256};

async fn open(bench: &Bench, golden: &Golden) -> (SimDisk, Pool<SimChannel>) {
    let size = ByteCount(golden.bytes.len() as u64);
    let options = SimOptions { block_size: golden.block_size, ..SimOptions::new(size) };
    let disk = SimDisk::with_image(options, &golden.bytes);
    let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
    (disk, pool)
}

#[test]
fn every_image_opens_with_its_volumes_and_their_content() {
    let bench = Bench::new();
    for name in IMAGES {
        let golden = Golden::open(name);
        bench.run(async {
            let (disk, pool) = open(&bench, &golden).await;
            let [store] = golden.manifest.lvstores.as_slice() else { panic!("{name}") };
            let info = pool.store.info();
            assert_eq!(info.name, store.name, "{name}");
            assert_eq!(info.uuid.unwrap().to_string(), store.uuid, "{name}");
            assert_eq!(info.free_clusters.0, store.free_clusters, "{name}");
            assert_eq!(info.data_clusters.0, store.total_data_clusters, "{name}");
            assert_eq!(pool.store.quarantined(), [], "{name}");
            let clean = golden.manifest.ended.starts_with("clean");
            assert_eq!(pool.store.recovery().clean, clean, "{name}");
            let lvols = golden.lvols();
            assert_eq!(pool.store.volumes().len(), lvols.len(), "{name}");
            for (lvol_name, lvol) in lvols {
                let what = format!("{name}: {lvol_name}");
                let info = pool.store.find(lvol_name).expect(&what);
                assert_eq!(info.uuid.unwrap().to_string(), lvol.uuid, "{what}");
                assert_eq!(info.size.0, lvol.bytes, "{what}");
                assert_eq!(info.thin, lvol.is_thin, "{what}");
                assert_eq!(info.allocated.0, lvol.num_allocated_clusters, "{what}");
                let parent = info.parent.map(|id| pool.store.volume(id).unwrap().name);
                assert_eq!(parent, lvol.base_snapshot, "{what}");
                assert_eq!(info.clones.len(), lvol.clones.iter().flatten().count(), "{what}");
                let volume = pool.volume(lvol_name).await;
                if let Some(name) = &lvol.external_snapshot_name {
                    assert_eq!(pool.content(&volume).await, Err(Error::ExternalParent));
                    let reason = Some(ReadOnlyReason::ExternalParent);
                    assert_eq!((info.read_only, info.degraded), (reason, true), "{what}");
                    let name = external_name(name.as_bytes());
                    assert_eq!(
                        pool.store.external_parents(),
                        std::slice::from_ref(&name),
                        "{what}"
                    );
                    let device = external_parent(&bench);
                    pool.io.attach_external(&name, External::Device(device.clone()));
                    pool.store.attach_external(&name, External::Device(device));
                    let info = pool.store.find(lvol_name).expect(&what);
                    assert_eq!((info.read_only, info.degraded), (None, false), "{what}");
                }
                let content = pool.content(&volume).await.unwrap();
                assert_eq!(sha256(&content), lvol.sha256, "{what}");
            }
            pool.store.close().await.unwrap();
            if clean {
                assert_eq!(disk.undecided(), 0, "{name}: what was only read is not written");
            }
        });
    }
}

/// The external parent of the `esnap` image, by the manifest's pattern.
fn external_parent(bench: &Bench) -> SimChannel {
    let mut content = vec![0; 4 << 20];
    pattern(EXTERNAL_TAG, 0, &mut content);
    let options = SimOptions::new(ByteCount(content.len() as u64));
    SimDisk::with_image(options, &content).channel(&bench.reactor)
}

/// What SPDK's clone shows of its external parent becomes its own.
#[test]
fn the_clone_of_an_external_parent_can_be_written_and_inflated() {
    let bench = Bench::new();
    let golden = Golden::open("c1m-b4096-esnap-clean");
    let lvol = golden.lvols()["esclone"];
    bench.run(async {
        let (disk, pool) = open(&bench, &golden).await;
        let name = external_name(lvol.external_snapshot_name.as_ref().unwrap().as_bytes());
        let device = external_parent(&bench);
        pool.io.attach_external(&name, External::Device(device.clone()));
        pool.store.attach_external(&name, External::Device(device));
        let volume = pool.volume("esclone").await;
        let mut content = pool.content(&volume).await.unwrap();
        assert_eq!(sha256(&content), lvol.sha256);
        let buffer = bench.buffer(4096, 0x5a);
        volume.write(ByteOffset(3 << 20), buffer, Durability::Cached).await.unwrap();
        content[3 << 20..][..4096].fill(0x5a);
        assert!(pool.content(&volume).await.unwrap() == content);
        pool.store.inflate_volume(volume.map().blob()).await.unwrap();
        pool.store.detach_external(&name);
        pool.io.detach_external(&name);
        assert!(pool.content(&volume).await.unwrap() == content);
        pool.store.close().await.unwrap();
        let mut image = vec![0; golden.bytes.len()];
        disk.read_at(0, &mut image);
        let report = validate(&image.as_slice(), golden.block_size).unwrap();
        let errors: Vec<_> = report.errors().collect();
        assert!(errors.is_empty() && report.clean, "{errors:?}");
        let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
        assert_eq!(pool.store.external_parents().len(), 0);
        let volume = pool.volume("esclone").await;
        assert!(pool.content(&volume).await.unwrap() == content);
    });
}

/// Writes to each volume that takes writes, and compares with a copy of what it held.
#[test]
fn volumes_of_every_image_can_be_written() {
    let bench = Bench::new();
    for name in ["c1m-b4096-dirty", "c64k-b512-clean", "c64k-b512-delsnap-clean"] {
        let golden = Golden::open(name);
        bench.run(async {
            let (disk, pool) = open(&bench, &golden).await;
            let mut expected = Vec::new();
            for info in pool.store.volumes() {
                let volume = pool.volume(&info.name).await;
                let mut content = pool.content(&volume).await.unwrap();
                if info.read_only.is_none() && !content.is_empty() {
                    let unit = volume.block_size().bytes() as usize;
                    for at in [0, content.len() / 2 / unit * unit, content.len() - unit] {
                        let buffer = bench.buffer(unit, 0x5a);
                        let offset = ByteOffset(at as u64);
                        volume.write(offset, buffer, Durability::Cached).await.unwrap();
                        content[at..at + unit].fill(0x5a);
                    }
                    volume.flush().await.unwrap();
                }
                expected.push((info.name, content));
            }
            for (clean, disk) in [(false, disk.cut(1)), (true, disk.clone())] {
                if clean {
                    pool.store.close().await.unwrap();
                }
                let mut image = vec![0; golden.bytes.len()];
                disk.read_at(0, &mut image);
                let report = validate(&image.as_slice(), golden.block_size).unwrap();
                let errors: Vec<_> = report.errors().collect();
                assert!(errors.is_empty(), "{name}, clean {clean}: {errors:?}");
                assert_eq!(report.clean, clean);
                let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
                for (volume_name, content) in &expected {
                    let volume = pool.volume(volume_name).await;
                    let now = pool.content(&volume).await.unwrap();
                    assert!(now == *content, "{name}: {volume_name}, clean {clean}");
                }
                pool.store.close().await.unwrap();
            }
        });
    }
}
