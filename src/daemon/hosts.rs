//! The local mount as a host, and where reservations are kept.

use std::path::Path;

use anyhow::Context;
use uuid::Uuid;

use crate::config::{Cache, Config, Ptpl};
use crate::reservation::StateFile;
use crate::spec::reservation::HostId;
use crate::volume::{Caching, Directory, Hosts, Keeping};

/// Where Linux keeps a machine's identity.
const MACHINE_ID: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
/// A machine's identity must not be shown to others as it is (machine-id(5)), so that it is mixed
/// with this.
const APPLICATION: Uuid = Uuid::from_u128(0x6c76_6f6c_6673_4f68_8f73_7420_6964_656e);

/// A directory without volumes, for the hosts that the configuration tells.
///
/// # Errors
/// If the folder for reservations cannot be made.
pub(super) fn directory(config: &Config) -> anyhow::Result<Directory> {
    let reservations = &config.reservations;
    let keeping = match &reservations.ptpl {
        Ptpl::Volume => Keeping::Volume,
        Ptpl::Folder(folder) => {
            StateFile::create_folder(folder).context("set reservations.path to another folder")?;
            Keeping::Folder(folder.clone())
        }
    };
    let local = reservations.host_id.unwrap_or_else(host_of_machine);
    tracing::debug!(%local, ?keeping, "the mount is a host");
    let directory = Directory::new(Hosts::new(local, keeping));
    directory.set_caching(caching(config.mount.cache));
    Ok(directory)
}

/// The configuration's word for how the mount uses a volume.
pub(super) fn caching(cache: Cache) -> Caching {
    match cache {
        Cache::Direct => Caching::Direct,
        Cache::Writeback => Caching::WriteBack,
    }
}

/// The name of the local mount as a host.
pub(super) fn nqn(config: &Config, local: HostId) -> String {
    let named = config.reservations.host_nqn.clone();
    named.unwrap_or_else(|| format!("nqn.2014-08.org.nvmexpress:uuid:{local}"))
}

/// Always the same on one machine.
fn host_of_machine() -> HostId {
    let read = |path: &&str| std::fs::read_to_string(Path::new(path)).ok();
    let texts = MACHINE_ID.iter().filter_map(read);
    let host = texts.filter_map(|text| of_machine_id(&text)).next();
    host.unwrap_or_else(|| {
        tracing::warn!(
            "this machine has no /etc/machine-id, so the mount is another host after each start; \
             set reservations.host_id"
        );
        let random = HostId::new(Uuid::new_v4().into_bytes());
        random.unwrap_or_else(|| unreachable!("a random UUID has a version and so is not zero"))
    })
}

fn of_machine_id(text: &str) -> Option<HostId> {
    let id = Uuid::parse_str(text.trim()).ok().filter(|id| !id.is_nil())?;
    HostId::new(Uuid::new_v5(&APPLICATION, id.as_bytes()).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_one_host_and_does_not_show_its_identity() {
        let id = "0123456789abcdef0123456789abcdef";
        let host = of_machine_id(&format!("{id}\n")).unwrap();
        assert_eq!(of_machine_id(id), Some(host));
        assert_ne!(host.uuid().simple().to_string(), id);
        assert_ne!(of_machine_id("0123456789abcdef0123456789abcdee"), Some(host));
        for none in ["", "uninitialized\n", "00000000000000000000000000000000", "0123"] {
            assert_eq!(of_machine_id(none), None, "{none:?}");
        }
    }
}
