//! Names of devices, pools and volumes: what SPDK can store and what a folder can hold.

use std::fmt;

/// The longest name: SPDK stores 64 bytes, the last of which is NUL.
pub const NAME_BYTES_LIMIT: usize = 63;

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has no bytes.
    #[error("a name must not be empty")]
    Empty,
    /// It has too many bytes.
    #[error("a name has at most {NAME_BYTES_LIMIT} bytes, this one has {0}")]
    TooLong(usize),
    /// It means something else in a path.
    #[error("a name must not be \".\" or \"..\": volumes and pools are files and folders")]
    Dots,
    /// It contains what a file name cannot.
    #[error("a name must not contain '/' or NUL: volumes and pools are files and folders")]
    Character,
    /// It does not have the form `pool/volume`.
    #[error("a volume is named \"pool/volume\", with one '/'")]
    NotPoolAndVolume,
}

/// Checks the name of a device, a pool or a volume: 1 to 63 bytes, and a valid file name.
///
/// # Errors
/// The rule that it breaks.
pub fn check_name(name: &str) -> Result<(), NameError> {
    match name {
        "" => Err(NameError::Empty),
        "." | ".." => Err(NameError::Dots),
        _ if name.len() > NAME_BYTES_LIMIT => Err(NameError::TooLong(name.len())),
        _ if name.contains(['/', '\0']) => Err(NameError::Character),
        _ => Ok(()),
    }
}

/// A volume's full name, `pool/volume`; both parts are valid.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName {
    pool: String,
    volume: String,
}

impl VolumeName {
    /// Reads `pool/volume`.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let (pool, volume) = text.split_once('/').ok_or(NameError::NotPoolAndVolume)?;
        if volume.contains('/') {
            return Err(NameError::NotPoolAndVolume);
        }
        check_name(pool)?;
        check_name(volume)?;
        Ok(Self { pool: pool.to_owned(), volume: volume.to_owned() })
    }

    /// The pool's name.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// The volume's name in the pool.
    #[must_use]
    pub fn volume(&self) -> &str {
        &self.volume
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_refused() {
        let cases = [
            ("", NameError::Empty),
            (".", NameError::Dots),
            ("..", NameError::Dots),
            ("a\0b", NameError::Character),
            ("a/b", NameError::Character),
        ];
        for (name, error) in cases {
            assert_eq!(check_name(name), Err(error), "{name:?}");
        }
        assert_eq!(check_name(&"x".repeat(64)), Err(NameError::TooLong(64)));
        for name in ["a", "...", "with space", &"x".repeat(63)] {
            assert_eq!(check_name(name), Ok(()), "{name:?}");
        }
    }

    #[test]
    fn full_names() {
        let name = VolumeName::parse("pool0/demo").unwrap();
        assert_eq!((name.pool(), name.volume()), ("pool0", "demo"));
        assert_eq!(name.to_string(), "pool0/demo");
        for bad in ["demo", "a/b/c"] {
            assert_eq!(VolumeName::parse(bad), Err(NameError::NotPoolAndVolume), "{bad:?}");
        }
        for bad in ["/demo", "pool0/"] {
            assert_eq!(VolumeName::parse(bad), Err(NameError::Empty), "{bad:?}");
        }
    }
}
