//! Damage of every class: `check` names it, `repair` mends it or leaves it alone, the volumes keep
//! their content, and undo restores the image to the bit. And the power may fail inside a repair.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;

use lvolfs::lvol::check::{CheckError, Known, Verdict, check};
use lvolfs::lvol::dump::dump;
use lvolfs::lvol::format::{
    Blob, BlobReader, ExtentPage, Layout, Mapping, MaskKind, PageBytes, Run, Runs, TableSlot,
    VolumeName, blob_id, checksum, lvolstore, root_page,
};
use lvolfs::lvol::repair::undo::{Undo, UndoError};
use lvolfs::lvol::repair::{ImageWrite, plan};
use lvolfs::lvol::validate::{Finding, ImageRead, Parent, Report, Severity, Volume, validate};
use lvolfs::lvol::{Error, ReadOnlyReason};
use lvolfs::sim::{SimDisk, SimOptions};
use lvolfs::units::{
    BlobId, BlockSize, ByteCount, ClusterCount, ClusterIndex, PageIndex, VolumeCluster,
};

use super::bench::Bench;
use super::image::Image;
use crate::golden::{Golden, IMAGES, sha256};

const PAGE: usize = 4096;
const NOTHING: Known = Known { cluster_size: None, block_size: None };

/// What is written between two flushes.
type Writes = Vec<(u64, Vec<u8>)>;

/// An image that only keeps what it is told: the writes, by the flush that follows them.
struct Recorder<'i> {
    image: &'i Image,
    steps: RefCell<Vec<Writes>>,
}

impl ImageRead for Recorder<'_> {
    fn size(&self) -> io::Result<ByteCount> {
        self.image.size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.image.read_at(offset, into)
    }
}

impl ImageWrite for Recorder<'_> {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.steps.borrow_mut().last_mut().unwrap().push((offset, bytes.to_vec()));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.steps.borrow_mut().push(Vec::new());
        Ok(())
    }
}

/// A golden image and what is known of it.
pub(super) struct Scene {
    pub(super) golden: Golden,
    pub(super) image: Image,
    pub(super) layout: Layout,
}

impl Scene {
    pub(super) fn new(name: &str) -> Self {
        let golden = Golden::open(name);
        let layout = validate(&golden.bytes.as_slice(), golden.block_size).unwrap().layout;
        let image = Image::new(golden.bytes.clone());
        Self { golden, image, layout }
    }

    pub(super) fn report(&self) -> Report {
        validate(&self.image, BlockSize::B512).unwrap()
    }

    pub(super) fn place(&self, page: PageIndex) -> u64 {
        self.layout.page_offset(page).unwrap().0
    }

    pub(super) fn page(&self, page: PageIndex) -> PageBytes {
        let mut bytes = [0; PAGE];
        self.image.read_at(self.place(page), &mut bytes).unwrap();
        bytes
    }

    pub(super) fn put(&self, page: PageIndex, bytes: &[u8]) {
        self.image.write_at(self.place(page), bytes).unwrap();
    }

    pub(super) fn blob(&self, id: BlobId) -> Blob {
        let root = root_page(id).unwrap();
        let reader = BlobReader::start(&self.layout, root, &self.page(root)).unwrap();
        assert_eq!(reader.next_page(), None, "the blobs of these images have one page");
        reader.finish().unwrap().blob
    }

    pub(super) fn put_blob(&self, blob: &Blob) {
        let pages = blob.encode().unwrap();
        self.put(root_page(blob.id).unwrap(), &pages[0]);
    }

    pub(super) fn id(&self, name: &str) -> BlobId {
        self.report().volume(name).unwrap().blob
    }

    pub(super) fn mask(&self, kind: MaskKind) -> u64 {
        self.layout.region_bytes(self.layout.mask_region(kind).unwrap()).0.0
    }

    /// The last metadata page: nobody uses it.
    pub(super) fn spare(&self) -> PageIndex {
        PageIndex(self.layout.metadata_pages() - 1)
    }

    pub(super) fn change(&self, offset: u64, change: impl FnOnce(&mut u8)) {
        let mut byte = [0];
        self.image.read_at(offset, &mut byte).unwrap();
        change(&mut byte[0]);
        self.image.write_at(offset, &byte).unwrap();
    }

