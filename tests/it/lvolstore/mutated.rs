//! Images of SPDK with bytes changed at random, their checksums mostly made right again, as an enemy
//! would: check, repair, dump and opening must end, without a panic; and what a check calls clean
//! must open with all that the check saw.
//!
//! `SEED=n cargo test --test it mutated` runs one seed. Seeds that once failed are replayed.

use std::collections::BTreeSet;

use lvolfs::block::{BlockDevice, Durability};
use lvolfs::lvol::Store;
use lvolfs::lvol::check::{Known, Verdict, check};
use lvolfs::lvol::dump::dump;
use lvolfs::lvol::format::{MaskKind, PageBytes, checksum};
use lvolfs::lvol::repair::{ImageWrite, plan};
use lvolfs::lvol::validate::{Finding, Report, Severity, validate};
use lvolfs::sim::{SimDisk, SimOptions};
use lvolfs::units::{BlobId, BlockSize, ByteCount, Lba};

use super::bench::Bench;
use super::image::Image;
use crate::golden::Golden;

const PAGE: usize = 4096;
/// Seeds of each image in an ordinary run.
const SEEDS: u64 = 60;
/// Seeds that found something once.
const CORPUS: &[u64] = &[];

/// Changes one page of `targets`.
fn mutate(mutant: &Image, targets: &[u64], rng: &mut fastrand::Rng) {
    let offset = targets[rng.usize(..targets.len())];
    let mut page = mutant.page(offset);
    // What means something is mostly at the start.
    let end = if rng.bool() { 128 } else { PAGE - 4 };
    for _ in 0..=rng.usize(0..3) {
        let at = rng.usize(0..end - 4);
        match rng.u8(0..6) {
            0 => page[at] ^= 1 << rng.u8(0..8),
            1 => page[at..at + 4].fill(0),
            2 => page[at..at + 4].fill(0xff),
            3 => page[at..at + 4].copy_from_slice(&rng.u32(0..2000).to_le_bytes()),
            4 => page = mutant.page(targets[rng.usize(..targets.len())]),
            _ => page.copy_within(at + 4..at + 8, at),
        }
    }
    if rng.u8(0..10) < 8 {
        let crc = checksum(&page).to_le_bytes();
        page[PAGE - 4..].copy_from_slice(&crc);
    }
    mutant.write_at(offset, &page).unwrap();
}

/// The pages that mean something in an image, and some that do not yet.
fn targets(golden: &Golden) -> Vec<u64> {
    let layout = validate(&golden.bytes.as_slice(), golden.block_size).unwrap().layout;
    let mut targets = vec![0, 0, 0];
    for kind in [MaskKind::UsedPages, MaskKind::UsedClusters, MaskKind::UsedBlobIds] {
        targets.push(layout.region_bytes(layout.mask_region(kind).unwrap()).0.0);
    }
    let (start, length) = layout.region_bytes(layout.metadata_region());
    let all = (start.0..start.0 + length.0).step_by(PAGE);
    let in_use = all.filter(|at| golden.bytes[*at as usize..][..8] != [0; 8]);
    targets.extend(in_use);
    targets.extend([start.0 + length.0 - PAGE as u64, start.0 + length.0 - 2 * PAGE as u64]);
    targets
}

async fn open(bench: &Bench, golden: &SimDisk, mutant: &Image) -> Option<(usize, usize)> {
    let disk = golden.fork();
    let device = disk.channel(&bench.reactor);
    let shift = device.geometry().block_size.shift();
    for (offset, page) in mutant.changed() {
        let mut buffer = bench.buffer(PAGE, 0);
        buffer.copy_from_slice(&page);
        device.write(Lba(offset >> shift), buffer, Durability::Cached).await.unwrap();
    }
    let store = Store::open(device, &bench.reactor, &bench.arena).await.ok()?;
    let found = (store.volumes().len(), store.quarantined().len());
    // A power cut ends it: closing is not what is looked at here.
    Some(found)
}

fn run(name: &str, seeds: impl Iterator<Item = u64>) {
    let golden = Golden::open(name);
    let size = ByteCount(golden.bytes.len() as u64);
    let options = SimOptions { block_size: golden.block_size, ..SimOptions::new(size) };
    let disk = SimDisk::with_image(options, &golden.bytes);
    let targets = targets(&golden);
    let original = Image::new(golden.bytes.clone());
    let bench = Bench::new();
    let known = Known { block_size: Some(golden.block_size), cluster_size: None };
    for seed in seeds {
        let told = Told(format!("{name}, seed {seed}"));
        let mut rng = fastrand::Rng::with_seed(seed);
        let mutant = original.clone();
        for _ in 0..=rng.u8(0..3) {
            mutate(&mutant, &targets, &mut rng);
        }
        let _shown = dump(&mutant, known);
        let opened = bench.run(open(&bench, &disk, &mutant));
        let Ok(found) = check(&mutant, known) else { continue };
        judge(&found, opened);
        let Ok(plan) = plan(&mutant, known, &[]) else { panic!("checked, but no plan") };
        plan.carry_out(&mutant).unwrap();
        let after = check(&mutant, known).unwrap();
        assert!(after.verdict() <= found.verdict(), "worse by repair");
        if found.verdict() == Verdict::Repairable {
            assert_eq!(after.verdict(), Verdict::Clean, "{:?}", after.report.map(|r| r.findings));
        }
        judge(&after, bench.run(open(&bench, &disk, &mutant)));
        if let Some(report) = &after.report {
            give_up_all(report, &mutant, known);
            judge(&check(&mutant, known).unwrap(), bench.run(open(&bench, &disk, &mutant)));
        }
        drop(told);
    }
}

