//! Making a pool, and closing one in order: the two moments at which the whole of the metadata is
//! written.

use uuid::Uuid;

use crate::block::BlockDevice;
use crate::hw::dma::DmaArena;
use crate::units::{ByteCount, ByteOffset, PageIndex};

use super::error::Error;
use super::format::{
    BitSet, Contents, IDENTIFY_BYTES, Layout, LayoutOptions, MaskKind, SuperBlock, VolumeName,
    blob_id, encode_mask, lvolstore, root_page,
};
use super::metadata_io::{MetadataIo, medium};
use super::store::Store;

/// How a pool is made.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Its name: 1 to 63 bytes.
    pub name: String,
    /// Its UUID; a random one if `None`.
    pub uuid: Option<Uuid>,
    /// Cluster size, and room for metadata.
    pub layout: LayoutOptions,
}

impl<D: BlockDevice> Store<D> {
    /// Tells what is on a device.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::NoMemory`].
    pub async fn identify(device: &D, arena: &DmaArena) -> Result<Contents, Error> {
        let io = MetadataIo::new(device.clone(), arena)?;
        let length = device.geometry().size().get().min(IDENTIFY_BYTES as u64) as usize;
        Ok(Contents::identify(&io.read_region(ByteOffset(0), length).await?))
    }

    /// Makes a pool on a blank device. In order: the metadata region and the bitmaps are zeroed,
    /// the store's own blob is written. FLUSH. The super block is written. FLUSH. So a crash
    /// leaves a device that is still blank, or a pool.
    ///
    /// # Errors
    /// [`Error::NotBlank`], [`Error::InvalidName`], [`Error::Layout`], [`Error::Device`],
    /// [`Error::NoMemory`].
    pub async fn format(
        device: &D,
        arena: &DmaArena,
        options: &FormatOptions,
    ) -> Result<(), Error> {
        let name = VolumeName::new(&options.name)?;
        match Self::identify(device, arena).await? {
            Contents::Blank => {}
            other => return Err(Error::NotBlank(other)),
        }
        let layout = Layout::create(medium(device.geometry()), options.layout)?;
        let io = MetadataIo::new(device.clone(), arena)?;
        let metadata = ByteCount(layout.data_start().0);
        io.zero(&[io.stretch(ByteOffset(0), metadata)]).await?;
        let data = ByteCount(layout.bytes_of(layout.data_clusters()).0);
        if let Err(error) = io.discard(&[io.stretch(layout.data_start(), data)]).await {
            tracing::debug!(%error, "the device did not discard what was in the pool's place");
        }
        let root = PageIndex(0);
        let uuid = options.uuid.unwrap_or_else(Uuid::new_v4);
        let blob = lvolstore::super_blob(blob_id(root), &name, uuid);
        let Ok(pages) = blob.encode() else { unreachable!("a name and a UUID fit into one page") };
        let offset = layout.page_offset(root).unwrap_or_default();
        let roots: Vec<_> = pages.into_iter().map(|page| (offset, page)).collect();
        io.write_pages(&roots).await?;
        io.flush().await?;
        let mut super_block = SuperBlock::new(layout);
        super_block.set_super_blob(Some(blob.id));
        io.write_page(ByteOffset(0), &super_block.encode()).await?;
        io.flush().await?;
        tracing::debug!(pool = %name, %uuid, "formatted");
        Ok(())
    }

    /// The last steps of an orderly close: everything is committed, the bitmaps are written. FLUSH.
    /// The super block says clean. FLUSH. If the medium says clean already, nothing was changed.
    pub(super) async fn close_clean(&self) -> Result<(), Error> {
        self.commit_all().await?;
        self.settle().await;
        self.fate.error().map_or(Ok(()), Err)?;
        let mut super_block = self.state.borrow().super_block.clone();
        if super_block.is_clean() {
            return Ok(());
        }
        for (mask, bits) in self.masks() {
            let Some(region) = self.layout.mask_region(mask) else { continue };
            let (offset, _) = self.layout.region_bytes(region);
            let written = self.io.write_region(offset, &encode_mask(mask, &bits)).await;
            written.map_err(|cause| self.poison("metadata write", cause))?;
        }
        self.flush().await?;
        super_block.set_clean(true);
        self.write_super_block(&super_block).await?;
        self.flush().await?;
        self.state.borrow_mut().super_block = super_block;
        tracing::debug!("closed clean");
        Ok(())
    }

    pub(super) async fn write_super_block(&self, super_block: &SuperBlock) -> Result<(), Error> {
        let written = self.io.write_page(ByteOffset(0), &super_block.encode()).await;
        written.map_err(|cause| self.poison("metadata write", cause))
    }

    fn masks(&self) -> [(MaskKind, BitSet); 3] {
        let state = self.state.borrow();
        let mut clusters = state.allocator.used_clusters().clone();
        for lost in &state.lost {
            clusters.remove(lost.0);
        }
        let mut blobs = BitSet::new(self.layout.mask_bits(MaskKind::UsedBlobIds));
        let quarantined = state.quarantined.iter().map(|quarantined| quarantined.id);
        for id in state.volumes.keys().copied().chain(quarantined) {
            blobs.insert(root_page(id).unwrap_or_default().0);
        }
        [
            (MaskKind::UsedPages, state.allocator.used_pages().clone()),
            (MaskKind::UsedClusters, clusters),
            (MaskKind::UsedBlobIds, blobs),
        ]
    }
}