    /// A snapshot as its making leaves it: with the map of the volume it is made of.
    pub(super) fn unfinished_snapshot(&self, of: &str) -> Blob {
        let volume = self.blob(self.id(of));
        let name = VolumeName::new("unfinished").unwrap();
        let uuid = uuid::Uuid::from_u128(99);
        let id = blob_id(self.spare());
        let mut snapshot = lvolstore::volume_blob(id, &name, uuid, ClusterCount(0));
        snapshot.flags = volume.flags;
        snapshot.flags.thin = true;
        snapshot.mapping = volume.mapping.clone();
        snapshot.set_parent(volume.parent());
        snapshot.set_snapshot_of(Some(volume.id));
        snapshot
    }

    /// As [`Scene::unfinished_snapshot`], with the volume already a clone of it.
    pub(super) fn nearly_finished_snapshot(&self, of: &str) {
        let snapshot = self.unfinished_snapshot(of);
        let mut volume = self.blob(self.id(of));
        let clusters = volume.mapping.clusters();
        volume.mapping = Mapping::Table(lvolfs::lvol::format::ExtentTable::new(clusters));
        volume.flags.thin = true;
        volume.set_parent(Some(snapshot.id));
        self.put_blob(&snapshot);
        self.put_blob(&volume);
    }

    /// A deletion of a snapshot that ended when its clone's extent pages had been merged.
    fn merging(&self, snapshot: &str, clone: &str) {
        let (snapshot, clone) = (self.id(snapshot), self.id(clone));
        let mut parent = self.blob(snapshot);
        parent.set_deleting_for(Some(clone));
        self.put_blob(&parent);
        let (Mapping::Table(of_parent), Mapping::Table(of_clone)) =
            (&parent.mapping, &self.blob(clone).mapping)
        else {
            panic!("not tables")
        };
        let slot = TableSlot(0);
        let (from, to) = (of_parent.get(slot).unwrap(), of_clone.get(slot).unwrap());
        let parse = |page| ExtentPage::parse(&self.layout, &self.page(page)).unwrap();
        let (from, mut merged) = (parse(from), parse(to));
        let mut taken = 0;
        for (mine, parents) in merged.clusters.iter_mut().zip(&from.clusters) {
            if mine.is_none() && parents.is_some() {
                *mine = *parents;
                taken += 1;
            }
        }
        assert!(taken > 0, "nothing to take over");
        self.put(to, &merged.encode());
    }

    /// Everything that the manifest lists is there, with its content.
    pub(super) fn assert_contents(&self, image: &Image, what: &str) {
        let report = validate(image, BlockSize::B512).unwrap();
        for (name, lvol) in self.golden.lvols().into_iter().filter(|(_, lvol)| !lvol.is_esnap_clone)
        {
            let volume = report.volume(name).unwrap_or_else(|| panic!("{what}: {name} is gone"));
            let mut content = vec![0; volume.size.0 as usize];
            report.read_volume(image, volume, 0, &mut content).unwrap();
            assert_eq!(sha256(&content), lvol.sha256, "{what}: {name}");
        }
    }

    /// Where each cluster of each volume of the manifest is. Repairs leave data alone, so volumes
    /// of equal shape have equal content.
    fn shape(&self, image: &Image) -> Vec<Vec<Option<ClusterIndex>>> {
        let report = validate(image, BlockSize::B512).unwrap();
        let resolve = |volume: &Volume, at: VolumeCluster| {
            let mut volume = volume;
            loop {
                match (volume.map().get(at), &volume.parent) {
                    (None, Some(Parent::Snapshot(parent))) => volume = &report.volumes[parent],
                    (place, _) => return place,
                }
            }
        };
        let shape = |name: &&str| {
            let volume = report.volume(name).unwrap_or_else(|| panic!("{name} is gone"));
            let clusters = 0..volume.map().clusters().0;
            clusters.map(|at| resolve(volume, VolumeCluster(at))).collect()
        };
        self.golden.lvols().keys().map(shape).collect()
    }

    fn known(&self) -> Known {
        Known { block_size: Some(self.golden.block_size), ..NOTHING }
    }
}

fn codes(image: &Image, known: Known) -> (Verdict, Vec<&'static str>) {
    let found = check(image, known).unwrap();
    let mut codes: Vec<_> =
        found.report.iter().flat_map(|report| &report.findings).map(|f| f.code()).collect();
    codes.dedup();
    if found.super_block.is_some() {
        codes.insert(0, "super-block");
    }
    (found.verdict(), codes)
}

