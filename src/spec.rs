//! NVMe's vocabulary: registers, commands, completions, status, identify structures, log pages.
//!
//! Shared by the driver, the emulated controller and the NVMe-oF target, so that the two ends of
//! a queue can never disagree on where a field is. Names, bit positions and byte offsets are those
//! of the NVM Express Base and NVM Command Set specifications; sizes and offsets of every
//! structure are asserted at compile time.
//!
//! Invariant: pure data. Nothing here does I/O or allocates, and every decoder accepts every bit
//! pattern, because all of them can come from the other side. What the specification counts from
//! zero ("0's based") is counted from one by the methods here; only raw fields hold the wire form.

pub mod command;
pub mod completion;
pub mod fabrics;
pub mod identify;
pub mod log;
pub mod name;
pub mod register;
pub mod reservation;
pub mod status;

/// `CNS` values, opcodes and the like: a wire value with names for those we know. Any other value
/// is legal to hold, so that parsing cannot fail.
macro_rules! open_enum {
    (
        $(#[$doc:meta])*
        $name:ident($inner:ty) {
            $($(#[$item_doc:meta])* $item:ident = $value:expr,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            $($(#[$item_doc])* pub const $item: Self = Self($value);)*
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match *self {
                    $(Self::$item => f.write_str(stringify!($item)),)*
                    Self(other) => write!(f, concat!(stringify!($name), "({:#x})"), other),
                }
            }
        }
    };
}
use open_enum;

/// Asserts at compile time that a structure has its size and its fields their byte offsets.
macro_rules! assert_layout {
    ($name:ident, $size:expr $(, $field:ident @ $offset:expr)* $(,)?) => {
        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(std::mem::offset_of!($name, $field) == $offset);)*
        };
    };
}
use assert_layout;
