//! Each rule that SPDK enforces when it loads a store, one test each, held against what lvolfs wrote:
//! a store closed in order, and every state that a crash in the middle of any operation leaves in
//! order of submission. Read here byte by byte, without the parsers of lvolfs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use lvolfs::lvol::format::LayoutOptions;
use lvolfs::lvol::{FormatOptions, NewRelative, NewVolume, Store};
use lvolfs::sim::{SimDisk, SimOptions};
use lvolfs::units::{BlockSize, ByteCount};

use super::bench::Bench;

const PAGE: usize = 4096;
const DISK: u64 = 8 << 20;
const CLUSTER: u64 = 4096;
const NONE: u32 = u32::MAX;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// CRC-32C, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    let fold = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 }
        })
    };
    !bytes.iter().fold(u32::MAX, fold)
}

fn is_intact(page: &[u8]) -> bool {
    page.iter().any(|byte| *byte != 0) && crc(&page[..PAGE - 4]) == u32_at(page, PAGE - 4)
}

/// Type and body of each descriptor of a page.
fn descriptors(page: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut rest = &page[16..16 + 4072];
    let mut found = Vec::new();
    while rest.len() >= 5 {
        let (kind, length) = (rest[0], u32_at(rest, 1) as usize);
        if kind == 0 && length == 0 {
            break;
        }
        found.push((kind, rest[5..5 + length].to_vec()));
        rest = &rest[5 + length..];
    }
    found
}

/// Name and value of an attribute's body.
fn xattr(body: &[u8]) -> (String, Vec<u8>) {
    let name = u16::from_le_bytes(body[..2].try_into().unwrap()) as usize;
    let value = u16::from_le_bytes(body[2..4].try_into().unwrap()) as usize;
    assert_eq!(body.len(), 4 + name + value, "the length of an attribute");
    (String::from_utf8(body[4..4 + name].to_vec()).unwrap(), body[4 + name..].to_vec())
}

/// A blob as SPDK reads it.
#[derive(Debug)]
struct SpdkBlob {
    /// Root and chain pages in order.
    pages: Vec<u32>,
    descriptors: Vec<(u8, Vec<u8>)>,
}

impl SpdkBlob {
    fn xattrs(&self, kind: u8) -> BTreeMap<String, Vec<u8>> {
        let of_kind = self.descriptors.iter().filter(|(found, _)| *found == kind);
        of_kind.map(|(_, body)| xattr(body)).collect()
    }

    fn flags(&self) -> [u64; 3] {
        let (kind, body) = &self.descriptors[0];
        assert_eq!((*kind, body.len()), (3, 24), "flags come first");
        [u64_at(body, 0), u64_at(body, 8), u64_at(body, 16)]
    }

    /// Place and metadata page of each extent page, and the clusters that the table states.
    fn table(&self) -> (Vec<(u64, u32)>, u64) {
        let (mut at, mut pages, mut clusters) = (0, Vec::new(), None);
        for (_, body) in self.descriptors.iter().filter(|(kind, _)| *kind == 5) {
            let stated = u64_at(body, 0);
            assert_eq!(*clusters.get_or_insert(stated), stated, "all pieces state the same size");
            for entry in body[8..].chunks(8) {
                let (page, count) = (u32_at(entry, 0), u32_at(entry, 4));
                if page != 0 {
                    assert_eq!(count, 1, "an extent page counts once");
                    pages.push((at, page));
                }
                at += u64::from(count);
            }
        }
        (pages, clusters.expect("a table"))
    }
}

/// A store as SPDK reads it.
struct SpdkStore {
    bytes: Vec<u8>,
    blobs: BTreeMap<u64, SpdkBlob>,
}

impl SpdkStore {
    fn of(bytes: Vec<u8>) -> Self {
        let mut store = Self { bytes, blobs: BTreeMap::new() };
        let count = store.super_field(52);
        for index in 0..count {
            let page = store.page(index);
            let id = 1 << 32 | u64::from(index);
            if is_intact(page) && u32_at(page, 8) == 0 && u64_at(page, 0) == id {
                let blob = store.read(index);
                store.blobs.insert(id, blob);
            }
        }
        store
    }