type Damage = (&'static str, &'static str, fn(&Scene), &'static [&'static str]);

/// Image, name, the damage, what a check names.
const REPAIRABLE: &[Damage] = &[
    (
        "c64k-b512-clean",
        "a bitmap was overwritten",
        |s| s.image.write_at(s.mask(MaskKind::UsedClusters), &[0xff; PAGE]).unwrap(),
        &["mask"],
    ),
    (
        "c1m-b4096-clean",
        "a bitmap was lost",
        |s| s.image.write_at(s.mask(MaskKind::UsedBlobIds), &[0; PAGE]).unwrap(),
        &["mask"],
    ),
    (
        "c1m-b4096-clean",
        "bits of bitmaps are wrong",
        |s| {
            s.change(s.mask(MaskKind::UsedClusters) + 5 + 1, |byte| *byte ^= 0x12);
            s.change(s.mask(MaskKind::UsedPages) + 5, |byte| *byte ^= 0x80);
        },
        &["mask-bits"],
    ),
    (
        "c64k-b512-clean",
        "the clean mark is torn",
        |s| s.change(16, |byte| *byte = 0),
        &["torn-page"],
    ),
    (
        "c1m-b4096-dirty",
        "the clean mark is torn the other way",
        |s| s.change(16, |byte| *byte = 1),
        &["torn-page"],
    ),
    (
        "c1m-b4096-dirty",
        "a bit of the cluster size is rotten",
        |s| s.change(30, |byte| *byte ^= 0x20),
        &["super-block"],
    ),
    (
        "c1m-b4096-clean",
        "the checksum and the reserved part of the super block are lost",
        |s| s.image.write_at(512, &[0x5a; PAGE - 512]).unwrap(),
        &["super-block"],
    ),
    (
        "c64k-b512-clean",
        "the super block is lost",
        |s| s.image.write_at(0, &[0; PAGE]).unwrap(),
        &["super-block"],
    ),
    (
        "c1m-b4096-clean",
        "random bytes over the super block",
        |s| {
            let mut bytes = [0; PAGE];
            fastrand::Rng::with_seed(1).fill(&mut bytes);
            s.image.write_at(0, &bytes).unwrap();
        },
        &["super-block"],
    ),
    (
        "c64k-b512-clean",
        "the making of a snapshot was interrupted early",
        |s| s.put_blob(&s.unfinished_snapshot("thick")),
        &["snapshot-unfinished", "mask-bits"],
    ),
    (
        "c1m-b4096-dirty",
        "the making of a snapshot was interrupted late",
        |s| s.nearly_finished_snapshot("thick"),
        &["snapshot-unfinished"],
    ),
    (
        "c64k-b512-dirty",
        "the deletion of a snapshot was interrupted",
        |s| s.merging("snap2", "thin"),
        &["deletion-unfinished"],
    ),
];

fn scenes() -> impl Iterator<Item = (Scene, &'static Damage)> {
    REPAIRABLE.iter().map(|damage| {
        let scene = Scene::new(damage.0);
        damage.2(&scene);
        (scene, damage)
    })
}

#[test]
fn every_image_of_spdk_is_clean_and_can_be_shown() {
    for name in IMAGES {
        let scene = Scene::new(name);
        assert_eq!(codes(&scene.image, NOTHING), (Verdict::Clean, vec![]), "{name}");
        assert!(plan(&scene.image, NOTHING, &[]).unwrap().is_empty(), "{name}");
        let shown = dump(&scene.image, NOTHING).unwrap();
        assert_eq!(shown.blobs.len(), scene.golden.lvols().len() + 1, "{name}");
    }
}

