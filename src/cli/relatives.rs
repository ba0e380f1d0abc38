//! `lvolfs volume snapshot`, `clone`, `inflate`, `decouple`, `set-parent` and `read-only`.

use clap::{Args, Subcommand};
use serde_json::json;

use super::ask::{Daemon, done, name_in_pool};
use super::pretty;
use crate::config::VolumeName;
use crate::control::types::{CloneBdev, CloneLvol, SelectLvol, SetParent, SnapshotLvol};

/// One volume.
#[derive(Debug, Args)]
pub struct OneVolume {
    /// The volume
    #[arg(value_name = "POOL/VOLUME", value_parser = VolumeName::parse)]
    volume: VolumeName,
}

/// A volume, and the name of another one in its pool.
#[derive(Debug, Args)]
pub struct VolumeAndName {
    /// The volume
    #[arg(value_name = "POOL/VOLUME", value_parser = VolumeName::parse)]
    volume: VolumeName,
    /// The other one's name, with or without the pool
    #[arg(value_name = "NAME")]
    name: String,
}

/// What a clone is made of.
#[derive(Debug, Args)]
pub struct CloneVolume {
    /// The snapshot or read-only volume; with --from-device, the clone
    #[arg(value_name = "POOL/VOLUME", value_parser = VolumeName::parse)]
    volume: VolumeName,
    /// The clone's name, with or without the pool
    #[arg(value_name = "NAME", required_unless_present = "from_device")]
    name: Option<String>,
    /// Show this device of the daemon, or this snapshot or read-only volume of another pool, where the
    /// clone has nothing of its own; by name or UUID
    #[arg(long, value_name = "DEVICE|POOL/VOLUME", conflicts_with = "name")]
    from_device: Option<String>,
}

/// A volume and what becomes its parent.
#[derive(Debug, Args)]
pub struct VolumeAndParent {
    /// The volume
    #[arg(value_name = "POOL/VOLUME", value_parser = VolumeName::parse)]
    volume: VolumeName,
    /// The snapshot's name, with or without the pool
    #[arg(value_name = "SNAPSHOT", required_unless_present = "device")]
    name: Option<String>,
    /// A device of the daemon instead, or a snapshot or read-only volume of another pool; by name or
    /// UUID
    #[arg(long, value_name = "DEVICE|POOL/VOLUME", conflicts_with = "name")]
    device: Option<String>,
}

/// What to do with a volume and its relatives.
#[derive(Debug, Subcommand)]
pub enum RelativeVerb {
    /// Make a read-only snapshot of a volume, which becomes its clone
    Snapshot(VolumeAndName),
    /// Make a writable clone of a snapshot, of a read-only volume, or of a device or volume outside of
    /// the pool
    Clone(CloneVolume),
    /// Allocate all of a volume, copied from its parents or zeroed, and cut it off from them
    Inflate(OneVolume),
    /// Copy what a volume shows of its parent; its grandparent is its parent then
    Decouple(OneVolume),
    /// Make a thin volume show a snapshot of the same size, or a device or volume outside of the pool,
    /// where it has nothing of its own
    SetParent(VolumeAndParent),
    /// Make a volume read-only, for good
    ReadOnly(OneVolume),
}

impl Daemon {
    pub(super) fn relative(&mut self, verb: RelativeVerb, json: bool) -> anyhow::Result<String> {
        let made = |uuid: uuid::Uuid, text: String| {
            if json { pretty(&json!({ "uuid": uuid })) } else { format!("{text}, {uuid}\n") }
        };
        match verb {
            RelativeVerb::Snapshot(VolumeAndName { volume, name }) => {
                let snapshot_name = name_in_pool(&volume, &name)?;
                let text = format!("{}/{snapshot_name} is a snapshot of {volume}", volume.pool());
                let lvol_name = volume.to_string();
                let snapshot = SnapshotLvol { lvol_name, snapshot_name };
                Ok(made(self.client().bdev_lvol_snapshot(&snapshot)?, text))
            }
            RelativeVerb::Clone(CloneVolume { volume, from_device: Some(bdev), .. }) => {
                let text = format!("{volume} is a clone of {bdev}");
                let (lvs_name, clone_name) = (volume.pool().to_owned(), volume.volume().to_owned());
                let clone = CloneBdev { bdev, lvs_name, clone_name };
                Ok(made(self.client().bdev_lvol_clone_bdev(&clone)?, text))
            }
            RelativeVerb::Clone(CloneVolume { volume, name, .. }) => {
                let clone_name = name_in_pool(&volume, &name.unwrap_or_default())?;
                let text = format!("{}/{clone_name} is a clone of {volume}", volume.pool());
                let snapshot_name = volume.to_string();
                let clone = CloneLvol { snapshot_name, clone_name };
                Ok(made(self.client().bdev_lvol_clone(&clone)?, text))
            }
            RelativeVerb::Inflate(OneVolume { volume }) => {
                let name = volume.to_string();
                self.client().bdev_lvol_inflate(&SelectLvol { name })?;
                Ok(done(json, &format!("{volume} has all of its own now")))
            }
            RelativeVerb::Decouple(OneVolume { volume }) => {
                let name = volume.to_string();
                self.client().bdev_lvol_decouple_parent(&SelectLvol { name })?;
                Ok(done(json, &format!("{volume} has left its parent")))
            }
            RelativeVerb::SetParent(VolumeAndParent { volume, device: Some(device), .. }) => {
                let text = format!("{volume} is a clone of {device} now");
                let set = SetParent { lvol_name: volume.to_string(), parent_name: device };
                self.client().bdev_lvol_set_parent_bdev(&set)?;
                Ok(done(json, &text))
            }
            RelativeVerb::SetParent(VolumeAndParent { volume, name, .. }) => {
                let name = name_in_pool(&volume, &name.unwrap_or_default())?;
                let parent = format!("{}/{name}", volume.pool());
                let text = format!("{volume} is a clone of {parent} now");
                let lvol_name = volume.to_string();
                let set = SetParent { lvol_name, parent_name: parent };
                self.client().bdev_lvol_set_parent(&set)?;
                Ok(done(json, &text))
            }
            RelativeVerb::ReadOnly(OneVolume { volume }) => {
                let name = volume.to_string();
                self.client().bdev_lvol_set_read_only(&SelectLvol { name })?;
                Ok(done(json, &format!("{volume} is read-only")))
            }
        }
    }
}
