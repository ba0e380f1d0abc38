//! The on-disk format against images that SPDK wrote, and against its description.

use std::collections::BTreeMap;

use lvolfs::lvol::format::raw::{STRUCTURES, Structure};
use lvolfs::lvol::format::{
    BitSet, BlobReader, Contents, ExtentPage, IDENTIFY_BYTES, Layout, Mapping, MaskKind, Medium,
    PageBytes, PageKind, PageProblem, SuperBlock, blob_id, decode_mask, encode_mask, lvolstore,
    mask_bytes,
};
use lvolfs::lvol::validate::{BitRange, Finding, Parent, ReadError, Report, Volume, validate};
use lvolfs::units::{BlockCount, BlockSize, ByteCount, PageIndex};

use crate::golden::{EXTERNAL_TAG, Golden, IMAGES, pattern, sha256};

/// Runs a check on each image; one after the other, since each takes 64 MiB of memory.
fn each_image(check: fn(&str, &Golden)) {
    for name in IMAGES {
        check(name, &Golden::open(name));
    }
}

#[test]
fn the_validator_agrees_with_spdk_on_every_image() {
    each_image(|name, golden| {
        let image = golden.bytes.as_slice();
        let report = validate(&image, golden.block_size).unwrap();
        assert_eq!(report.findings, [], "{name}");
        assert_eq!(report.clean, golden.manifest.ended.starts_with("clean"), "{name}");
        let [store] = golden.manifest.lvstores.as_slice() else { panic!("{name}: one store") };
        let layout = &report.layout;
        assert_eq!(report.name.as_ref().unwrap().as_str(), store.name, "{name}");
        assert_eq!(report.uuid.unwrap().to_string(), store.uuid, "{name}");
        assert_eq!(layout.data_clusters().0, store.total_data_clusters, "{name}");
        assert_eq!(report.free_clusters.0, store.free_clusters, "{name}");
        assert_eq!(layout.io_unit().bytes(), store.block_size, "{name}");
        assert_eq!(layout.cluster_size().0, store.cluster_size, "{name}");
        let largest = layout.bytes_of(layout.max_clusters());
        assert_eq!(largest.0, store.max_growable_size, "{name}");

        let lvols = golden.lvols();
        assert_eq!(report.volumes.len(), lvols.len(), "{name}");
        for (volume_name, lvol) in lvols {
            let what = format!("{name}: {volume_name}");
            let volume = report.volume(volume_name).unwrap_or_else(|| panic!("{what}"));
            let base = lvol.base_snapshot.as_deref();
            let external = lvol.external_snapshot_name.as_deref();
            let mut clones = lvol.clones.clone().unwrap_or_default();
            clones.sort();
            assert_eq!(volume.uuid.unwrap().to_string(), lvol.uuid, "{what}");
            assert_eq!(volume.size.0, lvol.bytes, "{what}");
            assert_eq!(volume.thin, lvol.is_thin, "{what}");
            assert_eq!(volume.read_only, lvol.is_snapshot || lvol.name == "readonly", "{what}");
            assert_eq!(volume.allocated.0, lvol.num_allocated_clusters, "{what}");
            assert_eq!(names(&report, volume), (base, external, clones), "{what}");
            assert_eq!(lvol.is_clone, base.is_some(), "{what}");
            assert_eq!(lvol.is_esnap_clone, external.is_some(), "{what}");
            assert_eq!(content_hash(&report, image, volume), lvol.sha256, "{what}");
        }
    });
}

/// The names of parent, external parent and clones.
fn names<'r>(
    report: &'r Report,
    volume: &'r Volume,
) -> (Option<&'r str>, Option<&'r str>, Vec<String>) {
    let name = |id| report.volumes[id].name.as_ref().unwrap().as_str();
    let mut clones: Vec<_> = volume.clones.iter().map(|id| name(id).to_owned()).collect();
    clones.sort();
    match &volume.parent {
        None => (None, None, clones),
        Some(Parent::Snapshot(id)) => (Some(name(id)), None, clones),
        Some(Parent::External(text)) => {
            let text = str::from_utf8(text).unwrap().strip_suffix('\0').unwrap();
            (None, Some(text), clones)
        }
    }
}