#[test]
fn each_repairable_damage_is_named_repaired_and_can_be_put_back() {
    for (scene, (name, what, _, expected)) in scenes() {
        let what = format!("{name}: {what}");
        let damaged = scene.image.clone();
        let found = codes(&scene.image, scene.known());
        assert_eq!(found, (Verdict::Repairable, expected.to_vec()), "{what}");
        let plan = plan(&scene.image, scene.known(), &[]).unwrap();
        assert!(!plan.is_empty(), "{what}");
        let undo = Undo::of(&scene.image, &plan).unwrap();
        plan.carry_out(&scene.image).unwrap();
        let after = codes(&scene.image, NOTHING);
        assert_eq!(after, (Verdict::Clean, vec![]), "{what}");
        scene.assert_contents(&scene.image, &what);
        let data = scene.layout.data_start().0;
        assert!(scene.image.changed().into_keys().all(|at| at < data), "{what}: data");
        let undo = Undo::decode(&undo.encode()).unwrap();
        undo.put_back(&scene.image).unwrap();
        assert!(scene.image == damaged, "{what}: undo is not exact");
    }
}

/// What survives a cut after `steps` whole steps: a random part of the next one's units.
fn cut(from: &Image, steps: &[Writes], whole: usize, unit: usize, seed: u64) -> Image {
    let image = from.clone();
    let mut rng = fastrand::Rng::with_seed(seed);
    for (number, step) in steps.iter().enumerate().take(whole + 1) {
        for (offset, bytes) in step {
            for (part, at) in bytes.chunks(unit).zip((*offset..).step_by(unit)) {
                if number < whole || rng.bool() {
                    image.write_at(at, part).unwrap();
                }
            }
        }
    }
    image
}

#[test]
fn a_power_cut_inside_a_repair_is_repaired_by_the_next() {
    for (scene, (name, what, ..)) in scenes() {
        let plan_of = |image: &Image| plan(image, scene.known(), &[]).unwrap();
        let recorder = Recorder { image: &scene.image, steps: RefCell::new(vec![Vec::new()]) };
        let first = plan_of(&scene.image);
        let undo = Undo::of(&scene.image, &first).unwrap();
        first.carry_out(&recorder).unwrap();
        let steps = recorder.steps.into_inner();
        let shape = scene.shape(&cut(&scene.image, &steps, steps.len(), PAGE, 0));
        for whole in 0..steps.len() {
            for seed in 0..6 {
                let what = format!("{name}: {what}: step {whole}, seed {seed}");
                // Where pages are atomic, nothing but the image is needed.
                let image = cut(&scene.image, &steps, whole, PAGE, seed);
                plan_of(&image).carry_out(&image).unwrap();
                assert_eq!(codes(&image, NOTHING), (Verdict::Clean, vec![]), "{what}");
                assert!(scene.shape(&image) == shape, "{what}: a volume has changed");
                // Where they tear, the next repair starts with the undo file.
                let image = cut(&scene.image, &steps, whole, 512, seed);
                undo.put_back(&image).unwrap();
                assert!(image == scene.image, "{what}: undo is not exact");
            }
        }
    }
}

#[test]
fn what_cannot_be_repaired_is_named_and_left_alone() {
    let scene = Scene::new("c64k-b512-dirty");
    let thick = scene.id("thick");
    let root = root_page(thick).unwrap();
    let mut page = scene.page(root);
    page[2048..].fill(0x77);
    scene.put(root, &page);
    let (verdict, found) = codes(&scene.image, NOTHING);
    assert_eq!(verdict, Verdict::Damaged);
    assert!(found.contains(&"blob"), "{found:?}");
    // Its extent pages look like orphans now, and are what is left of it.
    assert!(found.contains(&"unused-page"), "{found:?}");
    assert!(plan(&scene.image, NOTHING, &[]).unwrap().is_empty());

    // In a clean store, bitmaps with lost bits are completed, and what they say of the lost volume
    // stays.
    let scene = Scene::new("c64k-b512-clean");
    scene.put(root_page(scene.id("thick")).unwrap(), &page);
    scene.change(scene.mask(MaskKind::UsedClusters) + 5, |byte| *byte = 0);
    let before = scene.image.clone();
    plan(&scene.image, NOTHING, &[]).unwrap().carry_out(&scene.image).unwrap();
    let at = scene.mask(MaskKind::UsedClusters);
    let bits =
        |image: &Image| -> u32 { image.page(at)[5..].iter().map(|byte| byte.count_ones()).sum() };
    assert_eq!(bits(&scene.image), bits(&before) + 8);
    assert_eq!(codes(&scene.image, NOTHING).0, Verdict::Damaged);
    let others = scene.report();
    assert_eq!(others.volumes.len(), scene.golden.lvols().len() - 1);
}

