//! The metadata of a store, readable: what `lvolfs dump` prints. Only what can be parsed; for what
//! is wrong there is `check`.

use serde::Serialize;

use super::check::{CheckError, Known, examined, find};
use super::format::{BitSet, Mapping, MaskKind, SuperBlock, Xattrs};
use super::validate::ImageRead;
use super::validate::walk::Member;

/// All metadata of a store.
#[derive(Debug, Serialize)]
pub struct Dump {
    /// The super block.
    pub super_block: SuperBlockDump,
    /// The bitmaps, if the store says that they are true.
    pub bitmaps: Vec<BitmapDump>,
    /// All blobs that can be read, the store's own among them.
    pub blobs: Vec<BlobDump>,
    /// Intact pages that belong to no blob's root: chain and extent pages, used or not, each with
    /// the blob that wrote it.
    pub other_pages: Vec<OtherPage>,
    /// Pages that are neither intact nor erased.
    pub damaged_pages: Vec<u32>,
}

/// The super block. Regions are in metadata pages from the start of the device.
#[derive(Debug, Serialize)]
pub struct SuperBlockDump {
    /// Whether it had to be rebuilt, and what is wrong with it.
    pub damage: Option<String>,
    /// Its version.
    pub version: u32,
    /// Whether the store was closed in order.
    pub clean: bool,
    /// The blob with the name of the store.
    pub super_blob: Option<String>,
    /// Bytes of the store.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Bytes of a metadata page.
    pub metadata_page_size: u64,
    /// Bytes of a volume's block.
    pub io_unit: u32,
    /// All clusters.
    pub clusters: u32,
    /// The clusters at the start that the metadata takes.
    pub metadata_clusters: u32,
    /// Where everything is.
    pub regions: Vec<RegionDump>,
}

/// A region of the metadata.
#[derive(Debug, Serialize)]
pub struct RegionDump {
    /// What it holds.
    pub name: &'static str,
    /// Its first page.
    pub first: u32,
    /// Its length.
    pub pages: u32,
}

/// A bitmap.
#[derive(Debug, Serialize)]
pub struct BitmapDump {
    /// Which.
    pub name: String,
    /// Its bits.
    pub bits: u32,
    /// Those that are set.
    pub used: u32,
    /// Where: first and count of each run of set bits.
    pub runs: Vec<(u32, u32)>,
}