fn content_hash(report: &Report, image: &[u8], volume: &Volume) -> String {
    let mut content = vec![0; volume.size.0 as usize];
    let cluster = report.layout.cluster_size().0 as usize;
    for (number, part) in content.chunks_mut(cluster).enumerate() {
        let offset = (number * cluster) as u64;
        match report.read_volume(&image, volume, offset, part) {
            Ok(()) => {}
            Err(ReadError::External { .. }) => pattern(EXTERNAL_TAG, offset, part),
            Err(error) => panic!("{error}"),
        }
    }
    sha256(&content)
}

fn slot(golden: &Golden, layout: &Layout, page: PageIndex) -> PageBytes {
    let offset = layout.page_offset(page).unwrap().0 as usize;
    golden.bytes[offset..offset + 4096].try_into().unwrap()
}

fn super_block(golden: &Golden) -> SuperBlock {
    let blocks = BlockCount(golden.bytes.len() as u64 >> golden.block_size.shift());
    let first = golden.bytes[..4096].try_into().unwrap();
    SuperBlock::parse(first, Medium::new(golden.block_size, blocks)).unwrap()
}

#[test]
fn what_is_read_is_written_back_bit_by_bit() {
    each_image(|name, golden| {
        assert_eq!(Contents::identify(&golden.bytes[..IDENTIFY_BYTES]), Contents::Lvolstore);
        let block = super_block(golden);
        let layout = block.layout();
        assert!(block.encode() == golden.bytes[..4096], "{name}");
        let mut roots = BitSet::new(layout.metadata_pages());
        let mut extents = 0;
        for page in (0..layout.metadata_pages()).map(PageIndex) {
            let bytes = slot(golden, layout, page);
            match PageKind::classify(page, &bytes) {
                PageKind::Root(_) => {
                    let reader = BlobReader::start(layout, page, &bytes).unwrap();
                    assert_eq!(reader.next_page(), None, "{name}: the scene has short blobs");
                    let read = reader.finish().unwrap();
                    assert_eq!(read.oddities, [], "{name}: page {page}");
                    assert!(read.blob.encode().unwrap() == [bytes], "{name}: page {page}");
                    roots.insert(page.0);
                }
                PageKind::Extent(_) => {
                    let extent = ExtentPage::parse(layout, &bytes).unwrap();
                    assert!(extent.encode() == bytes, "{name}: page {page}");
                    extents += 1;
                }
                PageKind::Invalid(PageProblem::Erased) => {}
                other => panic!("{name}: page {page} is {other:?}"),
            }
        }
        assert!(roots.count() >= 2 && extents >= 1, "{name}: {roots:?}, {extents} extent pages");
        for mask in [MaskKind::UsedPages, MaskKind::UsedClusters, MaskKind::UsedBlobIds] {
            let (start, length) = layout.region_bytes(layout.mask_region(mask).unwrap());
            let region = &golden.bytes[start.0 as usize..][..length.0 as usize];
            let bits = layout.mask_bits(mask);
            if !block.is_clean() && region.iter().all(|byte| *byte == 0) {
                continue;
            }
            let set = decode_mask(mask, region, bits).unwrap();
            let (used, padding) = region.split_at(mask_bytes(bits));
            assert!(encode_mask(mask, &set) == used, "{name}: {mask}");
            assert!(padding.iter().all(|byte| *byte == 0), "{name}: {mask}");
            if block.is_clean() && mask == MaskKind::UsedBlobIds {
                assert_eq!(set, roots, "{name}");
            }
        }
    });
}

