//! Comparing and writing as one step.

use super::{Error, Volume};
use crate::block::Durability;
use crate::hw::dma::DmaBuffer;
use crate::reactor::Share;
use crate::units::ByteOffset;
use crate::volume::Access;

impl Volume {
    /// Writes `data` if the volume has `expected` there, and tells whether it had. No other write
    /// to the range comes between, by whatever door and on whatever reactor. Offset and lengths
    /// are whole blocks, and the two lengths are equal; durability as for a write.
    ///
    /// # Errors
    /// As for a write; [`Error::PastEnd`] if the range ends behind the end.
    ///
    /// # Panics
    /// If the lengths differ: the caller's mistake.
    pub async fn compare_and_write(
        &self,
        offset: ByteOffset,
        expected: &[u8],
        data: DmaBuffer,
        durability: Durability,
    ) -> Result<bool, Error> {
        assert_eq!(expected.len(), data.len(), "two lengths of one range");
        let exchange = self.exchange(offset, expected, data, durability);
        let result = self.admitted(Access::ReadAndWrite, exchange).await;
        self.count(&result, |counters| {
            counters.reads += 1;
            counters.bytes_read += expected.len() as u64;
            if result.as_ref().is_ok_and(|equal| *equal) {
                counters.writes += 1;
                counters.bytes_written += expected.len() as u64;
                counters.durable_writes += u64::from(durability == Durability::ForceUnitAccess);
            }
        });
        result
    }

    async fn exchange(
        &self,
        offset: ByteOffset,
        expected: &[u8],
        data: DmaBuffer,
        durability: Durability,
    ) -> Result<bool, Error> {
        let length = data.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end.get() > self.size().get()) {
            return Err(Error::PastEnd { offset, size: self.size() });
        }
        let _held = self.entry.locks().exclusive(offset.get(), length).await;
        let buffer = self.allocate(data.len(), Share::All).await?;
        let found = self.io.read(offset, buffer).await?;
        if *found != *expected {
            return Ok(false);
        }
        drop(self.io.write(offset, data, durability).await?);
        self.entry.note_write();
        Ok(true)
    }
}
