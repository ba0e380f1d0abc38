//! Making a pool, and closing one in order: the two moments at which the whole of the metadata is
//! written. And taking one off its device.

use uuid::Uuid;

use crate::block::{BlockDevice, BlockError};
use crate::hw::dma::DmaArena;
use crate::units::{BlockSize, ByteCount, ByteOffset, PageIndex};

use super::allocator::Allocator;
use super::error::Error;
use super::format::{
    BitSet, ClearMethod, Contents, IDENTIFY_BYTES, Layout, LayoutOptions, MaskKind, SuperBlock,
    VolumeName, blob_id, encode_mask, lvolstore, root_page,
};
use super::metadata_io::{MetadataIo, medium};
use super::store::Store;
use super::volume_map::CLOSED;

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

/// How a device is made ready for a pool, where that is not as usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preparation {
    /// What happens to what the data clusters hold. No volume relies on it: each zeroes what it
    /// shows.
    pub clear: ClearMethod,
    /// The smallest metadata slot; the device's physical block and 4096 bytes are lower limits.
    pub metadata_page: BlockSize,
}

impl Default for Preparation {
    fn default() -> Self {
        Self { clear: ClearMethod::Unmap, metadata_page: BlockSize::B4096 }
    }
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

    /// Makes a pool on a blank device, or where one was destroyed ([`Contents::Remains`]: who asks
    /// knows that nothing of it is needed). In order: the metadata region and the bitmaps are zeroed,
    /// the store's own blob and the bitmaps are written. FLUSH. The super block is written without
    /// its last sector. FLUSH. It is written. FLUSH. So a crash leaves a device that is still
    /// blank, or a pool: each write changes one sector, and opening ends the last one. The pool is
    /// clean: the first opening need not read a region that holds nothing.
    ///
    /// # Errors
    /// [`Error::NotBlank`], [`Error::InvalidName`], [`Error::Layout`], [`Error::Device`],
    /// [`Error::NoMemory`].
    pub async fn format(
        device: &D,
        arena: &DmaArena,
        options: &FormatOptions,
    ) -> Result<(), Error> {
        Self::format_prepared(device, arena, options, Preparation::default()).await
    }

    /// As [`Store::format`], with the device made ready in another way.
    ///
    /// # Errors
    /// As there.
    pub async fn format_prepared(
        device: &D,
        arena: &DmaArena,
        options: &FormatOptions,
        preparation: Preparation,
    ) -> Result<(), Error> {
        let name = VolumeName::new(&options.name)?;
        match Self::identify(device, arena).await? {
            Contents::Blank | Contents::Remains => {}
            other => return Err(Error::NotBlank(other)),
        }
        let mut medium = medium(device.geometry());
        medium.physical_block_size = medium.physical_block_size.max(preparation.metadata_page);
        let layout = Layout::create(medium, options.layout)?;
        let io = MetadataIo::new(device.clone(), arena)?;
        let metadata = ByteCount(layout.data_start().0);
        io.zero(&[io.stretch(ByteOffset(0), metadata)]).await?;
        let data = ByteCount(layout.bytes_of(layout.data_clusters()).0);
        clear(&io, layout.data_start(), data, preparation.clear).await?;
        let root = PageIndex(0);
        let uuid = options.uuid.unwrap_or_else(Uuid::new_v4);
        let blob = lvolstore::super_blob(blob_id(root), &name, uuid);
        let Ok(pages) = blob.encode() else { unreachable!("a name and a UUID fit into one page") };
        let offset = layout.page_offset(root).unwrap_or_default();
        let roots: Vec<_> = pages.into_iter().map(|page| (offset, page)).collect();
        io.write_pages(&roots).await?;
        let mut used = Allocator::new(&layout);
        used.claim_page(root);
        let mut blobs = BitSet::new(layout.mask_bits(MaskKind::UsedBlobIds));
        blobs.insert(root.0);
        let masks = [
            (MaskKind::UsedPages, used.used_pages()),
            (MaskKind::UsedClusters, used.used_clusters()),
            (MaskKind::UsedBlobIds, &blobs),
        ];
        write_masks(&io, &layout, masks).await?;
        io.flush().await?;
        let mut super_block = SuperBlock::new(layout);
        super_block.set_super_blob(Some(blob.id));
        super_block.set_clean(true);
        io.write_page(ByteOffset(0), &super_block.encode_unfinished()).await?;
        io.flush().await?;
        io.write_page(ByteOffset(0), &super_block.encode()).await?;
        io.flush().await?;
        tracing::debug!(pool = %name, %uuid, "formatted");
        Ok(())
    }

