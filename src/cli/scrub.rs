//! `lvolfs pool scrub`.

use std::time::Duration;

use anyhow::bail;
use clap::Args;

use super::ask::Daemon;
use super::pretty;
use super::table::size;
use crate::control::types::{ScrubStatus, SelectLvstore, StartScrub};
use crate::units::ByteCount;

/// How often a scrub that is waited for is asked how far it is.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A scrub of a pool.
#[derive(Debug, Args)]
pub struct ScrubPool {
    /// The pool's name
    #[arg(value_parser = super::arguments::pool_name)]
    pool: String,
    /// The most that it reads in a second, such as 100MiB
    #[arg(long, value_name = "BYTES", value_parser = ByteCount::parse, default_value = "64MiB")]
    rate: ByteCount,
    /// Wait for its end and tell what it found; fails if there is any fault
    #[arg(long)]
    wait: bool,
    /// Tell how far the current scrub is, or what the last one found
    #[arg(long, conflicts_with_all = ["stop", "wait", "rate"])]
    status: bool,
    /// Stop the current scrub
    #[arg(long, conflicts_with_all = ["wait", "rate"])]
    stop: bool,
}

impl Daemon {
    pub(super) fn scrub(&mut self, scrub: ScrubPool, json: bool) -> anyhow::Result<String> {
        let ScrubPool { pool, rate, wait, status, stop } = scrub;
        let select = SelectLvstore { lvs_name: Some(pool.clone()), uuid: None };
        if status {
            let status = self.client().lvolfs_pool_scrub_status(&select)?;
            return Ok(if json { pretty(&status) } else { told(&pool, &status) });
        }
        if stop {
            self.client().lvolfs_pool_scrub_stop(&select)?;
            return Ok(super::ask::done(json, &format!("the scrub of {pool} stops")));
        }
        self.client().lvolfs_pool_scrub_start(&StartScrub {
            lvs_name: Some(pool.clone()),
            bytes_per_second: Some(rate.get()),
            uuid: None,
        })?;
        if !wait {
            let begun = format!("the scrub of {pool} has begun; --status tells how far it is");
            return Ok(super::ask::done(json, &begun));
        }
        let status = loop {
            let status = self.client().lvolfs_pool_scrub_status(&select)?;
            if status.state != "running" {
                break status;
            }
            std::thread::sleep(LOOK_AGAIN);
        };
        if status.faults > 0 {
            bail!("{}", told(&pool, &status).trim_end());
        }
        Ok(if json { pretty(&status) } else { told(&pool, &status) })
    }
}

fn told(pool: &str, status: &ScrubStatus) -> String {
    let ScrubStatus { state, read_bytes, total_bytes, elapsed_seconds, faults, findings, .. } =
        status;
    if state == "never" {
        return format!("{pool} has not been scrubbed since it was opened\n");
    }
    let (read, total) = (size(*read_bytes), size(*total_bytes));
    let mut text = format!(
        "scrub of {pool}: {state}, {read} of {total} read in {elapsed_seconds:.1} s, {faults} faults\n"
    );
    for finding in findings {
        text += &format!("  {finding}\n");
    }
    if *faults > findings.len() as u64 {
        text += &format!("  and {} more\n", faults - findings.len() as u64);
    }
    text
}
