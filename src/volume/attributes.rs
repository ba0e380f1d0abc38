//! Owner, mode and times of a volume, as files have them.
//!
//! They are kept in one extended attribute of the volume, as text that other programs which list
//! attributes can show: `mode=0600 uid=0 gid=0 atime=1.5 mtime=1.5 ctime=1.5`. Unknown words are
//! ignored and missing ones have defaults, so that versions can differ.

use std::time::{Duration, SystemTime};

/// The extended attribute that holds them.
pub const ATTRIBUTE: &[u8] = b"lvolfs.posix";

/// Owner, mode and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access, since the epoch. Only set on request: reading does not change it.
    pub atime: Duration,
    /// Last change of the data, since the epoch.
    pub mtime: Duration,
    /// Last change of the attributes, since the epoch.
    pub ctime: Duration,
}

/// The bits of a mode that are kept: permissions. There is no set-user-id on a volume.
const PERMISSIONS: u32 = 0o777;

/// The time on the wall, since the epoch.
#[must_use]
pub fn wall_clock() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

impl Attributes {
    /// Those of something that appears now.
    #[must_use]
    pub fn new(mode: u32, uid: u32, gid: u32) -> Self {
        let now = wall_clock();
        Self { mode: Self::permissions(mode), uid, gid, atime: now, mtime: now, ctime: now }
    }

    /// The bits of a mode that are kept.
    #[must_use]
    pub const fn permissions(mode: u32) -> u32 {
        mode & PERMISSIONS
    }

    /// As text.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { mode, uid, gid, .. } = self;
        let time = |time: Duration| format!("{}.{:09}", time.as_secs(), time.subsec_nanos());
        let (atime, mtime, ctime) = (time(self.atime), time(self.mtime), time(self.ctime));
        format!("mode={mode:04o} uid={uid} gid={gid} atime={atime} mtime={mtime} ctime={ctime}")
            .into_bytes()
    }

    /// Reads text; what it does not say, or says wrongly, is as in `defaults`.
    #[must_use]
    pub fn decode(text: &[u8], defaults: &Self) -> Self {
        let mut found = defaults.clone();
        let text = String::from_utf8_lossy(text);
        for (key, value) in text.split_ascii_whitespace().filter_map(|word| word.split_once('=')) {
            match key {
                "mode" => {
                    if let Ok(mode) = u32::from_str_radix(value, 8) {
                        found.mode = Self::permissions(mode);
                    }
                }
                "uid" => found.uid = value.parse().unwrap_or(found.uid),
                "gid" => found.gid = value.parse().unwrap_or(found.gid),
                "atime" => found.atime = decode_time(value).unwrap_or(found.atime),
                "mtime" => found.mtime = decode_time(value).unwrap_or(found.mtime),
                "ctime" => found.ctime = decode_time(value).unwrap_or(found.ctime),
                _ => {}
            }
        }
        found
    }
}

fn decode_time(text: &str) -> Option<Duration> {
    let (seconds, nanoseconds) = text.split_once('.')?;
    let nanoseconds: u32 = nanoseconds.parse().ok()?;
    (nanoseconds < 1_000_000_000).then_some(Duration::new(seconds.parse().ok()?, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_back() {
        let defaults = Attributes::new(0o600, 1, 2);
        let attributes = Attributes {
            mode: 0o751,
            uid: u32::MAX,
            gid: 0,
            atime: Duration::new(0, 1),
            mtime: Duration::new(1_700_000_000, 999_999_999),
            ctime: Duration::new(5, 50_000_000),
        };
        assert_eq!(Attributes::decode(&attributes.encode(), &defaults), attributes);
    }

    #[test]
    fn nonsense_is_ignored() {
        let defaults = Attributes::new(0o600, 1, 2);
        for text in
            ["", "mode", "mode=9 uid=-1 gid=x atime=1 mtime=1.9999999999 other=1", "\u{0}=="]
        {
            assert_eq!(Attributes::decode(text.as_bytes(), &defaults), defaults, "{text:?}");
        }
        assert_eq!(Attributes::decode(b"mode=4755", &defaults).mode, 0o755, "no set-user-id");
    }
}