    /// The last steps of an orderly close: everything is committed, the bitmaps are written. FLUSH.
    /// The super block says clean. FLUSH. If the medium says clean already, nothing was changed.
    pub(super) async fn close_clean(&self) -> Result<(), Error> {
        let (dirty, clean) = {
            let state = self.state.borrow();
            (state.dirty_volumes().next().is_some(), state.super_block.is_clean())
        };
        if dirty || clean {
            // Data alone is durable with the bitmaps, if those are written.
            self.commit_all().await?;
        }
        self.settle().await;
        self.fate.error().map_or(Ok(()), Err)?;
        let mut super_block = self.state.borrow().super_block.clone();
        if super_block.is_clean() {
            return Ok(());
        }
        let masks = self.masks();
        let masks = masks.each_ref().map(|(mask, bits)| (*mask, bits));
        let written = write_masks(&self.io, &self.layout, masks).await;
        written.map_err(|cause| self.poison("metadata write", cause))?;
        self.flush().await?;
        super_block.set_clean(true);
        self.write_super_block(&super_block).await?;
        self.state.borrow_mut().super_block = super_block;
        tracing::debug!("closed clean");
        Ok(())
    }

    /// Takes the pool off its device, with all of its volumes. In order:
    ///
    /// 1. I/O is refused from now on. What is in flight ends, and so does what commits left over.
    /// 2. The block with the signature is zeroed. FLUSH. A crash up to here leaves the pool, or no
    ///    pool: the device writes a block as a whole or not at all.
    /// 3. The rest of what tells the contents of a device is zeroed: nothing else shall be
    ///    recognised there. FLUSH. The device is blank.
    /// 4. The rest of the pool is discarded, as far as the device does that.
    ///
    /// On return there is no pool any more, durably.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::Poisoned`] if the medium cannot be written: whether the pool is
    /// still there is seen when it is opened again.
    pub async fn destroy(&self) -> Result<(), Error> {
        let store = self.strong();
        let guard = store.operations.lock().await;
        self.check_alive()?;
        self.flag_all(CLOSED); // 1
        self.quiesce().await;
        self.end_supply().await;
        let result = self.erase().await;
        self.end();
        drop(guard);
        result
    }

    async fn erase(&self) -> Result<(), Error> {
        self.commit_all().await?;
        self.settle().await;
        self.fate.error().map_or(Ok(()), Err)?;
        let block = u64::from(self.layout.block_size().bytes());
        let end = self.layout.size().0;
        let head = IDENTIFY_BYTES as u64;
        for (from, to) in [(0, block), (block, head.min(end))] {
            // 2 and 3
            let stretch = self.io.stretch(ByteOffset(from), ByteCount(to - from));
            self.io.zero(&[stretch]).await.map_err(|cause| self.poison("metadata write", cause))?;
            self.flush().await?;
        }
        let rest = ByteCount(end.saturating_sub(head));
        clear(&self.io, ByteOffset(head), rest, ClearMethod::Unmap).await?; // 4
        tracing::debug!("destroyed");
        Ok(())
    }

    /// Rewrites the super block; it is durable on return. Nobody else may be about to.
    pub(super) async fn write_super_block(&self, super_block: &SuperBlock) -> Result<(), Error> {
        let pages = [(ByteOffset(0), super_block.encode())];
        let _turn = self.in_place.turn().await;
        // A torn mark proves itself: the checksum is right for the other one.
        if self.state.borrow().super_block.differs_by_mark(super_block) {
            return self.write_in_place(&pages).await;
        }
        self.rewrite(&pages).await
    }

    fn masks(&self) -> [(MaskKind, BitSet); 3] {
        let state = self.state.borrow();
        let mut clusters = state.allocator.used_clusters().clone();
        for unused in state.lost.iter().copied().chain(state.supply.clusters()) {
            clusters.remove(unused.0);
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

async fn write_masks<D: BlockDevice>(
    io: &MetadataIo<D>,
    layout: &Layout,
    masks: [(MaskKind, &BitSet); 3],
) -> Result<(), BlockError> {
    for (mask, bits) in masks {
        let Some(region) = layout.mask_region(mask) else { continue };
        let (offset, _) = layout.region_bytes(region);
        io.write_region(offset, &encode_mask(mask, bits)).await?;
    }
    Ok(())
}

/// Clears a stretch that no volume has; only zeroing can fail.
async fn clear<D: BlockDevice>(
    io: &MetadataIo<D>,
    start: ByteOffset,
    length: ByteCount,
    method: ClearMethod,
) -> Result<(), Error> {
    let stretch = io.stretch(start, length);
    if stretch.blocks.0 == 0 {
        return Ok(());
    }
    match method {
        ClearMethod::None => {}
        ClearMethod::WriteZeroes => io.zero(&[stretch]).await?,
        ClearMethod::Default | ClearMethod::Unmap => {
            if let Err(error) = io.discard(&[stretch]).await {
                tracing::debug!(%error, "the device did not discard what is in the pool's place");
            }
        }
    }
    Ok(())
}
