//! Pages that a power cut tears, and the journal against it.

use std::rc::Rc;

use lvolfs::block::{BlockDevice, Durability};
use lvolfs::lvol::check::{Known, Verdict, check};
use lvolfs::lvol::format::{
    Blob, BlobReader, JOURNAL_NAME, Layout, LayoutOptions, PageBytes, VolumeName, checksum,
    lvolstore, root_page,
};
use lvolfs::lvol::repair::plan;
use lvolfs::lvol::validate::{Finding, validate};
use lvolfs::lvol::{Error, FormatOptions, NewVolume, Store, TornWrites};
use lvolfs::sim::{SimDisk, SimOptions};
use lvolfs::units::{BlobId, BlockSize, ByteCount, Lba};

use super::bench::{Bench, Pool, assert_valid, validated};
use super::image::Image;

const CLUSTER: u64 = 4096;
const DISK: u64 = 2 << 20;

fn disk(atomic_unit: usize) -> SimDisk {
    let block_size = BlockSize::B512;
    SimDisk::new(SimOptions { atomic_unit, block_size, ..SimOptions::new(ByteCount(DISK)) })
}

async fn format<D: BlockDevice>(bench: &Bench, device: &D) {
    let layout = LayoutOptions { cluster_size: ByteCount(CLUSTER), metadata_ratio_percent: 40 };
    let options = FormatOptions { name: "pool".to_owned(), uuid: None, layout };
    Store::format(device, &bench.arena, &options).await.unwrap();
}

fn names<D: BlockDevice>(pool: &Pool<D>) -> Vec<String> {
    pool.store.volumes().into_iter().map(|volume| volume.name).collect()
}

fn bytes_of(disk: &SimDisk) -> Vec<u8> {
    let mut bytes = vec![0; DISK as usize];
    disk.read_at(0, &mut bytes);
    bytes
}

/// A disk whose power was cut while volume "before" was renamed to "after", each choice of what
/// survived of its root's sectors; and the two pages that it can be.
struct Renamed {
    bench: Rc<Bench>,
    moment: SimDisk,
    root: u64,
    before: PageBytes,
    after: PageBytes,
}

impl Renamed {
    fn new() -> Self {
        let bench = Rc::new(Bench::new());
        let disk = disk(512);
        let id = bench.run(async {
            format(&bench, &disk.channel(&bench.reactor)).await;
            let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
            let made = NewVolume::thin("before", ByteCount(CLUSTER));
            let id = pool.store.create_volume(made).await.unwrap().id;
            disk.record();
            pool.store.rename_volume(id, "after").await.unwrap();
            id
        });
        let layout = validated(&disk).layout;
        let root = layout.page_offset(root_page(id).unwrap()).unwrap().0;
        let page = |disk: &SimDisk| {
            let mut page = [0; 4096];
            disk.read_at(root, &mut page);
            page
        };
        let moments = disk.recorded();
        let before = page(&moments[0].1.cut_keep(0));
        let after = page(&disk);
        // The root is the last thing written.
        let torn = |(_, moment): &(u64, SimDisk)| page(&moment.cut_choosing(|_| true)) == after;
        let moment = moments.iter().find(|moment| torn(moment)).unwrap().1.clone();
        Self { bench, moment, root, before, after }
    }
}

#[test]
fn a_torn_root_is_restored_and_known_to_check_and_repair() {
    let Renamed { bench, moment, root, before, after } = Renamed::new();
    let choices = moment.choices();
    assert!(choices >= 2, "name and checksum are in different sectors");
    let mut torn = 0;
    for mask in 0..1_u64 << choices {
        let disk = moment.cut_choosing(|choice| mask >> choice & 1 != 0);
        let image = bytes_of(&disk);
        let page: PageBytes = image[root as usize..][..4096].try_into().unwrap();
        let is_torn = page != before && page != after;
        torn += usize::from(is_torn);
        // Check: repairable, and by the repair clean.
        let image = Image::new(image);
        let found = check(&image, Known::default()).unwrap();
        let report = found.report.as_ref().unwrap();
        let says = report.findings.iter().any(|finding| matches!(finding, Finding::Torn { .. }));
        assert_eq!(says, is_torn, "{:?}", report.findings);
        let verdict = if is_torn { Verdict::Repairable } else { Verdict::Clean };
        assert_eq!(found.verdict(), verdict);
        let expected = if page == before { "before" } else { "after" };
        assert!(report.volume(expected).is_some());
        assert!(report.volume(JOURNAL_NAME).is_none() && report.journal.is_some());
        plan(&image, Known::default(), &[]).unwrap().carry_out(&image).unwrap();
        if is_torn {
            assert_eq!(image.page(root), after);
        }
        assert_eq!(check(&image, Known::default()).unwrap().verdict(), Verdict::Clean);
        // Opening: restored, and durable before anything else is done.
        bench.run(async {
            let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
            assert_eq!(names(&pool), [expected]);
            assert_eq!(pool.store.quarantined(), []);
        });
        let survived = bytes_of(&disk.cut_keep(0));
        assert_eq!(survived[root as usize..][..4096] == after, expected == "after");
    }
    assert!(torn > 0);
}