/// A volume that cannot be read is given up by name: its space comes back, everything else stays.
#[test]
fn what_is_given_up_is_gone_and_nothing_else() {
    for name in ["c64k-b512-clean", "c64k-b512-dirty"] {
        let scene = Scene::new(name);
        let before = scene.report();
        let thick = before.volume("thick").unwrap();
        let (blob, clusters) = (thick.blob, thick.allocated.0);
        let give_up = |blobs: &[BlobId]| plan(&scene.image, NOTHING, blobs);
        let refused = give_up(&[blob]);
        assert!(matches!(refused, Err(CheckError::NotDamaged { blob: b }) if b == blob), "{name}");
        scene.change(scene.place(root_page(blob).unwrap()) + 100, |byte| *byte ^= 1);
        let damaged = scene.image.clone();
        let repair = give_up(&[blob]).unwrap();
        let undo = Undo::of(&scene.image, &repair).unwrap();

        let recorder = Recorder { image: &damaged, steps: RefCell::new(vec![Vec::new()]) };
        repair.carry_out(&recorder).unwrap();
        repair.carry_out(&scene.image).unwrap();
        assert_eq!(codes(&scene.image, NOTHING), (Verdict::Clean, vec![]), "{name}");
        let after = scene.report();
        assert_eq!(after.free_clusters.0, before.free_clusters.0 + clusters, "{name}");
        assert_eq!(after.volumes.len(), before.volumes.len() - 1, "{name}");
        for (id, volume) in &after.volumes {
            assert_eq!(volume.map().runs(), before.volumes[id].map().runs(), "{name}");
        }

        // A cut leaves what the same, or the next, repair ends.
        let steps = recorder.steps.into_inner();
        for whole in 0..steps.len() {
            for seed in 0..6 {
                let what = format!("{name}: step {whole}, seed {seed}");
                let image = cut(&damaged, &steps, whole, PAGE, seed);
                let again = plan(&image, NOTHING, &[blob]);
                let again = again.or_else(|_| plan(&image, NOTHING, &[]));
                again.unwrap().carry_out(&image).unwrap();
                assert_eq!(codes(&image, NOTHING), (Verdict::Clean, vec![]), "{what}");
                assert_eq!(
                    validate(&image, BlockSize::B512).unwrap().free_clusters,
                    after.free_clusters
                );
                let image = cut(&damaged, &steps, whole, 512, seed);
                undo.put_back(&image).unwrap();
                assert!(image == damaged, "{what}: undo is not exact");
            }
        }
    }
}

#[test]
fn what_others_need_is_not_given_up() {
    let scene = Scene::new("c64k-b512-clean");
    let before = scene.report();
    let is_leaf = |id: &BlobId| before.volumes[id].clones.is_empty();
    let mut volumes = before.volumes.values();
    let last = |v: &&Volume| !v.clones.is_empty() && v.clones.iter().all(is_leaf);
    let snapshot = volumes.find(last).unwrap();
    let (blob, clones) = (snapshot.blob, snapshot.clones.clone());
    scene.change(scene.place(root_page(blob).unwrap()) + 100, |byte| *byte ^= 1);
    let refused = plan(&scene.image, NOTHING, &[blob]);
    let Err(CheckError::Needed { needs, .. }) = refused else { panic!("{refused:?}") };
    assert!(clones.contains(&needs));
    // Together they can go.
    let all: Vec<_> = clones.iter().copied().chain([blob]).collect();
    plan(&scene.image, NOTHING, &all).unwrap().carry_out(&scene.image).unwrap();
    assert_eq!(codes(&scene.image, NOTHING), (Verdict::Clean, vec![]));
    assert_eq!(scene.report().volumes.len(), before.volumes.len() - all.len());

    let scene = Scene::new("c64k-b512-clean");
    let own = BlobId(1 << 32);
    scene.change(scene.place(root_page(own).unwrap()) + 100, |byte| *byte ^= 1);
    let refused = plan(&scene.image, NOTHING, &[own]);
    assert!(matches!(refused, Err(CheckError::OwnBlob { .. })), "{refused:?}");
}

