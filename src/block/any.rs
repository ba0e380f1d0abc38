//! Static dispatch over the drivers of a configuration.

use std::rc::Rc;

use super::file::{FileChannel, FileDevice};
use super::memory::{MemoryChannel, MemoryDevice};
use super::nvme::{NvmeChannel, NvmeDevice};
use super::{BlockDevice, BlockError, Counters, Durability, Geometry, Transfer};
use crate::hw::dma::{DmaArena, DmaBuffer};
use crate::reactor::Reactor;
use crate::units::{BlockCount, Lba};

/// A device of the configuration: the shared part.
#[derive(Clone)]
pub enum AnyDevice {
    /// In memory.
    Memory(MemoryDevice),
    /// A file or a block device of the host.
    File(FileDevice),
    /// A namespace of an NVMe controller.
    Nvme(NvmeDevice),
}

/// One reactor's way to a device of the configuration.
#[derive(Clone)]
pub enum AnyChannel {
    /// In memory.
    Memory(MemoryChannel),
    /// A file or a block device of the host.
    File(FileChannel),
    /// A namespace of an NVMe controller.
    Nvme(NvmeChannel),
}

impl AnyDevice {
    /// What the device is.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        match self {
            Self::Memory(device) => device.geometry(),
            Self::File(device) => device.geometry(),
            Self::Nvme(device) => device.geometry(),
        }
    }

    /// Why it cannot be used any more, if so. Drivers that find out only with the next I/O do not
    /// tell.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        match self {
            Self::Memory(_) | Self::File(_) => None,
            Self::Nvme(device) => device.failure(),
        }
    }

    /// A channel for `reactor`.
    ///
    /// # Errors
    /// [`BlockError::NoQueue`] if the device has no queue pair left.
    pub fn channel(
        &self,
        reactor: &Rc<Reactor>,
        arena: &DmaArena,
    ) -> Result<AnyChannel, BlockError> {
        Ok(match self {
            Self::Memory(device) => AnyChannel::Memory(device.channel()),
            Self::File(device) => AnyChannel::File(device.channel(reactor, arena)),
            Self::Nvme(device) => AnyChannel::Nvme(device.channel(reactor, arena)?),
        })
    }
}

macro_rules! each {
    ($self:expr, $channel:ident => $call:expr) => {
        match $self {
            AnyChannel::Memory($channel) => $call,
            AnyChannel::File($channel) => $call,
            AnyChannel::Nvme($channel) => $call,
        }
    };
}

impl BlockDevice for AnyChannel {
    fn geometry(&self) -> &Geometry {
        each!(self, channel => channel.geometry())
    }

    async fn read(&self, start: Lba, buffer: DmaBuffer) -> Transfer {
        each!(self, channel => channel.read(start, buffer).await)
    }

    async fn write(&self, start: Lba, buffer: DmaBuffer, durability: Durability) -> Transfer {
        each!(self, channel => channel.write(start, buffer, durability).await)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        each!(self, channel => channel.flush().await)
    }

    async fn discard(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        each!(self, channel => channel.discard(start, blocks).await)
    }

    async fn write_zeroes(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        each!(self, channel => channel.write_zeroes(start, blocks).await)
    }

    fn counters(&self) -> Counters {
        each!(self, channel => channel.counters())
    }
}
