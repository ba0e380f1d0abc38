//! What is fuzzed: one function for each kind of bytes from outside, called by the fuzz targets
//! beside this file and, with the corpus and with mutations of it, by `cargo test`.
//!
//! Structures are tried as they come, and once more with their checksum made right, since no fuzzer
//! finds a checksum. Whole images are a small pool with changes, or just bytes.
#![allow(dead_code, reason = "each fuzz target uses one of them")]

use std::rc::Rc;

use lvolfs::block::Discard;
use lvolfs::hw::dma::DmaArena;
use lvolfs::lvol::check::{Known, Verdict, check as check_image};
use lvolfs::lvol::dump::dump;
use lvolfs::lvol::format::{
    BlobReader, Contents, ExtentPage, Journal, Layout, LayoutOptions, MaskKind, Medium, PageBytes,
    PageKind, Record, SuperBlock, blob_id, checksum, decode_mask, encode_mask, is_torn_journal,
};
use lvolfs::lvol::repair::plan;
use lvolfs::lvol::validate::validate;
use lvolfs::lvol::{FormatOptions, NewRelative, NewVolume, Store, StoreIo};
use lvolfs::reactor::{Reactor, ReactorOptions};
use lvolfs::sim::{SimDisk, SimOptions};
use lvolfs::units::{
    BlockCount, BlockSize, ByteCount, ByteOffset, ClusterCount, ClusterIndex, PageIndex,
};

const PAGE: usize = 4096;
const DISK: u64 = 1 << 20;
const CLUSTER: ByteCount = ByteCount(8192);
/// Bytes of an image that are not a pool with changes.
const IMAGE_LIMIT: usize = 1 << 20;

/// The first bytes of `input`, as a page, as they are and with the right checksum.
fn pages(input: &[u8]) -> [PageBytes; 2] {
    let mut page = [0; PAGE];
    let length = input.len().min(PAGE);
    page[..length].copy_from_slice(&input[..length]);
    let mut sealed = page;
    seal(&mut sealed);
    [page, sealed]
}

fn seal(page: &mut PageBytes) {
    let crc = checksum(page);
    page[PAGE - 4..].copy_from_slice(&crc.to_le_bytes());
}

/// The first page of a device.
pub(crate) fn super_block(input: &[u8]) {
    let _contents = Contents::identify(input).to_string();
    for page in pages(input) {
        for blocks in [2048, 1 << 24, u64::MAX >> 9] {
            for block_size in [BlockSize::B512, BlockSize::B4096] {
                let medium = Medium::new(block_size, BlockCount(blocks));
                let parsed = [
                    SuperBlock::parse(&page, medium),
                    SuperBlock::parse_torn(&page, medium),
                    SuperBlock::parse_unproven(&page, medium),
                ];
                for mut super_block in parsed.into_iter().flatten() {
                    super_block.set_clean(false);
                    let again = SuperBlock::parse(&super_block.encode(), medium).unwrap();
                    assert_eq!(again.layout(), super_block.layout());
                    let layout = again.layout();
                    let _grown = layout.grow(medium);
                    for mask in [MaskKind::UsedPages, MaskKind::UsedClusters, MaskKind::UsedBlobIds]
                    {
                        let _bits = (layout.mask_region(mask), layout.mask_bits(mask));
                    }
                }
            }
        }
    }
}

/// A bitmap: its length as 16 bits, then its bytes.
pub(crate) fn bitmap(input: &[u8]) {
    let Some((bits, bytes)) = input.split_first_chunk::<2>() else { return };
    let bits = u32::from(u16::from_le_bytes(*bits));
    for mask in [MaskKind::UsedPages, MaskKind::UsedClusters, MaskKind::UsedBlobIds] {
        if let Ok(set) = decode_mask(mask, bytes, bits) {
            let encoded = encode_mask(mask, &set);
            let again = decode_mask(mask, &encoded, bits).unwrap();
            assert!(again.iter().eq(set.iter()));
        }
    }
}