/// Gives up whatever is damaged, if that is possible: the rest stays as it is.
fn give_up_all(before: &Report, mutant: &Image, known: Known) {
    let damage = before.findings.iter().filter(|found| found.severity() == Severity::Damage);
    let blobs: BTreeSet<BlobId> = damage.flat_map(Finding::blobs).collect();
    let blobs: Vec<_> = blobs.into_iter().collect();
    let Ok(plan) = plan(mutant, known, &blobs) else { return };
    plan.carry_out(mutant).unwrap();
    let after = check(mutant, known).unwrap();
    let Some(report) = &after.report else { panic!("the super block is gone") };
    for (id, volume) in &before.volumes {
        let left = report.volumes.get(id);
        if blobs.contains(id) {
            assert!(left.is_none(), "{:#x} was given up", id.0);
        } else {
            assert_eq!(left.unwrap().map().runs(), volume.map().runs());
        }
    }
}

fn judge(found: &lvolfs::lvol::check::Check, opened: Option<(usize, usize)>) {
    if found.verdict() == Verdict::Clean {
        let volumes = found.report.as_ref().map_or(0, |report| report.volumes.len());
        assert_eq!(opened, Some((volumes, 0)), "clean, but: volumes, quarantined");
    }
}

/// Says where it happened, if it does.
struct Told(String);

impl Drop for Told {
    #[expect(clippy::print_stderr, reason = "a failing test says where it failed")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed at {}", self.0);
        }
    }
}

const MUTATED: [&str; 4] =
    ["c64k-b512-clean", "c64k-b512-dirty", "c1m-b4096-clean", "c1m-b4096-del-dirty"];

#[test]
fn mutated_images_are_judged_and_opened_without_a_panic() {
    let one = std::env::var("SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    for name in MUTATED {
        match one {
            Some(seed) => run(name, std::iter::once(seed)),
            None => run(name, CORPUS.iter().copied().chain(0..SEEDS)),
        }
    }
}

#[test]
fn arbitrary_bytes_are_no_store() {
    let mut rng = fastrand::Rng::with_seed(5);
    for length in [0, 1, 4095, 4096, 8192, 1 << 20] {
        for _ in 0..20 {
            let mut bytes = vec![0; length];
            rng.fill(&mut bytes);
            if rng.bool() && length >= 8 {
                bytes[..8].copy_from_slice(b"SPDKBLOB");
            }
            let known =
                Known { block_size: Some(BlockSize::B512), cluster_size: Some(ByteCount(65536)) };
            let image = bytes.as_slice();
            let judged = check(&image, known).map(|found| found.verdict());
            assert!(!matches!(judged, Ok(Verdict::Clean | Verdict::Repairable)), "{judged:?}");
            let _shown = dump(&image, known);
        }
    }
}

/// A small store whose blobs all refer to the same extent pages would take gigabytes if each
/// reference counted.
#[test]
fn many_references_to_few_pages_are_bounded() {
    use lvolfs::lvol::format::{
        Blob, ExtentPage, ExtentTable, Layout, LayoutOptions, Mapping, Medium, SuperBlock,
        TableSlot, blob_id,
    };
    use lvolfs::units::{BlockCount, ClusterCount, ClusterIndex, PageIndex};
    let size = 64_u64 << 20;
    let medium = Medium::new(BlockSize::B512, BlockCount(size / 512));
    let options = LayoutOptions { cluster_size: ByteCount(4096), metadata_ratio_percent: 50 };
    let layout = Layout::create(medium, options).unwrap();
    let mut image = vec![0_u8; size as usize];
    let mut put = |page: PageIndex, bytes: &PageBytes| {
        let at = layout.page_offset(page).unwrap().0 as usize;
        image[at..at + PAGE].copy_from_slice(bytes);
    };
    let slots = 400_u32;
    let data = layout.metadata_clusters().0;
    let pages = layout.metadata_pages();
    for slot in 0..slots {
        // Every other cluster, so that runs do not join.
        let entry = |at: u32| at.is_multiple_of(2).then_some(ClusterIndex(data + at));
        let blob = blob_id(PageIndex(0));
        let first = TableSlot(slot).first_cluster();
        let extent = ExtentPage { blob, first, clusters: (0..512).map(entry).collect() };
        put(PageIndex(pages - 1 - slot), &extent.encode());
    }
    for root in 0..pages - slots {
        let mut table = ExtentTable::new(ClusterCount(slots * 512));
        for slot in 0..slots {
            table.set(TableSlot(slot), PageIndex(pages - 1 - slot));
        }
        let mut blob = Blob::new(blob_id(PageIndex(root)));
        blob.flags.thin = true;
        blob.mapping = Mapping::Table(table);
        put(PageIndex(root), &blob.encode().unwrap()[0]);
    }
    let mut super_block = SuperBlock::new(layout);
    super_block.set_super_blob(Some(blob_id(PageIndex(0))));
    image[..PAGE].copy_from_slice(&super_block.encode());
    let found = check(&image.as_slice(), Known::default()).unwrap();
    assert_eq!(found.verdict(), Verdict::Damaged);
    let findings = &found.report.unwrap().findings;
    assert!(findings.iter().any(|finding| finding.code() == "excess"));
    let disk = SimDisk::with_image(
        SimOptions { block_size: BlockSize::B512, ..SimOptions::new(ByteCount(size)) },
        &image,
    );
    let bench = Bench::new();
    let opened = bench.run(Store::open(disk.channel(&bench.reactor), &bench.reactor, &bench.arena));
    assert!(opened.is_err(), "there is no name");
}