    fn super_field(&self, at: usize) -> u32 {
        u32_at(&self.bytes, at)
    }

    fn is_clean(&self) -> bool {
        self.super_field(16) == 1
    }

    fn page(&self, index: u32) -> &[u8] {
        let start = (self.super_field(48) + index) as usize * PAGE;
        &self.bytes[start..start + PAGE]
    }

    fn read(&self, root: u32) -> SpdkBlob {
        let mut blob = SpdkBlob { pages: Vec::new(), descriptors: Vec::new() };
        let (mut next, mut sequence) = (root, 0);
        while next != NONE {
            let page = self.page(next);
            assert!(is_intact(page), "page {next} of the chain of root {root}");
            assert_eq!(u64_at(page, 0), 1 << 32 | u64::from(root), "a chain names its blob");
            assert_eq!(u32_at(page, 8), sequence, "a chain counts");
            blob.pages.push(next);
            blob.descriptors.extend(descriptors(page));
            next = u32_at(page, 4088);
            sequence += 1;
        }
        blob
    }

    /// The bits of a bitmap that are set; kind and length are what they must be.
    fn mask(&self, start: usize, kind: u8, bits: u32) -> BTreeSet<u32> {
        let at = self.super_field(start) as usize * PAGE;
        assert_eq!(self.bytes[at], kind, "the kind of a bitmap");
        assert_eq!(u32_at(&self.bytes, at + 1), bits, "the length of a bitmap");
        let is_set = |bit: &u32| self.bytes[at + 5 + *bit as usize / 8] >> (bit % 8) & 1 == 1;
        (0..bits).filter(is_set).collect()
    }

    fn volumes(&self) -> impl Iterator<Item = (&u64, &SpdkBlob)> {
        let super_blob = u64_at(&self.bytes, 20);
        self.blobs.iter().filter(move |(id, _)| **id != super_blob)
    }

    /// The clusters of a blob's extent pages, checked as SPDK does it.
    fn extents(&self, blob: &SpdkBlob) -> Vec<(u32, Vec<u32>)> {
        let (pages, _) = blob.table();
        let read = |(place, page): &(u64, u32)| {
            let bytes = self.page(*page);
            assert!(is_intact(bytes), "extent page {page}");
            assert_eq!((u32_at(bytes, 8), u32_at(bytes, 4088)), (0, NONE));
            let found = descriptors(bytes);
            assert_eq!(found.len(), 1, "an extent page has one descriptor");
            let (kind, body) = &found[0];
            assert_eq!(*kind, 6);
            assert_eq!(u64::from(u32_at(body, 0)), place * 512, "where the extent page begins");
            (*page, body[4..].chunks(4).map(|entry| u32_at(entry, 0)).collect())
        };
        pages.iter().map(read).collect()
    }
}