/// A metadata page, in the slot that its first byte names.
pub(crate) fn page(input: &[u8]) {
    let Some((slot, input)) = input.split_first() else { return };
    let slot = PageIndex(u32::from(*slot));
    let medium = Medium::new(BlockSize::B512, BlockCount(DISK / 512 * 16));
    let options = LayoutOptions { cluster_size: CLUSTER, metadata_ratio_percent: 20 };
    let layout = Layout::create(medium, options).unwrap();
    for page in pages(input) {
        if let PageKind::Root(root) | PageKind::Chain(root) = PageKind::classify(slot, &page) {
            let _descriptors = root.descriptors().count();
        }
        let _torn = is_torn_journal(&layout, slot, &page);
        if let Ok(extent) = ExtentPage::parse(&layout, &page) {
            let again = ExtentPage::parse(&layout, &extent.encode()).unwrap();
            assert_eq!(again.clusters, extent.clusters);
        }
        if let Ok(mut reader) = BlobReader::start(&layout, slot, &page) {
            for _ in 0..4 {
                if reader.next_page().is_none() || reader.add(&page).is_err() {
                    break;
                }
            }
            if reader.next_page().is_none()
                && let Ok(read) = reader.finish()
            {
                let _encoded = read.blob.encode();
                let _journal = Journal::of(&layout, &read.blob, ClusterCount(20), |at| {
                    Some(ClusterIndex(100 + at.0))
                });
            }
        }
        record(&layout, &page);
    }
}

/// The first page of a journal.
fn record(layout: &Layout, page: &PageBytes) {
    let name = lvolfs::lvol::format::VolumeName::new("journal").unwrap();
    let uuid = uuid_of(1);
    let clusters = Journal::clusters_for(layout);
    let blob = Journal::blob(blob_id(PageIndex(1)), &name, uuid, clusters);
    let place = |at: lvolfs::units::VolumeCluster| Some(ClusterIndex(100 + at.0));
    let Some(journal) = Journal::of(layout, &blob, clusters, place) else {
        panic!("a new journal is one")
    };
    if let Some(record) = Record::parse(layout, &journal, page) {
        assert!(record.offsets().len() <= journal.capacity());
        let images = vec![*page; record.offsets().len()];
        let _complete = record.is_complete(&images);
        for index in 0..images.len() {
            assert!(!record.is_torn(index, page, page));
        }
    }
}

fn uuid_of(number: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(number)
}

/// A pool that images are made of, and what it takes to use one.
struct Workshop {
    reactor: Rc<Reactor>,
    arena: DmaArena,
    base: Vec<u8>,
}

thread_local! {
    static WORKSHOP: Workshop = Workshop::new();
}

fn options() -> SimOptions {
    let mut options = SimOptions::new(ByteCount(DISK));
    options.block_size = BlockSize::B512;
    options.atomic_unit = 512;
    options.discard = Discard::Zeroes;
    options
}

impl Workshop {
    fn new() -> Self {
        let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
        let arena = DmaArena::new(ByteCount(16 << 20), false).unwrap();
        let disk = SimDisk::new(options());
        reactor.block_on(async {
            let device = disk.channel(&reactor);
            let layout = LayoutOptions { cluster_size: CLUSTER, metadata_ratio_percent: 20 };
            let format = FormatOptions { name: "pool".to_owned(), uuid: Some(uuid_of(9)), layout };
            Store::format(&device, &arena, &format).await.unwrap();
            let store = Store::open(device.clone(), &reactor, &arena).await.unwrap();
            let thick = NewVolume::thick("thick", ByteCount(3 * CLUSTER.0));
            let thick = NewVolume { uuid: Some(uuid_of(10)), ..thick };
            let id = store.create_volume(thick).await.unwrap().id;
            let mut snapshot = NewRelative::named("snapshot");
            snapshot.uuid = Some(uuid_of(11));
            let snapshot = store.snapshot_volume(id, snapshot).await.unwrap().id;
            let mut clone = NewRelative::named("clone");
            clone.uuid = Some(uuid_of(12));
            store.clone_volume(snapshot, clone).await.unwrap();
            store.set_xattr(id, b"long", &[7; 4000]).await.unwrap();
            store.close().await.unwrap();
        });
        let mut base = vec![0; DISK as usize];
        disk.read_at(0, &mut base);
        Self { reactor, arena, base }
    }

