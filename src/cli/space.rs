//! `lvolfs volume space` and `lvolfs events`: pools that fill.

use std::io::{self, Write as _};

use clap::Args;

use super::ask::Daemon;
use super::table::size;
use crate::config::VolumeName;
use crate::control::types::{Event, OnFull, SetSpace, WatchEvents};
use crate::units::ByteCount;

/// What a volume wants of its pool's space.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct VolumeSpace {
    /// The volume
    #[arg(value_name = "POOL/VOLUME", value_parser = VolumeName::parse)]
    volume: VolumeName,
    /// So much of it can always be written, whatever other volumes do; 0B for nothing
    #[arg(long, value_name = "SIZE", value_parser = ByteCount::parse, required_unless_present = "on_full")]
    reserve: Option<ByteCount>,
    /// What writes to new places do when the pool is full
    #[arg(long)]
    on_full: Option<OnFull>,
}

/// Events of a daemon.
#[derive(Debug, Args)]
pub struct WatchArguments {
    /// Begin with those that the daemon remembers, instead of the next one
    #[arg(long)]
    all: bool,
    /// End after so many events instead of running until the daemon ends
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,
}

impl Daemon {
    pub(super) fn set_space(&mut self, wanted: VolumeSpace, json: bool) -> anyhow::Result<String> {
        let VolumeSpace { volume, reserve, on_full } = wanted;
        let name = volume.to_string();
        let reserve = reserve.map(ByteCount::get);
        self.client().lvolfs_volume_set_space(&SetSpace { name, reserve, on_full })?;
        Ok(super::ask::done(json, &format!("{volume}: done")))
    }

    /// Prints events as they happen, a line each, until the daemon ends.
    pub(super) fn watch(mut self, watch: &WatchArguments, json: bool) -> anyhow::Result<()> {
        self.client().lvolfs_watch_events(&WatchEvents { from: watch.all.then_some(0) })?;
        let mut left = watch.count;
        let mut output = io::stdout().lock();
        while left != Some(0) {
            let Some(event) = self.client().next_event()? else { return Ok(()) };
            let line = if json { serde_json::to_string(&event)? } else { told(&event) };
            match writeln!(output, "{line}").and_then(|()| output.flush()) {
                // Whoever reads has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
            left = left.map(|left| left - 1);
        }
        Ok(())
    }
}

fn told(event: &Event) -> String {
    let Event { id, kind, pool, volume, free_bytes, .. } = event;
    let mut text = format!("{id} {kind} {pool}");
    if let Some(volume) = volume {
        text += &format!("/{volume}");
    }
    if let Some(free) = free_bytes {
        text += &format!(" ({} free)", size(*free));
    }
    text
}
