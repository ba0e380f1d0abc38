//! Names of the target: NQNs, serial and model numbers (Base 4.5, 5.1.13.2.1).

use uuid::Uuid;

use super::fabrics::{DISCOVERY_NQN, MAX_NQN};

/// What an NQN made from a UUID begins with (Base 4.5).
const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";
/// Bytes of a serial number.
pub const SERIAL_BYTES: usize = 20;
/// Bytes of a model number.
pub const MODEL_BYTES: usize = 40;

/// Serial number of a subsystem that does not say otherwise; SPDK's.
pub const DEFAULT_SERIAL: &str = "00000000000000000000";
/// Model number of a subsystem that does not say otherwise.
pub const DEFAULT_MODEL: &str = "lvolfs";

/// Why a name cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It does not begin as every NQN does.
    #[error("an NQN begins with \"nqn.\", such as nqn.2026-11.io.lvolfs:demo")]
    NotAnNqn,
    /// It is too long.
    #[error("an NQN has at most {MAX_NQN} bytes, this one has {0}")]
    TooLong(usize),
    /// The year and the month are not there.
    #[error(
        "after \"nqn.\" an NQN has the year and the month in which the domain was owned: nqn.2026-11."
    )]
    NoDate,
    /// The reversed domain is not there.
    #[error(
        "after the date an NQN has a reversed domain such as io.lvolfs, of letters, digits, '-' and '.'"
    )]
    NoDomain,
    /// Nothing follows the domain.
    #[error("after the domain an NQN has a ':' and a name of its own")]
    NoName,
    /// The UUID of `nqn.2014-08.org.nvmexpress:uuid:` is none.
    #[error("after {UUID_PREFIX:?} there is a UUID")]
    NoUuid,
    /// It contains what cannot be shown.
    #[error("an NQN has no control characters and no spaces")]
    Character,
    /// The discovery subsystem is always there.
    #[error("the discovery subsystem is always there and cannot be changed")]
    Discovery,
    /// Not a serial number.
    #[error("a serial number has 1 to {SERIAL_BYTES} printable ASCII characters")]
    Serial,
    /// Not a model number.
    #[error("a model number has 1 to {MODEL_BYTES} printable ASCII characters")]
    Model,
}

/// Checks the NQN of a host or a subsystem.
///
/// # Errors
/// The rule that it breaks.
pub fn check_nqn(nqn: &str) -> Result<(), NameError> {
    if nqn.len() > MAX_NQN {
        return Err(NameError::TooLong(nqn.len()));
    }
    if nqn.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(NameError::Character);
    }
    if let Some(uuid) = nqn.strip_prefix(UUID_PREFIX) {
        // Only the form with hyphens has this length.
        let is_uuid = uuid.len() == 36 && Uuid::try_parse(uuid).is_ok();
        return if is_uuid { Ok(()) } else { Err(NameError::NoUuid) };
    }
    let rest = nqn.strip_prefix("nqn.").ok_or(NameError::NotAnNqn)?;
    if nqn == DISCOVERY_NQN {
        return Ok(());
    }
    let (date, rest) = rest.split_once('.').ok_or(NameError::NoDate)?;
    if !is_date(date) {
        return Err(NameError::NoDate);
    }
    let (domain, name) = rest.split_once(':').ok_or(NameError::NoName)?;
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if !domain.split('.').all(is_label) {
        return Err(NameError::NoDomain);
    }
    if name.is_empty() { Err(NameError::NoName) } else { Ok(()) }
}

/// `yyyy-mm`.
fn is_date(text: &str) -> bool {
    let Some((year, month)) = text.split_once('-') else { return false };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let month_fits = month.parse().is_ok_and(|month: u8| (1..=12).contains(&month));
    year.len() == 4 && digits(year) && month.len() == 2 && digits(month) && month_fits
}

/// Checks the NQN of a subsystem that is to be changed: any but the discovery subsystem's.
///
/// # Errors
/// The rule that it breaks.
pub fn check_subsystem_nqn(nqn: &str) -> Result<(), NameError> {
    check_nqn(nqn)?;
    if nqn == DISCOVERY_NQN { Err(NameError::Discovery) } else { Ok(()) }
}

/// Checks a serial number.
///
/// # Errors
/// [`NameError::Serial`].
pub fn check_serial(serial: &str) -> Result<(), NameError> {
    if is_printable(serial, SERIAL_BYTES) { Ok(()) } else { Err(NameError::Serial) }
}

/// Checks a model number.
///
/// # Errors
/// [`NameError::Model`].
pub fn check_model(model: &str) -> Result<(), NameError> {
    if is_printable(model, MODEL_BYTES) { Ok(()) } else { Err(NameError::Model) }
}

fn is_printable(text: &str, limit: usize) -> bool {
    let fits = (1..=limit).contains(&text.len());
    fits && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nqns() {
        for nqn in [
            "nqn.2026-11.io.lvolfs:demo",
            "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
            "nqn.2016-06.io.spdk:cnode1",
            "nqn.2014-08.com.example:a:b:c",
            DISCOVERY_NQN,
        ] {
            assert_eq!(check_nqn(nqn), Ok(()), "{nqn}");
        }
        let long = format!("nqn.2026-11.io.lvolfs:{}", "x".repeat(202));
        for (nqn, error) in [
            ("", NameError::NotAnNqn),
            ("iqn.2026-11.io.lvolfs:demo", NameError::NotAnNqn),
            ("nqn.demo", NameError::NoDate),
            ("nqn.2026-13.io.lvolfs:demo", NameError::NoDate),
            ("nqn.26-11.io.lvolfs:demo", NameError::NoDate),
            ("nqn.2026-11.io.lvolfs", NameError::NoName),
            ("nqn.2026-11.io.lvolfs:", NameError::NoName),
            ("nqn.2026-11.io..lvolfs:demo", NameError::NoDomain),
            ("nqn.2026-11.:demo", NameError::NoDomain),
            ("nqn.2026-11.io.lv_olfs:demo", NameError::NoDomain),
            ("nqn.2026-11.io.lvolfs:a b", NameError::Character),
            ("nqn.2014-08.org.nvmexpress:uuid:f81d4fae", NameError::NoUuid),
            (&long, NameError::TooLong(224)),
        ] {
            assert_eq!(check_nqn(nqn), Err(error), "{nqn}");
        }
        assert_eq!(check_subsystem_nqn(DISCOVERY_NQN), Err(NameError::Discovery));
    }

    #[test]
    fn serial_and_model_numbers() {
        assert_eq!(check_serial("00000000000000000000"), Ok(()));
        for bad in ["", "123456789012345678901", "a\nb", "\u{e4}"] {
            assert_eq!(check_serial(bad), Err(NameError::Serial), "{bad:?}");
        }
        assert_eq!(check_model(&"m".repeat(40)), Ok(()));
        assert_eq!(check_model(&"m".repeat(41)), Err(NameError::Model));
    }
}