/// A pool that went through everything, its disk recorded, and closed in order at the end.
fn worked() -> SimDisk {
    let bench = Bench::new();
    let disk = SimDisk::new(SimOptions {
        block_size: BlockSize::B512,
        ..SimOptions::new(ByteCount(DISK))
    });
    disk.record();
    bench.run(async {
        let device = disk.channel(&bench.reactor);
        let layout = LayoutOptions { cluster_size: ByteCount(CLUSTER), metadata_ratio_percent: 10 };
        let options = FormatOptions { name: "pool".to_owned(), uuid: None, layout };
        Store::format(&device, &bench.arena, &options).await.unwrap();
        let pool = bench.open(device).await.unwrap();
        let store = &pool.store;
        let size = |clusters: u64| ByteCount(clusters * CLUSTER);
        // More than two extent pages, the last one short.
        let thin = store.create_volume(NewVolume::thin("thin", size(1030))).await.unwrap().id;
        let volume = pool.io.volume(thin).await.unwrap();
        for block in [0, 1, 511, 512, 1029] {
            pool.write(&volume, block * 8, 8, 1).await.unwrap();
        }
        volume.flush().await.unwrap();
        let thick = store.create_volume(NewVolume::thick("thick", size(20))).await.unwrap().id;
        let long = [7; 4000];
        store.set_xattr(thin, b"one", &long).await.unwrap();
        store.set_xattr(thin, b"two", &long).await.unwrap();
        let new = NewRelative::named("snapshot");
        let snapshot = store.snapshot_volume(thin, new).await.unwrap().id;
        let clone = store.clone_volume(snapshot, NewRelative::named("clone")).await.unwrap().id;
        pool.write(&volume, 8, 8, 2).await.unwrap();
        volume.flush().await.unwrap();
        store.rename_volume(clone, "renamed").await.unwrap();
        store.decouple_volume(clone).await.unwrap();
        store.delete_volume(snapshot).await.unwrap();
        store.resize_volume(thick, size(4)).await.unwrap();
        store.resize_volume(clone, size(600)).await.unwrap();
        store.inflate_volume(clone).await.unwrap();
        let new = NewRelative::named("kept");
        store.snapshot_volume(thick, new).await.unwrap();
        store.close().await.unwrap();
    });
    disk
}

/// The store at each moment, if all that was submitted before it arrived; closed in order at the end.
fn states() -> &'static [SpdkStore] {
    static STATES: OnceLock<Vec<SpdkStore>> = OnceLock::new();
    STATES.get_or_init(|| {
        let disk = worked();
        let moments = disk.recorded().into_iter().map(|(_, moment)| moment);
        let mut stores: Vec<SpdkStore> = Vec::new();
        for moment in moments.chain([disk]) {
            let mut bytes = vec![0; DISK as usize];
            moment.cut_choosing(|_| true).read_at(0, &mut bytes);
            if !is_intact(&bytes[..PAGE]) {
                continue;
            }
            // Only the metadata; most commands do not change it.
            bytes.truncate((u32_at(&bytes, 48) + u32_at(&bytes, 52)) as usize * PAGE);
            if stores.last().is_none_or(|last| last.bytes != bytes) {
                stores.push(SpdkStore::of(bytes));
            }
        }
        assert!(stores.len() > 50, "{} states", stores.len());
        stores
    })
}

fn each(check: impl Fn(&SpdkStore)) {
    states().iter().for_each(check);
}

#[test]
fn the_super_block_is_one_that_spdk_takes() {
    each(|store| {
        assert_eq!(&store.bytes[..8], b"SPDKBLOB");
        assert_eq!((store.super_field(8), store.super_field(12)), (3, 4096));
        assert!(is_intact(&store.bytes[..PAGE]));
        assert_eq!(&store.bytes[56..72], b"LVOLSTORE\0\0\0\0\0\0\0");
        assert!(u64_at(&store.bytes, 80) <= DISK);
        assert!(store.bytes[96..PAGE - 4].iter().all(|byte| *byte == 0), "reserved is zero");
        assert_ne!(store.super_field(76), 0, "there is a blob id bitmap");
    });
}

#[test]
fn the_super_blob_has_name_and_uuid() {
    each(|store| {
        let blob = &store.blobs[&u64_at(&store.bytes, 20)];
        let xattrs = blob.xattrs(2);
        assert_eq!(xattrs["uuid"].len(), 37);
        assert_eq!(xattrs["name"], b"pool\0");
        assert_eq!(blob.table(), (Vec::new(), 0));
    });
}

#[test]
fn every_blob_has_a_name_attribute() {
    each(|store| {
        for (id, blob) in store.volumes() {
            let name = &blob.xattrs(2)["name"];
            assert!(name.len() <= 64 && name.contains(&0) && name[0] != 0, "blob {id:#x}");
        }
    });
}

