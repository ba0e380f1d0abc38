//! Shallow copies of volumes to devices, and how far they are.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Answer, DaemonService, failed};
use crate::control::types::{
    CheckShallowCopy, ShallowCopy, ShallowCopyOperation, ShallowCopyState, StartShallowCopy,
};
use crate::control::{CopyMethods, RpcError};
use crate::daemon::devices::run_on;
use crate::daemon::site::Site;
use crate::volume;

/// Copies whose outcome is remembered.
const REMEMBERED: usize = 256;
/// Copies under way at a time.
const UNDER_WAY: usize = 8;

/// All copies since the daemon began, the last ones at least.
#[derive(Default)]
pub(super) struct ShallowCopies(Mutex<Copies>);

#[derive(Default)]
struct Copies {
    next: u32,
    known: BTreeMap<u32, Arc<Copy>>,
}

struct Copy {
    total: u64,
    copied: AtomicU64,
    /// How it ended.
    ended: Mutex<Option<Result<(), String>>>,
}

impl Copy {
    fn ended(&self) -> MutexGuard<'_, Option<Result<(), String>>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ShallowCopies {
    fn lock(&self) -> MutexGuard<'_, Copies> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, total: u64) -> Answer<(u32, Arc<Copy>)> {
        let mut copies = self.lock();
        let running = copies.known.values().filter(|copy| copy.ended().is_none()).count();
        if running >= UNDER_WAY {
            let reason = format!("{UNDER_WAY} copies are under way; wait for one to end");
            return Err(RpcError::errno(libc::EBUSY).because(reason));
        }
        copies.next = copies.next.wrapping_add(1);
        let id = copies.next;
        let copy = Arc::new(Copy { total, copied: AtomicU64::new(0), ended: Mutex::default() });
        copies.known.insert(id, Arc::clone(&copy));
        while copies.known.len() > REMEMBERED {
            let oldest = copies.known.iter().find(|(_, copy)| copy.ended().is_some());
            let Some(oldest) = oldest.map(|(id, _)| *id) else { break };
            copies.known.remove(&oldest);
        }
        Ok((id, copy))
    }
}

impl CopyMethods for DaemonService {
    fn bdev_lvol_start_shallow_copy(
        &self,
        wanted: StartShallowCopy,
    ) -> Answer<ShallowCopyOperation> {
        let entry = self.volume(&wanted.src_lvol_name)?;
        let target = self.pools.find_device(&wanted.dst_bdev_name);
        let missing = || RpcError::errno(libc::ENODEV).because(&wanted.dst_bdev_name);
        let (target, _) = target.ok_or_else(missing)?;
        let claimed = self.pools.claim(&target, "written by a shallow copy");
        let claimed = claimed.map_err(|by| {
            let reason = format!("device {target:?} is in use by {by}");
            RpcError::errno(libc::EPERM).because(reason)
        })?;
        // One that is exported is held already. One that is deleted meanwhile ends the copy.
        let hold = entry.hold("a shallow copy").ok();
        let (key, blob) = (entry.pool().key(), entry.blob());
        let home = entry.pool().owner().home().index();
        let home = self.sites.iter().find(|site| site.home().index() == home);
        let home = home.ok_or_else(|| RpcError::internal("the pool's reactor has ended"))?;
        let check = {
            let target = target.clone();
            move |site: Rc<Site>| async move {
                let channel = site.channel(&target).ok()?;
                let owner = site.owner_of(key)?;
                Some(owner.store().check_shallow_copy(blob, &channel))
            }
        };
        let gone = || RpcError::errno(libc::ENODEV).because(&target);
        let total = run_on(home, check).map_err(RpcError::internal)?.ok_or_else(gone)?;
        let total = total.map_err(|error| failed(&volume::Error::from(error)))?;
        let (operation_id, copy) = self.copies.add(u64::from(total.get()))?;
        tracing::info!(operation_id, volume = wanted.src_lvol_name, target, "shallow copy begins");
        let begin = move |site: &Rc<Site>| {
            let reactor = Rc::clone(&site.reactor);
            let site = Rc::clone(site);
            reactor.spawn(async move {
                let ended = match (site.channel(&target), site.owner_of(key)) {
                    (Ok(channel), Some(owner)) => {
                        let count = || {
                            copy.copied.fetch_add(1, Ordering::Relaxed);
                        };
                        owner.store().shallow_copy(blob, &channel, count).await
                    }
                    _ => Err(crate::lvol::Error::Closed),
                };
                match &ended {
                    Ok(()) => tracing::info!(operation_id, "shallow copy complete"),
                    Err(error) => tracing::error!(operation_id, %error, "shallow copy failed"),
                }
                *copy.ended() = Some(ended.map_err(|error| error.to_string()));
                drop((hold, claimed));
            });
        };
        if home.post(begin) {
            Ok(ShallowCopyOperation { operation_id })
        } else {
            Err(RpcError::internal("the pool's reactor takes no more work"))
        }
    }

    fn bdev_lvol_check_shallow_copy(&self, asked: CheckShallowCopy) -> Answer<ShallowCopy> {
        let copy = self.copies.lock().known.get(&asked.operation_id).cloned();
        let copy = copy.ok_or_else(|| {
            let reason = format!("there is no shallow copy {}", asked.operation_id);
            RpcError::errno(libc::ENOENT).because(reason)
        })?;
        let (state, error) = match &*copy.ended() {
            None => (ShallowCopyState::InProgress, None),
            Some(Ok(())) => (ShallowCopyState::Complete, None),
            Some(Err(error)) => (ShallowCopyState::Error, Some(error.clone())),
        };
        Ok(ShallowCopy {
            state,
            copied_clusters: copy.copied.load(Ordering::Relaxed),
            total_clusters: copy.total,
            error,
        })
    }
}
