//! Units as types: what a number counts is part of its type, so that an LBA is never added to a
//! byte count and a cluster of a volume is never taken for a cluster of the device.
//!
//! Every type here is a plain integer in memory. Conversions that can overflow return `Option`;
//! nothing in this module panics on values that came from outside.

use std::fmt;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The value as a bare integer.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }

            /// `self + other`, or `None` on overflow.
            #[must_use]
            pub fn checked_add(self, other: $inner) -> Option<Self> {
                self.0.checked_add(other).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

unit!(
    /// An amount of bytes.
    ByteCount(u64)
);
unit!(
    /// A position in a volume or a device, in bytes from its start.
    ByteOffset(u64)
);
unit!(
    /// A logical block address: a position on a device in blocks of its block size.
    Lba(u64)
);
unit!(
    /// An amount of device blocks.
    BlockCount(u64)
);
unit!(
    /// A cluster of the device. Cluster 0 holds the super block and never holds data.
    ClusterIndex(u32)
);
unit!(
    /// An amount of clusters.
    ClusterCount(u32)
);
unit!(
    /// A cluster-sized position in a volume, from the volume's start.
    VolumeCluster(u32)
);
unit!(
    /// A slot of the metadata region, from the region's start (SPDK: "md page index").
    PageIndex(u32)
);
unit!(
    /// The 64-bit identity of a blob in an lvolstore.
    BlobId(u64)
);
unit!(
    /// An address as the device sees it in its DMA window.
    Iova(u64)
);
unit!(
    /// The number of an NVMe queue pair; 0 is the admin queue.
    QueueId(u16)
);
unit!(
    /// An NVMe command identifier.
    CommandId(u16)
);
unit!(
    /// An NVMe controller identifier (CNTLID).
    ControllerId(u16)
);
unit!(
    /// An NVMe namespace identifier; 0 is invalid.
    NamespaceId(u32)
);

impl ByteCount {
    /// One kibibyte.
    pub const KIB: Self = Self(1 << 10);
    /// One mebibyte.
    pub const MIB: Self = Self(1 << 20);
    /// One gibibyte.
    pub const GIB: Self = Self(1 << 30);

    /// Reads a size as people write it: `4096`, `"64KiB"`, `"1 MiB"`, `"2GiB"`, `"1TiB"`, or a
    /// plain `B`. Decimal prefixes (`MB`) are refused: they are a frequent mistake, and a silent
    /// reading of either kind would be wrong for somebody.
    ///
    /// # Errors
    /// A text that names what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let allowed = "a whole number followed by B, KiB, MiB, GiB or TiB, such as \"256MiB\"";
        let number: u64 =
            number.parse().map_err(|_| format!("{text:?} is not a size; write {allowed}"))?;
        let shift = match unit.trim() {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            other => return Err(format!("{other:?} is not a unit of size; write {allowed}")),
        };
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(|| format!("{text:?} is larger than 64 bits can hold"))
    }

    /// The size in the largest binary unit that divides it, as [`ByteCount::parse`] reads it.
    #[must_use]
    pub fn human(self) -> String {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return format!("{}{unit}", self.0 >> shift);
            }
        }
        format!("{}B", self.0)
    }
}

impl ByteCount {
    /// For people: in the largest unit, rounded down to a tenth.
    #[must_use]
    pub fn rounded(self) -> String {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        let Some((shift, unit)) = units.into_iter().find(|(shift, _)| self.0 >> shift > 0) else {
            return format!("{} B", self.0);
        };
        let whole = self.0 >> shift;
        let rest = self.0 & ((1 << shift) - 1);
        let tenth = (u128::from(rest) * 10) >> shift;
        match (rest, whole) {
            (0, _) | (_, 100..) => format!("{whole} {unit}"),
            _ => format!("{whole}.{tenth} {unit}"),
        }
    }
}

/// The size of a device's logical block: a power of two between 512 bytes and 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockSize(u32);

impl BlockSize {
    /// 512 bytes.
    pub const B512: Self = Self(512);
    /// 4096 bytes.
    pub const B4096: Self = Self(4096);

    /// Checks `bytes`; `None` if no device of ours can have such blocks.
    #[must_use]
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 512 && bytes <= 65536 {
            Some(Self(bytes))
        } else {
            None
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// log2 of the size.
    #[must_use]
    pub const fn shift(self) -> u32 {
        self.0.trailing_zeros()
    }

    /// Whole blocks in `bytes`, or `None` if `bytes` is not a multiple of the block size.
    #[must_use]
    pub const fn blocks_exact(self, bytes: u64) -> Option<BlockCount> {
        if bytes & (self.0 as u64 - 1) == 0 {
            Some(BlockCount(bytes >> self.shift()))
        } else {
            None
        }
    }

    /// Bytes in `count` blocks, or `None` on overflow.
    #[must_use]
    pub const fn bytes_in(self, count: BlockCount) -> Option<ByteCount> {
        match count.0.checked_mul(self.0 as u64) {
            Some(bytes) => Some(ByteCount(bytes)),
            None => None,
        }
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(ByteCount::parse("4096"), Ok(ByteCount(4096)));
        assert_eq!(ByteCount::parse("256MiB"), Ok(ByteCount(256 << 20)));
        assert_eq!(ByteCount::parse(" 1 GiB "), Ok(ByteCount::GIB));
        for bad in ["", "MiB", "-1", "1MB", "1.5GiB", "99999999999TiB", "0x10"] {
            let message = ByteCount::parse(bad).unwrap_err();
            assert!(!message.is_empty(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn human_sizes_read_back() {
        for bytes in [0, 1, 512, 4096, 3 << 20, 1 << 40, (1 << 40) + 512] {
            let text = ByteCount(bytes).human();
            assert_eq!(ByteCount::parse(&text), Ok(ByteCount(bytes)), "{text}");
        }
    }

    #[test]
    fn block_sizes() {
        assert_eq!(BlockSize::new(512), Some(BlockSize::B512));
        assert_eq!(BlockSize::new(4096).map(BlockSize::shift), Some(12));
        for bad in [0, 1, 256, 1000, 131_072] {
            assert_eq!(BlockSize::new(bad), None);
        }
        assert_eq!(BlockSize::B4096.blocks_exact(8192), Some(BlockCount(2)));
        assert_eq!(BlockSize::B4096.blocks_exact(100), None);
        assert_eq!(BlockSize::B4096.bytes_in(BlockCount(u64::MAX)), None);
    }
}