    /// Just bytes if the first one is odd. Otherwise the pool with changes, each of which is: a page
    /// (the super block and bitmaps first), an offset in it (2 bytes), whether to make the checksum
    /// right (odd: yes), a length (1 byte), and so many bytes.
    fn image(&self, input: &[u8]) -> Vec<u8> {
        let Some((kind, mut rest)) = input.split_first() else { return Vec::new() };
        if kind & 1 == 1 {
            return rest[..rest.len().min(IMAGE_LIMIT)].to_vec();
        }
        let mut image = self.base.clone();
        while let Some(([page, low, high, sealed, length], tail)) = rest.split_first_chunk::<5>() {
            let start = usize::from(*page) * PAGE;
            let offset = usize::from(u16::from_le_bytes([*low, *high])) % PAGE;
            let length = usize::from(*length).min(tail.len()).min(PAGE - offset);
            let Some(target) = image.get_mut(start..start + PAGE) else { return image };
            target[offset..offset + length].copy_from_slice(&tail[..length]);
            if sealed & 1 == 1
                && let Ok(target) = <&mut PageBytes>::try_from(target)
            {
                seal(target);
            }
            rest = &tail[length..];
        }
        image
    }
}

/// `lvolfs check`, `dump` and the planning of a repair on an image.
pub(crate) fn check(input: &[u8]) {
    let image = WORKSHOP.with(|workshop| workshop.image(input));
    let image = image.as_slice();
    let known = Known { cluster_size: Some(CLUSTER), block_size: Some(BlockSize::B512) };
    for known in [Known::default(), known] {
        let _shown = dump(&image, known);
        let Ok(found) = check_image(&image, known) else { continue };
        let plan = plan(&image, known, &[]).unwrap();
        assert!(plan.is_empty() || found.verdict() > Verdict::Clean || plan.steps().count() > 0);
    }
    if let Ok(report) = validate(&image, BlockSize::B512) {
        for volume in report.volumes.values() {
            let length = volume.size.0.min(1 << 16) as usize;
            let _content = report.read_volume(&image, volume, 0, &mut vec![0; length]);
        }
    }
}

/// Opening an image, reading and changing what it holds, and closing it.
pub(crate) fn open(input: &[u8]) {
    WORKSHOP.with(|workshop| {
        let Workshop { reactor, arena, .. } = workshop;
        let mut image = workshop.image(input);
        image.truncate(DISK as usize);
        let disk = SimDisk::with_image(options(), &image);
        reactor.block_on(async {
            let device = disk.channel(reactor);
            let Ok(store) = Store::open(device.clone(), reactor, arena).await else { return };
            let remote = store.remote().unwrap();
            let io = StoreIo::attach(remote, reactor, device, arena).await.unwrap();
            for info in store.volumes() {
                let Ok(volume) = io.volume(info.id).await else { continue };
                if volume.size().0 >= PAGE as u64 {
                    let buffer = arena.allocate_zeroed(PAGE).unwrap();
                    let _read = volume.read(ByteOffset(0), buffer).await;
                }
                let _set = store.set_xattr(info.id, b"fuzz", b"1").await;
                let _deleted = store.delete_volume(info.id).await;
            }
            let _made = store.create_volume(NewVolume::thin("new", ByteCount(1 << 16))).await;
            let _closed = store.close().await;
        });
    });
}
