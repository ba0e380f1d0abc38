//! What a queue pair is made of, and what its commands are for.

use std::sync::Arc;
use std::time::Duration;

use crate::hw::dma::DmaArena;
use crate::nvme::identity::ControllerIdentity;
use crate::nvme::link::Link;
use crate::nvme::namespace::Namespace;
use crate::nvme::rings::Doorbells;
use crate::units::{BlockSize, ByteCount, NamespaceId, QueueId};

/// What an I/O queue pair is to be like.
#[derive(Clone, Debug)]
pub struct QueueSettings {
    /// The namespace that its commands are for.
    pub namespace: NamespaceId,
    /// Entries of each ring: one more than commands that can be in flight. Cut to what the
    /// controller allows, and to between 2 and 1024.
    pub entries: u16,
    /// The interrupt vector that completions signal, or `None` to be polled only.
    pub vector: Option<u16>,
    /// How long a command may take before it is aborted, and again before a reset.
    pub timeout: Duration,
    /// The same for flushes.
    pub flush_timeout: Duration,
}

impl QueueSettings {
    /// For `namespace`: 256 entries, polled, 30 s (60 s for a flush).
    #[must_use]
    pub fn new(namespace: NamespaceId) -> Self {
        Self {
            namespace,
            entries: 256,
            vector: None,
            timeout: Duration::from_secs(30),
            flush_timeout: Duration::from_secs(60),
        }
    }
}

/// What a queue pair is made of.
pub(crate) struct Parts<'a> {
    pub(crate) id: QueueId,
    pub(crate) entries: u16,
    pub(crate) arena: &'a DmaArena,
    pub(crate) doorbells: Doorbells,
    pub(crate) link: Arc<Link>,
    pub(crate) target: Target,
}

/// What the commands of a queue pair are for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(super) namespace: NamespaceId,
    pub(super) block_size: BlockSize,
    pub(super) max_transfer: ByteCount,
    pub(super) write_zeroes_blocks: u32,
    pub(super) discard_ranges: usize,
    /// Whether long transfers are described by an SGL.
    pub(super) sgl: bool,
    pub(super) timeout_ms: u32,
    pub(super) flush_timeout_ms: u32,
}

impl Target {
    /// I/O commands on `namespace` of `controller`.
    pub(crate) fn io(
        namespace: &Namespace,
        controller: &ControllerIdentity,
        settings: &QueueSettings,
    ) -> Self {
        Self {
            namespace: namespace.id,
            block_size: namespace.block_size,
            max_transfer: namespace.max_transfer,
            write_zeroes_blocks: namespace.max_write_zeroes_blocks,
            discard_ranges: namespace.max_discard_ranges,
            sgl: controller.sgl,
            timeout_ms: milliseconds(settings.timeout),
            flush_timeout_ms: milliseconds(settings.flush_timeout),
        }
    }

    /// Admin commands, each of at most a page of data.
    pub(crate) fn admin() -> Self {
        Self {
            namespace: NamespaceId(0),
            block_size: BlockSize::B4096,
            max_transfer: ByteCount(4096),
            write_zeroes_blocks: 0,
            discard_ranges: 0,
            sgl: false,
            timeout_ms: 0,
            flush_timeout_ms: 0,
        }
    }
}

/// A timeout as slots keep it. Zero would mean for ever, so the shortest is a millisecond.
pub(crate) fn milliseconds(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1)
}
