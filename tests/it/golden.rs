//! Images that SPDK wrote, with what it said of each volume; they lie in `tests/it/golden/`.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use lvolfs::units::BlockSize;
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Every image, by the name of its files.
pub(crate) const IMAGES: [&str; 11] = [
    "c1m-b4096-clean",
    "c1m-b4096-del-clean",
    "c1m-b4096-del-dirty",
    "c1m-b4096-delsnap-clean",
    "c1m-b4096-dirty",
    "c1m-b4096-esnap-clean",
    "c64k-b512-clean",
    "c64k-b512-del-clean",
    "c64k-b512-del-dirty",
    "c64k-b512-delsnap-clean",
    "c64k-b512-dirty",
];

/// The content of the external parent in the `esnap` image: this tag in the manifests' pattern.
pub(crate) const EXTERNAL_TAG: &[u8; 8] = b"extsnap\0";

/// What SPDK said when the image was made.
#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    image_bytes: usize,
    image_sha256: String,
    base_block_size: u32,
    pub(crate) lvstores: Vec<Lvolstore>,
    pub(crate) lvols: Vec<Lvol>,
    /// "clean ..." or how it was killed.
    pub(crate) ended: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Lvolstore {
    pub(crate) uuid: String,
    pub(crate) name: String,
    pub(crate) total_data_clusters: u32,
    pub(crate) free_clusters: u32,
    pub(crate) block_size: u32,
    pub(crate) cluster_size: u64,
    pub(crate) max_growable_size: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Lvol {
    pub(crate) name: String,
    pub(crate) uuid: String,
    pub(crate) is_thin: bool,
    pub(crate) is_snapshot: bool,
    pub(crate) is_clone: bool,
    pub(crate) is_esnap_clone: bool,
    pub(crate) bytes: u64,
    pub(crate) num_allocated_clusters: u32,
    pub(crate) base_snapshot: Option<String>,
    pub(crate) clones: Option<Vec<String>>,
    pub(crate) external_snapshot_name: Option<String>,
    /// Of the whole logical content.
    pub(crate) sha256: String,
}

/// An image in memory.
pub(crate) struct Golden {
    pub(crate) bytes: Vec<u8>,
    pub(crate) block_size: BlockSize,
    pub(crate) manifest: Manifest,
}

impl Golden {
    /// Unpacks one of [`IMAGES`] and checks that it is what SPDK wrote.
    pub(crate) fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden");
        let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
        let manifest: Manifest = serde_json::from_str(&text).unwrap();
        let packed = std::fs::File::open(folder.join(format!("{name}.img.zst"))).unwrap();
        let mut stream = ruzstd::decoding::StreamingDecoder::new(packed).unwrap();
        let mut bytes = Vec::with_capacity(manifest.image_bytes);
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), manifest.image_bytes, "{name}");
        assert_eq!(sha256(&bytes), manifest.image_sha256, "{name}");
        Self { bytes, block_size: BlockSize::new(manifest.base_block_size).unwrap(), manifest }
    }

    /// The volumes by name.
    pub(crate) fn lvols(&self) -> BTreeMap<&str, &Lvol> {
        self.manifest.lvols.iter().map(|lvol| (lvol.name.as_str(), lvol)).collect()
    }
}

/// The SHA-256 of `bytes` as lower-case text.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The pattern of the manifests: what a write with `tag` put at byte `offset` of its volume.
pub(crate) fn pattern(tag: &[u8; 8], offset: u64, into: &mut [u8]) {
    for (sector, bytes) in into.chunks_mut(512).enumerate() {
        let at = offset + 512 * sector as u64;
        let mut content = [(at / 512) as u8; 512];
        content[..8].copy_from_slice(&at.to_le_bytes());
        content[8..16].copy_from_slice(tag);
        bytes.copy_from_slice(&content[..bytes.len()]);
    }
}