#[test]
fn flags_come_first_and_there_are_no_descriptors_that_spdk_does_not_know() {
    each(|store| {
        for blob in store.blobs.values() {
            let [invalid, data, metadata] = blob.flags();
            assert_eq!((invalid & !0xf, data & !1, metadata & !3), (0, 0, 0));
            let flags = blob.descriptors.iter().filter(|(kind, _)| *kind == 3);
            assert_eq!(flags.count(), 1);
            assert!(blob.descriptors.iter().all(|(kind, _)| (2..=5).contains(kind)));
            let has_internal = !blob.xattrs(4).is_empty();
            assert_eq!(invalid & 2 != 0, has_internal, "the flag of internal attributes");
            assert_ne!(invalid & 4, 0, "the flag of the extent table");
        }
    });
}

#[test]
fn no_extent_page_is_page_0() {
    each(|store| {
        for blob in store.blobs.values() {
            let chain = &blob.pages[1..];
            assert!(store.extents(blob).iter().all(|(page, _)| *page != 0));
            assert!(!chain.contains(&0));
        }
    });
}

#[test]
fn extent_pages_have_512_entries_and_the_last_one_ends_with_the_blob() {
    each(|store| {
        for (id, blob) in &store.blobs {
            let (places, clusters) = blob.table();
            for ((place, _), (page, entries)) in places.iter().zip(store.extents(blob)) {
                let expected = (clusters - place * 512).min(512);
                // A crash between extent page and root leaves the old table with its old page.
                assert_eq!(entries.len() as u64, expected, "blob {id:#x}, page {page}");
            }
        }
    });
}

#[test]
fn only_thin_blobs_have_holes() {
    each(|store| {
        for (id, blob) in &store.blobs {
            let (places, clusters) = blob.table();
            let thin = blob.flags()[0] & 1 == 1;
            let extents = store.extents(blob);
            let holes = extents.iter().flat_map(|(_, entries)| entries).any(|entry| *entry == 0)
                || (places.len() as u64) < clusters.div_ceil(512);
            assert!(thin || !holes, "blob {id:#x}");
        }
    });
}

#[test]
fn a_clean_store_has_true_bitmaps() {
    each(|store| {
        if !store.is_clean() {
            return;
        }
        let pages = store.super_field(52);
        let clusters = (u64_at(&store.bytes, 80) / u64::from(store.super_field(28))) as u32;
        let (mut used_pages, mut used_clusters) = (BTreeSet::new(), BTreeSet::new());
        used_clusters.extend(0..store.super_field(48) + pages);
        for blob in store.blobs.values() {
            used_pages.extend(&blob.pages);
            for (page, entries) in store.extents(blob) {
                used_pages.insert(page);
                used_clusters.extend(entries.into_iter().filter(|entry| *entry != 0));
            }
        }
        let roots: BTreeSet<_> = store.blobs.keys().map(|id| *id as u32).collect();
        assert_eq!(store.mask(32, 0, pages), used_pages);
        assert_eq!(store.mask(40, 1, clusters), used_clusters);
        assert_eq!(store.mask(72, 2, pages), roots);
    });
    assert!(states().last().unwrap().is_clean(), "an orderly close says so");
}

#[test]
fn interrupted_snapshots_can_be_ended_by_spdk() {
    let mut seen = BTreeSet::new();
    for store in states() {
        for (id, blob) in store.volumes() {
            let internal = blob.xattrs(4);
            assert!(internal.keys().all(|name| ["SNAP", "SNAPTMP", "SNAPRM"].contains(&&**name)));
            assert!(internal.values().all(|value| value.len() == 8));
            if let Some(parent) = internal.get("SNAP") {
                assert_eq!(blob.flags()[0] & 1, 1, "a clone is thin");
                assert!(store.blobs.contains_key(&u64_at(parent, 0)), "blob {id:#x}: its parent");
            }
            for mark in ["SNAPTMP", "SNAPRM"] {
                let Some(other) = internal.get(mark) else { continue };
                assert!(store.blobs.contains_key(&u64_at(other, 0)), "blob {id:#x}: the other one");
                seen.insert(mark);
            }
        }
    }
    assert_eq!(seen.len(), 2, "both were met: {seen:?}");
}
