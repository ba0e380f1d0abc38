//! Addresses of PCI functions.

use std::fmt;
use std::str::FromStr;

/// The address of a PCI function, as Linux writes it: `0000:01:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// The PCI domain.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device on the bus, below 32.
    pub device: u8,
    /// The function of the device, below 8.
    pub function: u8,
}

/// A text that is no PCI address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a PCI address; write it as lspci -D does, such as \"0000:01:00.0\"")]
pub struct NotPciAddress;

impl FromStr for PciAddress {
    type Err = NotPciAddress;

    fn from_str(text: &str) -> Result<Self, NotPciAddress> {
        let (front, function) = text.split_once('.').ok_or(NotPciAddress)?;
        let (domain, rest) = front.split_once(':').ok_or(NotPciAddress)?;
        let (bus, device) = rest.split_once(':').ok_or(NotPciAddress)?;
        let hexadecimal = |part: &str, digits: std::ops::RangeInclusive<usize>| {
            let valid =
                digits.contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            valid.then(|| u32::from_str_radix(part, 16).ok()).flatten().ok_or(NotPciAddress)
        };
        let byte = |value: u32, limit: u32| match u8::try_from(value) {
            Ok(byte) if value < limit => Ok(byte),
            _ => Err(NotPciAddress),
        };
        Ok(Self {
            domain: hexadecimal(domain, 4..=8)?,
            bus: byte(hexadecimal(bus, 2..=2)?, 256)?,
            device: byte(hexadecimal(device, 2..=2)?, 32)?,
            function: byte(hexadecimal(function, 1..=1)?, 8)?,
        })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_as_linux_does() {
        for text in ["0000:01:00.0", "10000:e1:1f.7", "0000:ff:00.0"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        let bad = [
            "",
            "01:00.0",
            "0000:01:20.0",
            "0000:01:00.8",
            "0000:1:0.0",
            "0000:01:00",
            "+000:01:00.0",
        ];
        for text in bad {
            assert_eq!(text.parse::<PciAddress>(), Err(NotPciAddress), "{text:?}");
        }
    }
}