#[test]
fn orphans_are_notes_and_are_erased() {
    let scene = Scene::new("c64k-b512-clean");
    let Mapping::Table(table) = scene.blob(scene.id("thick")).mapping else { panic!("no table") };
    let damaged = PageIndex(scene.spare().0 - 1);
    scene.put(damaged, &[0x33; PAGE]);
    let before = scene.image.clone();
    scene.put(scene.spare(), &scene.page(table.get(TableSlot(0)).unwrap()));
    let (verdict, found) = codes(&scene.image, NOTHING);
    assert_eq!((verdict, found), (Verdict::Clean, vec!["unused-page", "damaged-page"]));
    plan(&scene.image, NOTHING, &[]).unwrap().carry_out(&scene.image).unwrap();
    // What is damaged may be all that is left of a volume.
    assert!(scene.image == before);
}

/// Of two damaged volumes one is given up: what the other has stays reserved.
#[test]
fn what_is_given_up_takes_no_other_with_it() {
    let scene = Scene::new("c64k-b512-clean");
    let before = scene.report();
    let (gone, kept) = (scene.id("thick"), scene.id("thin"));
    for blob in [gone, kept] {
        scene.change(scene.place(root_page(blob).unwrap()) + 100, |byte| *byte ^= 1);
    }
    plan(&scene.image, NOTHING, &[gone]).unwrap().carry_out(&scene.image).unwrap();
    let report = scene.report();
    assert!(report.clean);
    assert_eq!(report.free_clusters, before.free_clusters);
    let damage = report.findings.iter().filter(|found| found.severity() == Severity::Damage);
    let damaged: std::collections::BTreeSet<_> = damage.flat_map(Finding::blobs).collect();
    assert!(damaged.contains(&kept) && !damaged.contains(&gone), "{:?}", report.findings);
    // The last one frees all.
    let all: Vec<_> = damaged.into_iter().collect();
    plan(&scene.image, NOTHING, &all).unwrap().carry_out(&scene.image).unwrap();
    assert_eq!(codes(&scene.image, NOTHING), (Verdict::Clean, vec![]));
    assert!(scene.report().free_clusters > before.free_clusters);
}

#[test]
fn a_lost_super_block_is_not_guessed() {
    // A store that was never closed has no bitmaps to tell its geometry.
    let scene = Scene::new("c1m-b4096-clean");
    scene.image.write_at(0, &[0; PAGE]).unwrap();
    for kind in [MaskKind::UsedPages, MaskKind::UsedClusters, MaskKind::UsedBlobIds] {
        scene.image.write_at(scene.mask(kind), &[0; PAGE]).unwrap();
    }
    let blank = check(&scene.image, scene.known());
    assert!(matches!(blank, Err(CheckError::NotLvolstore(_))), "{blank:?}");
    let known = Known { cluster_size: Some(ByteCount(1 << 20)), ..scene.known() };
    plan(&scene.image, known, &[]).unwrap().carry_out(&scene.image).unwrap();
    assert_eq!(codes(&scene.image, NOTHING), (Verdict::Clean, vec![]));
    scene.assert_contents(&scene.image, "with what the operator knows");
}

#[test]
fn an_undo_file_is_not_trusted() {
    let (scene, _) = scenes().next().unwrap();
    let plan = plan(&scene.image, NOTHING, &[]).unwrap();
    let undo = Undo::of(&scene.image, &plan).unwrap();
    let bytes = undo.encode();
    plan.carry_out(&scene.image).unwrap();
    for (at, what) in [(0, "magic"), (24, "count"), (8200, "checksum"), (9000, "page")] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(matches!(Undo::decode(&changed), Err(UndoError::NotUndo)), "{what}");
    }
    assert!(matches!(Undo::decode(&bytes[..bytes.len() - 1]), Err(UndoError::NotUndo)));
    let small = Image::new(scene.image.bytes()[..1 << 20].to_vec());
    assert!(matches!(undo.put_back(&small), Err(UndoError::OtherImage { .. })));
    // Somebody used the store since.
    let offset = scene.mask(MaskKind::UsedClusters);
    scene.change(offset + 100, |byte| *byte ^= 4);
    let before = scene.image.clone();
    let refused = undo.put_back(&scene.image);
    assert!(matches!(refused, Err(UndoError::Changed { .. })), "{refused:?}");
    assert!(scene.image == before);
}

