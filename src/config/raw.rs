//! The raw form: what serde reads. Unknown keys and wrong types end here; whether a value makes
//! sense is for `check`. Each value remembers where in the file it stood.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use toml::Spanned;

use super::{Cache, LogFormat, LogLevel, REACTORS_LIMIT, Transport};
use crate::units::ByteCount;

/// A key that may be absent, with its place.
pub(super) type Key<T> = Option<Spanned<T>>;

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) mount: Option<Spanned<RawMount>>,
    pub(super) control: RawControl,
    pub(super) device: Vec<Spanned<RawDevice>>,
    pub(super) pool: Vec<Spanned<RawPool>>,
    pub(super) volume: Vec<Spanned<RawVolume>>,
    pub(super) target: Option<Spanned<RawTarget>>,
    pub(super) reservations: RawReservations,
    pub(super) reactor: RawReactor,
    pub(super) log: RawLog,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawMount {
    pub(super) path: Key<String>,
    pub(super) allow_other: Option<bool>,
    pub(super) owner: Option<u32>,
    pub(super) group: Option<u32>,
    pub(super) mode: Key<u32>,
    pub(super) transport: Transport,
    pub(super) cache: Cache,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawControl {
    pub(super) socket: Key<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawDevice {
    pub(super) name: Key<String>,
    pub(super) driver: Key<RawDriver>,
    pub(super) path: Key<String>,
    pub(super) size: Key<Size>,
    pub(super) block_size: Key<u32>,
    pub(super) create: Key<bool>,
    pub(super) pci: Key<String>,
    pub(super) namespace: Key<u32>,
    pub(super) uuid: Key<String>,
    pub(super) io_timeout: Key<Interval>,
    pub(super) unsafe_no_iommu: Key<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RawDriver {
    Nvme,
    NvmeEmulated,
    File,
    Memory,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawPool {
    pub(super) name: Key<String>,
    pub(super) device: Key<String>,
    pub(super) cluster_size: Key<Size>,
    pub(super) create: Option<bool>,
    pub(super) commit_interval: Key<Interval>,
    pub(super) low_water: Key<u32>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawVolume {
    pub(super) name: Key<String>,
    pub(super) size: Key<Size>,
    pub(super) thin: Option<bool>,
    pub(super) reserve: Key<Size>,
    pub(super) on_full: Option<RawOnFull>,
    pub(super) cache: Option<Cache>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawOnFull {
    Error,
    Wait,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawReservations {
    pub(super) ptpl: Option<RawPtpl>,
    pub(super) path: Key<String>,
    pub(super) host_id: Key<String>,
    pub(super) host_nqn: Key<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawPtpl {
    File,
    Volume,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTarget {
    pub(super) listen: Vec<Spanned<String>>,
    pub(super) discovery: Vec<Spanned<String>>,
    pub(super) referrals: Vec<Spanned<String>>,
    pub(super) state_dir: Key<String>,
    pub(super) subsystem: Vec<Spanned<RawSubsystem>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawSubsystem {
    pub(super) nqn: Key<String>,
    pub(super) namespaces: Vec<Spanned<RawNamespace>>,
    pub(super) hosts: Vec<Spanned<String>>,
    pub(super) allow_any_host: bool,
    pub(super) listen: Option<Vec<Spanned<String>>>,
    pub(super) serial: Key<String>,
    pub(super) model: Key<String>,
    pub(super) max_namespaces: Key<u32>,
    pub(super) ana: bool,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawNamespace {
    pub(super) volume: Key<String>,
    pub(super) nsid: Key<u32>,
    pub(super) ana_group: Key<u32>,
    pub(super) hosts: Option<Vec<Spanned<String>>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawReactor {
    pub(super) cores: Key<RawCores>,
    pub(super) wait: Option<RawWait>,
    pub(super) dma_memory: Key<Size>,
    pub(super) huge_pages: Option<bool>,
}

#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawWait {
    Adaptive,
    Busy,
    Sleep,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawLog {
    pub(super) level: LogLevel,
    pub(super) format: LogFormat,
}

/// A size: `"256MiB"`, or a bare integer of bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size(pub(super) ByteCount);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"256MiB\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                ByteCount::parse(text).map(Size).map_err(E::custom)
            }

            fn visit_i64<E: Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes)
                    .map(|bytes| Size(ByteCount(bytes)))
                    .map_err(|_| E::custom("a size is not negative"))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

/// A length of time: a whole number followed by `ms`, `s` or `min`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interval(pub(super) Duration);

impl Interval {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(end);
        let milliseconds = match unit.trim_start() {
            "ms" => 1,
            "s" => 1000,
            "min" => 60_000,
            _ => return None,
        };
        let number: u64 = number.parse().ok()?;
        Some(Self(Duration::from_millis(number.checked_mul(milliseconds)?)))
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IntervalVisitor;
        impl Visitor<'_> for IntervalVisitor {
            type Value = Interval;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number followed by ms, s or min, such as \"5s\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Interval, E> {
                Interval::parse(text).ok_or_else(|| {
                    E::custom("not a length of time; write a whole number followed by ms, s or min, such as \"5s\"")
                })
            }
        }
        deserializer.deserialize_str(IntervalVisitor)
    }
}

/// A number of reactors, the CPUs they are to run on, or a word for them.
#[derive(Clone, Debug)]
pub(super) enum RawCores {
    Word(String),
    Count(i64),
    Cpus(Vec<i64>),
}

impl<'de> Deserialize<'de> for RawCores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CoresVisitor;
        impl<'de> Visitor<'de> for CoresVisitor {
            type Value = RawCores;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"all\", a number of reactors, or a list of CPUs such as [2, 3]")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<RawCores, E> {
                Ok(RawCores::Word(word.to_owned()))
            }

            fn visit_i64<E: Error>(self, count: i64) -> Result<RawCores, E> {
                Ok(RawCores::Count(count))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawCores, A::Error> {
                let mut cpus = Vec::new();
                while let Some(cpu) = list.next_element()? {
                    if cpus.len() == REACTORS_LIMIT {
                        return Err(A::Error::custom(format_args!(
                            "at most {REACTORS_LIMIT} CPUs can be named"
                        )));
                    }
                    cpus.push(cpu);
                }
                Ok(RawCores::Cpus(cpus))
            }
        }
        deserializer.deserialize_any(CoresVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        let read = |text| Interval::parse(text).map(|interval| interval.0);
        assert_eq!(read("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(read("5s"), Some(Duration::from_secs(5)));
        assert_eq!(read("2 min"), Some(Duration::from_secs(120)));
        for bad in [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "5 hours",
            "99999999999999999999s",
            "400000000000000000min",
        ] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