#[test]
fn what_others_wrote_meanwhile_is_not_overwritten() {
    let Renamed { bench, moment, root, before, after } = Renamed::new();
    let done = moment.cut_choosing(|_| true);
    // SPDK gives the volume a third name and knows no journal.
    let layout = validated(&done).layout;
    let id = validated(&done).volume("after").unwrap().blob;
    let third = changed(&layout, id, &after, |blob| {
        lvolstore::rename(&mut blob.xattrs, &VolumeName::new("third").unwrap());
    });
    let with = |page: &PageBytes| {
        let mut bytes = bytes_of(&done);
        bytes[root as usize..][..4096].copy_from_slice(page);
        let options = SimOptions {
            atomic_unit: 512,
            block_size: BlockSize::B512,
            ..SimOptions::new(ByteCount(DISK))
        };
        SimDisk::with_image(options, &bytes)
    };
    let open = |disk: &SimDisk| bench.run(bench.open(disk.channel(&bench.reactor))).unwrap();
    for (page, name) in [(&third, "third"), (&before, "before"), (&after, "after")] {
        let disk = with(page);
        assert_eq!(names(&open(&disk)), [name], "an intact page is left alone");
        assert_eq!(bytes_of(&disk)[root as usize..][..4096], *page);
    }
    // Torn between two pages of which the journal knows one at most: that is damage, and stays.
    for (head, tail) in [(&third, &after), (&third, &before), (&before, &third)] {
        let mut torn = *head;
        torn[512..].copy_from_slice(&tail[512..]);
        let disk = with(&torn);
        let pool = open(&disk);
        assert_eq!(pool.store.quarantined().len(), 1);
        assert_eq!(bytes_of(&disk)[root as usize..][..4096], torn);
    }
}

/// A blob of one page, changed and sealed again.
fn changed(
    layout: &Layout,
    id: BlobId,
    page: &PageBytes,
    change: impl FnOnce(&mut Blob),
) -> PageBytes {
    let reader = BlobReader::start(layout, root_page(id).unwrap(), page).unwrap();
    let mut blob = reader.finish().unwrap().blob;
    change(&mut blob);
    blob.encode().unwrap()[0]
}

#[test]
fn the_journal_is_no_volume_and_is_made_only_where_pages_tear() {
    let bench = Bench::new();
    for (unit, torn_writes) in [(512, TornWrites::Journal), (4096, TornWrites::Atomic)] {
        let disk = disk(unit);
        bench.run(async {
            format(&bench, &disk.channel(&bench.reactor)).await;
            let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
            let free = pool.store.info().free_clusters.0;
            assert_eq!(disk.undecided(), 0, "opening writes nothing");
            let made = NewVolume::thin("v", ByteCount(CLUSTER));
            let id = pool.store.create_volume(made).await.unwrap().id;
            let info = pool.store.info();
            assert_eq!(info.torn_writes, torn_writes);
            assert_eq!(names(&pool), ["v"]);
            let taken = if torn_writes == TornWrites::Journal { 32 } else { 0 };
            assert_eq!(info.free_clusters.0, free - taken);
            // Its name is taken, and leads nowhere.
            assert_eq!(pool.store.find(JOURNAL_NAME), None);
            let renamed = pool.store.rename_volume(id, JOURNAL_NAME).await;
            assert_eq!(matches!(renamed, Err(Error::Exists { .. })), taken > 0);
            pool.store.close().await.unwrap();
            assert_valid(&disk);
            assert_eq!(validated(&disk).journal.is_some(), taken > 0);
            // It is found again, not made again.
            let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
            pool.store.set_xattr(id, b"a", b"b").await.unwrap();
            assert_eq!(pool.store.info().free_clusters.0, free - taken);
            assert_eq!(pool.store.info().torn_writes, torn_writes);
        });
    }
}