#[test]
fn findings_name_their_kind() {
    let scene = Scene::new("c64k-b512-clean");
    scene.change(scene.mask(MaskKind::UsedClusters) + 6, |byte| *byte ^= 0xff);
    let report = scene.report();
    let counts = report.findings.iter().fold(BTreeMap::new(), |mut counts, finding| {
        *counts.entry((finding.code(), finding.severity())).or_insert(0) += 1;
        counts
    });
    assert_eq!(counts, BTreeMap::from([(("mask-bits", Severity::Repairable), 1)]));
}

/// What bitmaps say of a volume that cannot be read is no mistake of theirs.
#[test]
fn what_a_damaged_volume_has_is_held() {
    let scene = Scene::new("c64k-b512-clean");
    let before = scene.report();
    let thick = before.volume("thick").unwrap();
    let (root, clusters) = (root_page(thick.blob).unwrap(), thick.allocated.0);
    assert!(clusters > 1);
    scene.change(scene.place(root) + 100, |byte| *byte ^= 1);
    let report = scene.report();
    assert_eq!(report.free_clusters, before.free_clusters);
    let held = report.findings.iter().filter_map(|finding| match finding {
        Finding::Held { mask: MaskKind::UsedClusters, bits } => Some(bits.last - bits.first + 1),
        Finding::MaskBits { .. } => panic!("{finding}"),
        _ => None,
    });
    assert_eq!(held.sum::<u32>(), clusters);
}

/// As SPDK wrote them before version 3, and volumes as before extent tables.
#[test]
fn older_stores_are_clean_and_open() {
    let scene = Scene::new("c1m-b4096-dirty");
    let report = scene.report();
    for name in ["thick", "thin", "snap1"] {
        let volume = report.volume(name).unwrap();
        let mut runs = Runs::new();
        let mut at = 0;
        for run in volume.map().runs() {
            if run.volume.0 > at {
                let hole = Run { first: None, count: ClusterCount(run.volume.0 - at) };
                runs.push(hole).unwrap();
            }
            runs.push(Run { first: Some(run.device), count: run.count }).unwrap();
            at = run.volume.0 + run.count.0;
        }
        let rest = volume.map().clusters().0 - at;
        if rest > 0 {
            runs.push(Run { first: None, count: ClusterCount(rest) }).unwrap();
        }
        let mut blob = scene.blob(volume.blob);
        blob.mapping = Mapping::Rle(runs);
        scene.put_blob(&blob);
    }
    let mut first = [0; PAGE];
    scene.image.read_at(0, &mut first).unwrap();
    first[8] = 2;
    // Bitmap of blob ids, size, I/O unit, page size: not yet written down.
    first[72..96].fill(0);
    let crc = checksum(&first).to_le_bytes();
    first[PAGE - 4..].copy_from_slice(&crc);
    scene.image.write_at(0, &first).unwrap();
    let (verdict, found) = codes(&scene.image, NOTHING);
    assert_eq!((verdict, found), (Verdict::Clean, vec!["unused-page"]));
    scene.assert_contents(&scene.image, "an older store");
    let image = scene.image.bytes();
    let disk = SimDisk::with_image(SimOptions::new(ByteCount(image.len() as u64)), &image);
    let bench = Bench::new();
    bench.run(async {
        let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
        assert_eq!(pool.store.quarantined(), []);
        for (name, lvol) in scene.golden.lvols() {
            let content = pool.content(&pool.volume(name).await).await.unwrap();
            assert_eq!(sha256(&content), lvol.sha256, "{name}");
        }
    });
}

/// An image of which parts cannot be read.
struct Failing<'i> {
    image: &'i Image,
    /// Beginnings and ends.
    bad: Vec<(u64, u64)>,
}

impl ImageRead for Failing<'_> {
    fn size(&self) -> io::Result<ByteCount> {
        self.image.size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset + into.len() as u64;
        if self.bad.iter().any(|(from, to)| *from < end && offset < *to) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.image.read_at(offset, into)
    }
}