/// An attribute; bytes that are no text are escaped.
#[derive(Debug, Serialize)]
pub struct XattrDump {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A run of clusters.
#[derive(Debug, Serialize)]
pub struct RunDump {
    /// The first, in the volume.
    pub volume: u32,
    /// The first, on the device.
    pub device: u32,
    /// How many.
    pub count: u32,
}

/// A blob.
#[derive(Debug, Serialize)]
pub struct BlobDump {
    /// Its identity, in hexadecimal digits.
    pub id: String,
    /// Whether clusters may be without storage.
    pub thin: bool,
    /// Whether its data must not change.
    pub read_only: bool,
    /// Its size by its table or runs.
    pub clusters: u32,
    /// The pages after its root.
    pub chain: Vec<u32>,
    /// Place in the table and metadata page of each extent page.
    pub extent_pages: Vec<(u32, u32)>,
    /// What the lvolstore keeps.
    pub xattrs: Vec<XattrDump>,
    /// What the blobstore keeps: blob ids in hexadecimal digits.
    pub internal_xattrs: Vec<XattrDump>,
    /// Its mapping, if that can be read.
    pub map: Option<Vec<RunDump>>,
}

/// A page with its writer.
#[derive(Debug, Serialize)]
pub struct OtherPage {
    /// The page.
    pub page: u32,
    /// The blob that wrote it.
    pub writer: String,
}

/// Reads all metadata of an image.
///
/// # Errors
/// [`CheckError`]; a store without a usable super block has nothing to show.
pub fn dump(image: &dyn ImageRead, known: Known) -> Result<Dump, CheckError> {
    let found = find(image, known)?;
    let Some(super_block) = found.super_block else {
        let damage = found.damage.into_iter().next();
        return Err(damage.map_or_else(
            || CheckError::NotLvolstore(super::format::Contents::Unknown),
            |damage| CheckError::Read(damage.into()),
        ));
    };
    let damage = found.damage.map(|damage| damage.to_string());
    let store = examined(image, super_block, found.is_torn)?;
    let bitmaps = store.masks.iter().flat_map(|masks| {
        [
            (MaskKind::UsedPages, &masks.pages),
            (MaskKind::UsedClusters, &masks.clusters),
            (MaskKind::UsedBlobIds, &masks.blob_ids),
        ]
    });
    let bitmaps = bitmaps.filter_map(|(kind, bits)| Some(bitmap(kind, bits.as_ref()?)));
    let others = store
        .walk
        .others
        .iter()
        .map(|(page, writer)| OtherPage { page: page.0, writer: hexadecimal(writer.0) });
    Ok(Dump {
        super_block: super_block_of(&store.super_block, damage),
        bitmaps: bitmaps.collect(),
        blobs: store.walk.blobs.values().map(blob).collect(),
        other_pages: others.collect(),
        damaged_pages: store.walk.damaged.iter().map(|page| page.0).collect(),
    })
}

fn hexadecimal(id: u64) -> String {
    format!("{id:#x}")
}

fn super_block_of(super_block: &SuperBlock, damage: Option<String>) -> SuperBlockDump {
    let layout = super_block.layout();
    let regions = [
        ("used page bitmap", layout.mask_region(MaskKind::UsedPages)),
        ("used cluster bitmap", layout.mask_region(MaskKind::UsedClusters)),
        ("used blob id bitmap", layout.mask_region(MaskKind::UsedBlobIds)),
        ("metadata", Some(layout.metadata_region())),
    ];
    let regions = regions.into_iter().filter_map(|(name, region)| {
        region.map(|region| RegionDump { name, first: region.first, pages: region.pages })
    });
    SuperBlockDump {
        damage,
        version: super_block.version(),
        clean: super_block.is_clean(),
        super_blob: super_block.super_blob().map(|id| hexadecimal(id.0)),
        size: layout.size().0,
        cluster_size: layout.cluster_size().0,
        metadata_page_size: layout.metadata_page_size().0,
        io_unit: layout.io_unit().bytes(),
        clusters: layout.clusters().0,
        metadata_clusters: layout.metadata_clusters().0,
        regions: regions.collect(),
    }
}

fn bitmap(kind: MaskKind, bits: &BitSet) -> BitmapDump {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for bit in bits.iter() {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == bit => *count += 1,
            _ => runs.push((bit, 1)),
        }
    }
    BitmapDump { name: kind.to_string(), bits: bits.len(), used: bits.count(), runs }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes[..end].escape_ascii().to_string()
}

fn xattrs(xattrs: &Xattrs, internal: bool) -> Vec<XattrDump> {
    let value = |bytes: &[u8]| match <[u8; 8]>::try_from(bytes) {
        Ok(id) if internal => hexadecimal(u64::from_le_bytes(id)),
        _ => text(bytes),
    };
    let dump = xattrs
        .iter()
        .map(|xattr| XattrDump { name: text(&xattr.name), value: value(&xattr.value) });
    dump.collect()
}

fn blob(member: &Member) -> BlobDump {
    let Member { blob, map } = member;
    let extent_pages = match &blob.mapping {
        Mapping::Table(table) => table.iter().map(|(slot, page)| (slot.0, page.0)).collect(),
        Mapping::Rle(_) => Vec::new(),
    };
    let runs = map.as_ref().map(|map| {
        let runs = map.runs().iter().map(|run| RunDump {
            volume: run.volume.0,
            device: run.device.0,
            count: run.count.0,
        });
        runs.collect()
    });
    BlobDump {
        id: hexadecimal(blob.id.0),
        thin: blob.flags.thin,
        read_only: blob.flags.forbids_data(),
        clusters: blob.mapping.clusters().0,
        chain: blob.chain.iter().map(|page| page.0).collect(),
        extent_pages,
        xattrs: xattrs(&blob.xattrs, false),
        internal_xattrs: xattrs(blob.internal_xattrs(), true),
        map: runs,
    }
}