#[test]
fn a_new_store_has_spdks_layout_and_first_blob() {
    let golden = Golden::open("c1m-b4096-clean");
    let block = super_block(&golden);
    let [store] = golden.manifest.lvstores.as_slice() else { panic!("one store") };
    let medium = Medium::new(BlockSize::B4096, BlockCount(16384));
    let options = lvolfs::lvol::format::LayoutOptions {
        cluster_size: ByteCount(store.cluster_size),
        ..Default::default()
    };
    let mut made = SuperBlock::new(Layout::create(medium, options).unwrap());
    made.set_super_blob(block.super_blob());
    made.set_clean(true);
    assert!(made.encode() == golden.bytes[..4096]);

    let id = block.super_blob().unwrap();
    let name = lvolstore::VolumeName::new(&store.name).unwrap();
    let blob = lvolstore::super_blob(id, &name, store.uuid.parse().unwrap());
    let root = lvolfs::lvol::format::root_page(id).unwrap();
    assert!(blob.encode().unwrap() == [slot(&golden, block.layout(), root)]);
}

#[test]
fn a_new_volume_is_spdks() {
    let golden = Golden::open("c1m-b4096-clean");
    let block = super_block(&golden);
    let report = validate(&golden.bytes.as_slice(), golden.block_size).unwrap();
    let volume = report.volume("thin_empty").unwrap();
    let clusters = volume.map().clusters();
    let name = volume.name.clone().unwrap();
    let mut blob = lvolstore::volume_blob(volume.blob, &name, volume.uuid.unwrap(), clusters);
    blob.flags.thin = true;
    let root = lvolfs::lvol::format::root_page(volume.blob).unwrap();
    let spdk = slot(&golden, block.layout(), root);
    assert!(blob.encode().unwrap() == [spdk]);
}

/// A change to an image and what the validator must say of it.
struct Damage {
    what: &'static str,
    image: &'static str,
    make: fn(&mut Golden, &Report),
    found: fn(&Finding) -> bool,
}

/// Rewrites the blob of a volume.
fn change_blob(
    golden: &mut Golden,
    report: &Report,
    volume: &str,
    change: impl FnOnce(&mut lvolfs::lvol::format::Blob),
) {
    let id = report.volume(volume).unwrap().blob;
    let root = lvolfs::lvol::format::root_page(id).unwrap();
    let bytes = slot(golden, &report.layout, root);
    let reader = BlobReader::start(&report.layout, root, &bytes).unwrap();
    let mut blob = reader.finish().unwrap().blob;
    change(&mut blob);
    put(golden, &report.layout, root, blob.encode().unwrap()[0]);
}

fn put(golden: &mut Golden, layout: &Layout, page: PageIndex, bytes: PageBytes) {
    let offset = layout.page_offset(page).unwrap().0 as usize;
    golden.bytes[offset..offset + 4096].copy_from_slice(&bytes);
}

/// The first extent page of a volume.
fn extent_page(golden: &Golden, report: &Report, volume: &str) -> PageIndex {
    let id = report.volume(volume).unwrap().blob;
    let root = lvolfs::lvol::format::root_page(id).unwrap();
    let bytes = slot(golden, &report.layout, root);
    let blob = BlobReader::start(&report.layout, root, &bytes).unwrap().finish().unwrap().blob;
    let Mapping::Table(table) = blob.mapping else { panic!("{volume} has a table") };
    table.iter().next().unwrap().1
}

/// Rewrites the first extent page of a volume.
fn change_extents(
    golden: &mut Golden,
    report: &Report,
    volume: &str,
    change: impl FnOnce(&mut ExtentPage),
) {
    let page = extent_page(golden, report, volume);
    let mut content =
        ExtentPage::parse(&report.layout, &slot(golden, &report.layout, page)).unwrap();
    change(&mut content);
    put(golden, &report.layout, page, content.encode());
}

const CLEAN: &str = "c1m-b4096-clean";
const DIRTY: &str = "c1m-b4096-dirty";