#[test]
fn what_cannot_be_read_is_a_finding() {
    let scene = Scene::new("c64k-b512-dirty");
    let root = scene.place(root_page(scene.id("thick")).unwrap());
    let mask = scene.mask(MaskKind::UsedClusters);
    // A sector of one volume's root, a bitmap, and two pages that nobody uses.
    let spare = scene.place(scene.spare());
    let bad = vec![(root + 512, root + 1024), (mask, mask + 512), (spare - 4096, spare + 1)];
    let image = Failing { image: &scene.image, bad };
    let found = check(&image, NOTHING).unwrap();
    assert_eq!(found.verdict(), Verdict::Damaged);
    let report = found.report.unwrap();
    let unreadable: Vec<_> = report
        .findings
        .iter()
        .filter_map(|finding| match finding {
            Finding::Unreadable { offset, length } => Some((offset.0, length.0)),
            _ => None,
        })
        .collect();
    // The store is not clean, so its bitmaps do not matter.
    assert_eq!(unreadable, [(root, 4096), (spare - 4096, 8192)]);
    let all = scene.report();
    assert_eq!(report.volumes.len(), all.volumes.len() - 1);
    assert!(report.volume("thick").is_none());
    // Of the first page everything depends.
    let image = Failing { image: &scene.image, bad: vec![(0, 512)] };
    assert!(matches!(check(&image, NOTHING), Err(CheckError::Read(_))));
    // A device that fails everywhere is given up.
    let image = Failing { image: &scene.image, bad: vec![(4096, u64::MAX)] };
    let given_up = check(&image, NOTHING).map(|found| found.verdict());
    assert!(matches!(given_up, Err(CheckError::Read(_)) | Ok(Verdict::Damaged)), "{given_up:?}");
}

#[test]
fn a_page_that_cannot_be_read_takes_one_volume_from_the_pool() {
    use lvolfs::block::fault::{Fault, Faults, Faulty, Operation};
    let scene = Scene::new("c64k-b512-dirty");
    let all: Vec<_> = scene.report().volumes.into_values().collect();
    let lost = scene.id("thick");
    let root = scene.place(root_page(lost).unwrap());
    let size = scene.image.size().unwrap();
    let options = SimOptions { block_size: BlockSize::B512, ..SimOptions::new(size) };
    let disk = SimDisk::with_image(options, &scene.golden.bytes);
    let bench = Bench::new();
    bench.run(async {
        let faults = Faults::default();
        let blocks = Some(root / 512 + 1..root / 512 + 2);
        faults.inject(Fault { operation: Operation::Read, blocks, after: 0, times: u64::MAX });
        let device = Faulty::new(disk.channel(&bench.reactor), faults);
        let pool = bench.open(device).await.unwrap();
        let quarantined: Vec<_> = pool.store.quarantined().iter().map(|found| found.id).collect();
        assert_eq!(quarantined, [lost]);
        assert_eq!(pool.store.volumes().len(), all.len() - 1);
        // What it has stays reserved.
        let free = pool.store.info().free_clusters;
        assert_eq!(free, scene.report().free_clusters);
    });
}

#[test]
fn both_owners_of_a_cluster_are_read_only() {
    let scene = Scene::new("c64k-b512-dirty");
    let report = scene.report();
    let other = report.volume("thick").unwrap().map().runs()[0].device;
    let blob = scene.blob(scene.id("inflated"));
    let Mapping::Table(table) = &blob.mapping else { panic!("a table") };
    let (_, page) = table.iter().next().unwrap();
    let mut extent = ExtentPage::parse(&scene.layout, &scene.page(page)).unwrap();
    extent.clusters[1] = Some(other);
    scene.put(page, &extent.encode());
    let size = scene.image.size().unwrap();
    let options = SimOptions { block_size: BlockSize::B512, ..SimOptions::new(size) };
    let disk = SimDisk::with_image(options, &scene.image.bytes());
    let bench = Bench::new();
    bench.run(async {
        let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
        for name in ["thick", "inflated"] {
            let info = pool.store.find(name).unwrap();
            let reason = info.read_only;
            let shares = matches!(
                reason,
                Some(ReadOnlyReason::SharedCluster { cluster, .. }) if cluster == other
            );
            assert!(shares, "{name}: {reason:?}");
            let volume = pool.volume(name).await;
            let refused = pool.write(&volume, 0, 8, 1).await;
            assert!(matches!(refused, Err(Error::ReadOnly { .. })), "{refused:?}");
            let deleted = pool.store.delete_volume(info.id).await;
            assert!(matches!(deleted, Err(Error::ReadOnly { .. })), "{deleted:?}");
            pool.content(&volume).await.unwrap();
        }
        // Others go on.
        let made = lvolfs::lvol::NewVolume::thin("new", ByteCount(1 << 16));
        pool.store.create_volume(made).await.unwrap();
    });
}
