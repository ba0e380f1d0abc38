//! Keys of a namespace on PCI.

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;

use super::check::Checker;
use super::pci::NotPciAddress;
use super::raw::RawDevice;
use super::{DEFAULT_IO_TIMEOUT, Driver};
use crate::units::NamespaceId;

const IO_TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);

impl Checker<'_> {
    pub(super) fn nvme(
        &mut self,
        raw: RawDevice,
        section: &Range<usize>,
        stands_on: &mut HashMap<String, usize>,
    ) -> Option<Driver> {
        let what = "the controller's address, such as \"0000:01:00.0\"";
        let pci = self.require(raw.pci, section, "device.pci", what)?;
        let address = match pci.get_ref().parse() {
            Ok(address) => address,
            Err(error) => {
                let error: NotPciAddress = error;
                self.refuse(pci.span(), "device.pci", error.to_string());
                return None;
            }
        };
        let namespace = raw.namespace.as_ref().map_or(1, |namespace| *namespace.get_ref());
        if let Some(key) = raw.namespace.filter(|_| namespace == 0 || namespace == u32::MAX) {
            let rule = "a namespace is numbered from 1 to 4294967294";
            self.refuse(key.span(), "device.namespace", rule);
            return None;
        }
        let io_timeout = raw.io_timeout.as_ref().map_or(DEFAULT_IO_TIMEOUT, |key| key.get_ref().0);
        if let Some(key) = raw.io_timeout.filter(|_| !IO_TIMEOUTS.contains(&io_timeout)) {
            self.refuse(key.span(), "device.io_timeout", "it is from \"1s\" to \"10min\"");
            return None;
        }
        let namespace = NamespaceId(namespace);
        let unsafe_no_iommu = raw.unsafe_no_iommu.is_some_and(Spanned::into_inner);
        // One process drives a controller once, whatever the namespace.
        self.unique(&pci, "device.pci", stands_on).then_some(Driver::Nvme {
            address,
            namespace,
            io_timeout,
            unsafe_no_iommu,
        })
    }
}