#[rustfmt::skip]
const DAMAGES: &[Damage] = &[
    Damage {
        what: "a torn root page", image: CLEAN,
        make: |golden, report| {
            let root = lvolfs::lvol::format::root_page(report.volume("thick").unwrap().blob);
            let offset = report.layout.page_offset(root.unwrap()).unwrap().0 as usize;
            golden.bytes[offset + 100] ^= 1;
        },
        found: |finding| matches!(finding, Finding::Blob { .. }),
    },
    Damage {
        what: "a torn root page in a store that was not closed", image: DIRTY,
        make: |golden, report| {
            let root = lvolfs::lvol::format::root_page(report.volume("thick").unwrap().blob);
            let offset = report.layout.page_offset(root.unwrap()).unwrap().0 as usize;
            golden.bytes[offset + 100] ^= 1;
        },
        found: |finding| matches!(finding, Finding::Blob { .. }),
    },
    Damage {
        what: "a torn extent page", image: DIRTY,
        make: |golden, report| {
            let page = extent_page(golden, report, "thick");
            let offset = report.layout.page_offset(page).unwrap().0 as usize;
            golden.bytes[offset + 30] ^= 1;
        },
        found: |finding| matches!(finding, Finding::ExtentPage { .. }),
    },
    Damage {
        what: "a cluster with two owners", image: DIRTY,
        make: |golden, report| {
            let other = report.volume("thick").unwrap().map().runs()[0].device;
            change_extents(golden, report, "inflated", |page| page.clusters[1] = Some(other));
        },
        found: |finding| matches!(finding, Finding::SharedClusters { .. }),
    },
    Damage {
        what: "an extent page with two owners", image: DIRTY,
        make: |golden, report| {
            let page = extent_page(golden, report, "inflated");
            change_blob(golden, report, "thin", |blob| {
                let Mapping::Table(table) = &mut blob.mapping else { panic!("a table") };
                table.set(lvolfs::lvol::format::TableSlot(0), page);
            });
        },
        found: |finding| matches!(finding, Finding::SharedPage { .. }),
    },
    Damage {
        what: "a hole in a thick volume", image: DIRTY,
        make: |golden, report| {
            change_extents(golden, report, "thick", |page| page.clusters[1] = None);
        },
        found: |finding| matches!(finding, Finding::Mapping { .. }),
    },
    Damage {
        what: "a size that an interrupted resize leaves", image: DIRTY,
        make: |golden, report| {
            change_extents(golden, report, "thick", |page| page.clusters.truncate(2));
        },
        found: |finding| matches!(finding, Finding::Size { .. }),
    },
    Damage {
        what: "a lost update of a bitmap", image: CLEAN,
        make: |golden, report| {
            let region = report.layout.mask_region(MaskKind::UsedClusters).unwrap();
            golden.bytes[report.layout.region_bytes(region).0.0 as usize + 5 + 2] ^= 0x10;
        },
        found: |finding| matches!(
            finding,
            Finding::MaskBits {
                mask: MaskKind::UsedClusters,
                bits: BitRange { first: 20, last: 20 },
                ..
            }
        ),
    },
    Damage {
        what: "a bitmap that was never written", image: CLEAN,
        make: |golden, report| {
            let region = report.layout.mask_region(MaskKind::UsedBlobIds).unwrap();
            let start = report.layout.region_bytes(region).0.0 as usize;
            golden.bytes[start..start + 4096].fill(0);
        },
        found: |finding| matches!(finding, Finding::Mask(_)),
    },
    Damage {
        what: "a volume without a name", image: DIRTY,
        make: |golden, report| change_blob(golden, report, "thick", |blob| {
            blob.xattrs.remove(b"name");
        }),
        found: |finding| matches!(finding, Finding::Identity { .. }),
    },
    Damage {
        what: "two volumes of one name", image: DIRTY,
        make: |golden, report| change_blob(golden, report, "thick", |blob| {
            lvolstore::rename(&mut blob.xattrs, &lvolstore::VolumeName::new("thin").unwrap());
        }),
        found: |finding| matches!(finding, Finding::SameName { .. }),
    },
    Damage {
        what: "two volumes of one UUID", image: DIRTY,
        make: |golden, report| {
            let uuid = report.volume("thin").unwrap().uuid.unwrap();
            change_blob(golden, report, "thick", |blob| {
                blob.xattrs.set(b"uuid", format!("{uuid}\0").as_bytes()).unwrap();
            });
        },
        found: |finding| matches!(finding, Finding::SameUuid { .. }),
    },
    Damage {
        what: "a clone of nothing", image: DIRTY,
        make: |golden, report| change_blob(golden, report, "clone1", |blob| {
            blob.set_parent(Some(blob_id(PageIndex(60))));
        }),
        found: |finding| matches!(finding, Finding::NoParent { .. }),
    },
    Damage {
        what: "a volume that is its own ancestor", image: DIRTY,
        make: |golden, report| {
            let thin = report.volume("thin").unwrap().blob;
            change_blob(golden, report, "snap1", |blob| blob.set_parent(Some(thin)));
        },
        found: |finding| matches!(finding, Finding::ParentLoop { .. }),
    },
    Damage {
        what: "a snapshot that could be written", image: DIRTY,
        make: |golden, report| {
            change_blob(golden, report, "snap1", |blob| blob.flags.read_only = false);
        },
        found: |finding| matches!(finding, Finding::WritableParent { .. }),
    },
    Damage {
        what: "a clone that is not thin", image: DIRTY,
        make: |golden, report| {
            let parent = report.volume("snap1").unwrap().blob;
            change_blob(golden, report, "thick", |blob| blob.set_parent(Some(parent)));
        },
        found: |finding| matches!(finding, Finding::ThickClone { .. }),
    },
    Damage {
        what: "an external parent without its flag", image: "c1m-b4096-esnap-clean",
        make: |golden, report| {
            change_blob(golden, report, "esclone", |blob| blob.flags.external_snapshot = false);
        },
        found: |finding| matches!(finding, Finding::ExternalParent { .. }),
    },
    Damage {
        what: "an unfinished snapshot", image: DIRTY,
        make: |golden, report| {
            let thin = report.volume("thin").unwrap().blob;
            change_blob(golden, report, "snap2", |blob| blob.set_snapshot_of(Some(thin)));
        },
        found: |finding| matches!(finding, Finding::SnapshotUnfinished { .. }),
    },
    Damage {
        what: "an unfinished deletion", image: DIRTY,
        make: |golden, report| {
            let thin = report.volume("thin").unwrap().blob;
            change_blob(golden, report, "snap2", |blob| blob.set_deleting_for(Some(thin)));
        },
        found: |finding| matches!(finding, Finding::DeletionUnfinished { .. }),
    },
    Damage {
        what: "an extent page that nobody has", image: DIRTY,
        make: |golden, report| {
            let page = extent_page(golden, report, "thick");
            let bytes = slot(golden, &report.layout, page);
            put(golden, &report.layout, PageIndex(61), bytes);
        },
        found: |finding| matches!(finding, Finding::UnusedPage { .. }),
    },
    Damage {
        what: "a store without a name", image: DIRTY,
        make: |golden, _| {
            let mut block = super_block(golden);
            block.set_super_blob(None);
            golden.bytes[..4096].copy_from_slice(&block.encode());
        },
        found: |finding| matches!(finding, Finding::NoSuperBlob),
    },
];

