//! Pools as a whole: made in other ways than the usual one, renamed, destroyed.

use lvolfs::block::{BlockDevice, Durability};
use lvolfs::lvol::format::{ClearMethod, Contents, LayoutOptions};
use lvolfs::lvol::{Error, FormatOptions, Preparation, Store};
use lvolfs::sim::{SimDisk, SimOptions};
use lvolfs::units::{BlockSize, ByteCount, ByteOffset, Lba};

use super::bench::{BLOCK, Bench, CLUSTER, assert_valid, disk};

#[test]
fn a_pool_is_made_with_larger_metadata_pages_and_a_zeroed_device() {
    let bench = Bench::new();
    let old = vec![0xaa; 4 << 20];
    let disk = SimDisk::with_image(SimOptions::new(ByteCount(4 << 20)), &old);
    bench.run(async {
        let device = disk.channel(&bench.reactor);
        let layout =
            LayoutOptions { cluster_size: ByteCount(CLUSTER), metadata_ratio_percent: 200 };
        let options = FormatOptions { name: "pool".to_owned(), uuid: None, layout };
        let preparation = Preparation {
            clear: ClearMethod::WriteZeroes,
            metadata_page: BlockSize::new(16384).unwrap(),
        };
        let refused =
            Store::format_prepared(&device, &bench.arena, &options, preparation).await.unwrap_err();
        assert!(matches!(refused, Error::NotBlank(Contents::Unknown)), "{refused}");
        let buffer = bench.buffer(128 << 10, 0);
        device.write(Lba(0), buffer, Durability::Cached).await.unwrap();
        Store::format_prepared(&device, &bench.arena, &options, preparation).await.unwrap();
        let pool = bench.open(device).await.unwrap();
        let volume = pool.thin("v", 4).await;
        pool.write(&volume, 1, 1, 7).await.unwrap();
        volume.flush().await.unwrap();
        pool.store.close().await.unwrap();
    });
    assert_valid(&disk);
    let mut page_size = [0; 4];
    disk.read_at(92, &mut page_size);
    assert_eq!(u32::from_le_bytes(page_size), 16384);
    let mut last = vec![1; CLUSTER as usize];
    disk.read_at((4 << 20) - CLUSTER, &mut last);
    assert!(last.iter().all(|byte| *byte == 0), "the data clusters were zeroed");
}

#[test]
fn a_destroyed_pool_leaves_a_blank_device_and_nothing_that_works() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let device = disk.channel(&bench.reactor);
        let pool = bench.pool(device.clone()).await;
        let volume = pool.thick("v", 4).await;
        pool.write(&volume, 0, 4, 9).await.unwrap();
        pool.store.destroy().await.unwrap();
        assert_eq!(pool.content(&volume).await, Err(Error::Closed));
        assert_eq!(pool.write(&volume, 0, 1, 1).await, Err(Error::Closed));
        assert_eq!(volume.flush().await, Err(Error::Closed));
        assert_eq!(pool.store.destroy().await, Err(Error::Closed));
        assert_eq!(Store::identify(&device, &bench.arena).await, Ok(Contents::Blank));
        assert!(matches!(bench.open(device.clone()).await, Err(Error::SuperBlock(_))));
        // What comes after does not see what was there.
        let pool = bench.pool(device).await;
        assert_eq!(pool.store.volumes(), []);
        let volume = pool.thin("v", 4).await;
        assert!(pool.blocks(&volume).await.iter().all(|block| *block == 0));
        pool.store.close().await.unwrap();
    });
    assert_valid(&disk);
}

/// All of the pool, or a blank device: on blocks of 4096 bytes, and on blocks of 512 where a
/// super block can be torn.
#[test]
fn a_power_cut_while_a_pool_is_destroyed_leaves_all_of_it_or_nothing() {
    for block_size in [BlockSize::B4096, BlockSize::B512] {
        let bench = Bench::new();
        let unit = block_size.bytes() as usize;
        let options =
            SimOptions { block_size, atomic_unit: unit, ..SimOptions::new(ByteCount(4 << 20)) };
        let disk = SimDisk::new(options);
        bench.run(async {
            let pool = bench.pool(disk.channel(&bench.reactor)).await;
            let volume = pool.thin("v", 6).await;
            pool.write(&volume, 0, 3 * CLUSTER as usize / unit, 5).await.unwrap();
            volume.flush().await.unwrap();
            if block_size == BlockSize::B4096 {
                // Not durable, and so not promised, when the pool goes.
                pool.write(&volume, 4 * CLUSTER / unit as u64, 1, 6).await.unwrap();
            }
            disk.record();
            pool.store.destroy().await.unwrap();
        });
        let (mut whole, mut blank) = (0, 0);
        for (command, moment) in disk.recorded() {
            for seed in 0..24 {
                let cut = moment.cut(seed);
                bench.run(async {
                    let device = cut.channel(&bench.reactor);
                    match bench.open(device.clone()).await {
                        Ok(pool) => {
                            let volume = pool.volume("v").await;
                            let content = pool.content(&volume).await.unwrap();
                            let kept = &content[..3 * CLUSTER as usize];
                            assert!(kept.iter().all(|byte| *byte == 5), "{command}, seed {seed}");
                            whole += 1;
                        }
                        Err(Error::SuperBlock(_)) => {
                            let found = Store::identify(&device, &bench.arena).await;
                            let gone = [Ok(Contents::Blank), Ok(Contents::Remains)];
                            assert!(gone.contains(&found), "{command}, seed {seed}: {found:?}");
                            bench.pool(device).await.store.close().await.unwrap();
                            if block_size == BlockSize::B4096 {
                                assert_valid(&cut);
                            }
                            blank += 1;
                        }
                        Err(error) => panic!("command {command}, seed {seed}: {error}"),
                    }
                });
            }
        }
        assert!(whole > 0 && blank > 0, "{whole} {blank}");
    }
}

#[test]
fn a_power_cut_while_a_pool_is_renamed_leaves_one_of_the_names() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let volume = pool.thin("v", 2).await;
        pool.write(&volume, 0, 1, 5).await.unwrap();
        volume.flush().await.unwrap();
        disk.record();
        pool.store.rename("other").await.unwrap();
    });
    let recorded = disk.recorded();
    let mut names = std::collections::BTreeSet::new();
    for (command, moment) in &recorded {
        for seed in 0..16 {
            let cut = moment.cut(seed);
            bench.run(async {
                let pool = bench.open(cut.channel(&bench.reactor)).await.unwrap();
                let name = pool.store.info().name;
                assert!(["pool", "other"].contains(&&*name), "{command}, seed {seed}: {name}");
                names.insert(name);
                let volume = pool.volume("v").await;
                assert_eq!(pool.blocks(&volume).await[0], 5);
                pool.store.close().await.unwrap();
            });
            assert_valid(&cut);
        }
    }
    assert_eq!(names.len(), 2, "{names:?}");
    bench.run(async {
        let after = disk.cut_keep(0);
        let pool = bench.open(after.channel(&bench.reactor)).await.unwrap();
        assert_eq!(pool.store.info().name, "other", "it was durable on return");
        let offset = ByteOffset(BLOCK as u64);
        assert!(pool.volume("v").await.next_data(offset).is_some());
    });
}
