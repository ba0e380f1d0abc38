//! Scrubs of pools.

use std::rc::Rc;

use super::{Answer, DaemonService, failed};
use crate::control::types::{PoolSelector, ScrubStatus, SelectLvstore, StartScrub};
use crate::control::{RpcError, ScrubMethods};
use crate::lvol::{self, ScrubReport, ScrubState};
use crate::units::ByteCount;
use crate::volume::{self, Store};

impl DaemonService {
    fn ask_store<R: Send + 'static>(
        &self,
        pool: &PoolSelector,
        ask: impl FnOnce(&Store) -> R + Send + 'static,
    ) -> Answer<R> {
        let call = |owner: Rc<volume::PoolOwner>| async move { ask(owner.store()) };
        self.pool(pool)?.owner().call_blocking(call).map_err(RpcError::internal)
    }
}

impl ScrubMethods for DaemonService {
    fn lvolfs_pool_scrub_start(&self, parameters: StartScrub) -> Answer<bool> {
        let rate = parameters.bytes_per_second.map_or(lvol::DEFAULT_RATE, ByteCount);
        if rate < lvol::LOWEST_RATE {
            let lowest = lvol::LOWEST_RATE.get();
            let reason = format!("bytes_per_second must be at least {lowest}");
            return Err(RpcError::invalid_parameters(reason));
        }
        let started = self.ask_store(&parameters.pool()?, move |store| store.start_scrub(rate))?;
        started.map_err(|error| failed(&error.into()))?;
        Ok(true)
    }

    fn lvolfs_pool_scrub_stop(&self, parameters: SelectLvstore) -> Answer<bool> {
        self.ask_store(&parameters.exactly_one()?, |store| store.stop_scrub())?;
        Ok(true)
    }

    fn lvolfs_pool_scrub_status(&self, parameters: SelectLvstore) -> Answer<ScrubStatus> {
        let report = self.ask_store(&parameters.exactly_one()?, |store| store.scrub_report())?;
        let ScrubReport { state, rate, total, read, pages, clusters, elapsed, faults, findings } =
            report;
        let state = match state {
            ScrubState::Never => "never",
            ScrubState::Running => "running",
            ScrubState::Done => "done",
            ScrubState::Stopped => "stopped",
        };
        Ok(ScrubStatus {
            state: state.to_owned(),
            bytes_per_second: rate.get(),
            total_bytes: total.get(),
            read_bytes: read.get(),
            pages,
            clusters,
            elapsed_seconds: elapsed.as_secs_f64(),
            faults,
            findings,
        })
    }
}