#[test]
fn each_damage_is_found() {
    let mut images: BTreeMap<&str, (Golden, Report)> = BTreeMap::new();
    for damage in DAMAGES {
        let (golden, report) = images.entry(damage.image).or_insert_with(|| {
            let golden = Golden::open(damage.image);
            let report = validate(&golden.bytes.as_slice(), golden.block_size).unwrap();
            (golden, report)
        });
        let metadata = report.layout.data_start().0 as usize;
        let before = golden.bytes[..metadata].to_vec();
        (damage.make)(golden, report);
        let after = validate(&golden.bytes.as_slice(), golden.block_size).unwrap();
        golden.bytes[..metadata].copy_from_slice(&before);
        let found = after.findings;
        assert!(found.iter().any(damage.found), "{}: {found:?}", damage.what);
        assert!(found.iter().all(|finding| !finding.to_string().is_empty()));
    }
}

#[test]
fn a_smaller_parent_hides_its_own_parents() {
    let mut golden = Golden::open(DIRTY);
    let report = validate(&golden.bytes.as_slice(), golden.block_size).unwrap();
    let first_bytes = |golden: &Golden, report: &Report| {
        let mut bytes = [0; 16];
        let thin = report.volume("thin").unwrap();
        report.read_volume(&golden.bytes.as_slice(), thin, 8384512, &mut bytes).unwrap();
        bytes
    };
    let mut written = [0; 16];
    pattern(b"thinA\0\0\0", 8384512, &mut written);
    assert_eq!(first_bytes(&golden, &report), written, "from snap1, through snap2");
    change_extents(&mut golden, &report, "snap2", |page| page.clusters.truncate(7));
    let report = validate(&golden.bytes.as_slice(), golden.block_size).unwrap();
    assert_eq!(report.volume("snap2").unwrap().size, ByteCount(7 << 20));
    assert_eq!(first_bytes(&golden, &report), [0; 16]);
}

