//! `lvolfs volume snapshot`, `clone`, `inflate`, `decouple`, `set-parent` and `read-only`.

use clap::{Args, Subcommand};
use serde_json::json;

use super::ask::{Daemon, done, name_in_pool};
use super::pretty;
use crate::config::VolumeName;
use crate::control::types::{CloneLvol, SelectLvol, SetParent, SnapshotLvol};

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

/// What to do with a volume and its relatives.
#[derive(Debug, Subcommand)]
pub enum RelativeVerb {
    /// Make a read-only snapshot of a volume, which becomes its clone
    Snapshot(VolumeAndName),
    /// Make a writable clone of a snapshot or of a read-only volume
    Clone(VolumeAndName),
    /// Allocate all of a volume, copied from its parents or zeroed, and cut it off from them
    Inflate(OneVolume),
    /// Copy what a volume shows of its parent; its grandparent is its parent then
    Decouple(OneVolume),
    /// Make a thin volume show a snapshot of the same size where it has nothing of its own
    SetParent(VolumeAndName),
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
            RelativeVerb::Clone(VolumeAndName { volume, name }) => {
                let clone_name = name_in_pool(&volume, &name)?;
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
            RelativeVerb::SetParent(VolumeAndName { volume, name }) => {
                let parent = format!("{}/{}", volume.pool(), name_in_pool(&volume, &name)?);
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