#[test]
fn a_journal_that_others_made_unusable_becomes_a_volume_and_is_replaced() {
    let Renamed { bench, moment, .. } = Renamed::new();
    let done = moment.cut_choosing(|_| true);
    let report = validated(&done);
    let id = report.journal.as_ref().unwrap().blob;
    let root = report.layout.page_offset(root_page(id).unwrap()).unwrap().0;
    let mut page = [0; 4096];
    done.read_at(root, &mut page);
    // As a snapshot of it would leave it.
    let thin = changed(&report.layout, id, &page, |blob| blob.flags.thin = true);
    bench.run(async {
        let device = done.channel(&bench.reactor);
        let mut buffer = bench.buffer(4096, 0);
        buffer.copy_from_slice(&thin);
        device.write(Lba(root / 512), buffer, Durability::Cached).await.unwrap();
        let pool = bench.open(device).await.unwrap();
        assert_eq!(pool.store.info().torn_writes, TornWrites::Unprotected);
        let mut found = names(&pool);
        found.sort();
        assert_eq!(found, ["after", JOURNAL_NAME]);
        let made = NewVolume::thin("more", ByteCount(CLUSTER));
        pool.store.create_volume(made).await.unwrap();
        assert_eq!(pool.store.info().torn_writes, TornWrites::Journal);
        assert!(!names(&pool).contains(&format!("{JOURNAL_NAME}-2")));
        // What was the journal can be deleted as any volume.
        pool.store.delete_volume(id).await.unwrap();
        pool.store.close().await.unwrap();
        assert_valid(&done);
    });
}

#[test]
fn a_full_pool_goes_on_without_a_journal_until_there_is_room() {
    let bench = Bench::new();
    bench.run(async {
        // Filled where nothing tears, then moved to where it does.
        let disk = disk(4096);
        format(&bench, &disk.channel(&bench.reactor)).await;
        let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
        let free = u64::from(pool.store.info().free_clusters.0);
        let big = NewVolume::thick("big", ByteCount((free - 31) * CLUSTER));
        let big = pool.store.create_volume(big).await.unwrap().id;
        pool.store.close().await.unwrap();
        let options = SimOptions {
            atomic_unit: 512,
            block_size: BlockSize::B512,
            ..SimOptions::new(ByteCount(DISK))
        };
        let disk = SimDisk::with_image(options, &bytes_of(&disk));
        let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
        pool.store.set_xattr(big, b"a", b"b").await.unwrap();
        assert_eq!(pool.store.info().torn_writes, TornWrites::Unprotected);
        pool.store.resize_volume(big, ByteCount(CLUSTER)).await.unwrap();
        bench.reactor.sleep(std::time::Duration::from_secs(1)).await;
        pool.store.set_xattr(big, b"a", b"c").await.unwrap();
        assert_eq!(pool.store.info().torn_writes, TornWrites::Journal);
        pool.store.close().await.unwrap();
        assert_valid(&disk);
    });
}

/// More roots in one commit than one record can hold.
#[test]
fn a_commit_of_many_volumes_is_torn_nowhere() {
    let bench = Bench::new();
    let disk = disk(512);
    let begun = bench.run(async {
        format(&bench, &disk.channel(&bench.reactor)).await;
        let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
        let mut volumes = Vec::new();
        for number in 0..40 {
            volumes.push(pool.thin_of(&format!("volume {number}"), ByteCount(CLUSTER)).await);
        }
        disk.record();
        let begun = disk.commands();
        for volume in &volumes {
            let buffer = bench.buffer(4096, 1);
            volume.write(Default::default(), buffer, Durability::Cached).await.unwrap();
        }
        pool.store.close().await.unwrap();
        begun
    });
    let mut restored = 0;
    for (command, moment) in disk.recorded().into_iter().filter(|(command, _)| *command > begun) {
        for seed in 0..2 {
            let cut = moment.cut(command << 8 | seed);
            let report = validate(&bytes_of(&cut).as_slice(), BlockSize::B512).unwrap();
            assert_eq!(report.errors().collect::<Vec<_>>(), Vec::<&Finding>::new(), "{command}");
            let torn = report.findings.iter().filter(|f| matches!(f, Finding::Torn { .. }));
            restored += torn.count();
            let opened = bench.run(bench.open(cut.channel(&bench.reactor))).unwrap();
            assert_eq!(opened.store.quarantined(), [], "command {command}, seed {seed}");
            assert_eq!(opened.store.volumes().len(), 40);
        }
    }
    assert!(restored > 40, "{restored} pages were torn");
}

/// What the checksum says is right is never the journal's business.
#[test]
fn a_record_that_anybody_wrote_cannot_change_intact_pages() {
    let Renamed { bench, moment, root, .. } = Renamed::new();
    let done = moment.cut_choosing(|_| true);
    let before = bytes_of(&done);
    let page: PageBytes = before[root as usize..][..4096].try_into().unwrap();
    assert_eq!(page[4092..], checksum(&page).to_le_bytes());
    bench.run(async {
        let pool = bench.open(done.channel(&bench.reactor)).await.unwrap();
        assert!(pool.store.recovery().pages_scanned > 0);
    });
    assert_eq!(bytes_of(&done), before, "opening wrote nothing");
}