#[test]
fn damaged_metadata_never_panics() {
    let seed = 0x676f_6c64;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut golden = Golden::open("c64k-b512-clean");
    let block = super_block(&golden);
    let layout = block.layout().clone();
    let metadata = layout.data_start().0 as usize;
    let before = golden.bytes[..metadata].to_vec();
    let roots: Vec<u32> = (0..20).collect();
    for _ in 0..150 {
        for _ in 0..random.usize(1..6) {
            let page = PageIndex(roots[random.usize(0..roots.len())]);
            let mut bytes = slot(&golden, &layout, page);
            for _ in 0..random.usize(1..4) {
                bytes[random.usize(0..256)] = random.u8(..);
            }
            let crc = lvolfs::lvol::format::checksum(&bytes);
            bytes[4092..].copy_from_slice(&crc.to_le_bytes());
            put(&mut golden, &layout, page, bytes);
        }
        let image = golden.bytes.as_slice();
        let report = validate(&image, golden.block_size).unwrap();
        for volume in report.volumes.values() {
            let length = volume.size.0.min(1 << 20) as usize;
            // Wrong content or an error; it must return.
            let _ = report.read_volume(&image, volume, 0, &mut vec![0; length]);
        }
        golden.bytes[..metadata].copy_from_slice(&before);
    }
}

#[test]
fn the_document_describes_the_structures() {
    let document = include_str!("../../docs/on-disk-format.md");
    let mut headings = document.lines().filter(|line| line.starts_with("### "));
    for structure in STRUCTURES {
        let heading = format!("### {} ({} bytes)", structure.name, structure.size);
        assert_eq!(headings.next(), Some(heading.as_str()));
        check_table(document, &heading, structure);
    }
    assert_eq!(headings.next(), None);
}

fn check_table(document: &str, heading: &str, structure: &Structure) {
    let after = document.lines().skip_while(|line| *line != heading);
    let rows: Vec<_> = after.skip(4).take_while(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), structure.fields.len(), "{heading}");
    for (row, field) in rows.iter().zip(structure.fields) {
        let expected = format!("| {} | {} | `{}` |", field.offset, field.size, field.name);
        assert!(row.starts_with(&expected), "{heading}: {row:?} instead of {expected:?}");
    }
}
