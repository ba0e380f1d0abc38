//! What happened to pools and volumes, for whoever wants to be told: a short memory of numbered
//! events, which any thread may read or wait on.
//!
//! Numbers rise by one and begin anew with the process. A reader that comes back within
//! [`EVENTS_LIMIT`] events misses none; one that stays away longer sees the gap by the numbers.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::attributes::wall_clock;
use crate::units::ByteCount;

/// Events that are remembered.
pub const EVENTS_LIMIT: usize = 1024;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A volume is there that was not.
    VolumeCreated,
    /// A volume is gone.
    VolumeDeleted,
    /// A volume has another size.
    VolumeResized,
    /// A volume has another name.
    VolumeRenamed,
    /// A pool was made.
    PoolCreated,
    /// A pool was destroyed.
    PoolDeleted,
    /// A pool has another name.
    PoolRenamed,
    /// A pool has grown with its device.
    PoolGrown,
    /// A pool has less free space than its low-water mark.
    PoolLow,
    /// A write found no space in a pool.
    PoolFull,
    /// A pool has enough space again.
    PoolSpaceOk,
}

impl EventKind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::VolumeCreated,
        Self::VolumeDeleted,
        Self::VolumeResized,
        Self::VolumeRenamed,
        Self::PoolCreated,
        Self::PoolDeleted,
        Self::PoolRenamed,
        Self::PoolGrown,
        Self::PoolLow,
        Self::PoolFull,
        Self::PoolSpaceOk,
    ];

    /// Its name: SPDK's where SPDK has such an event.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::VolumeCreated => "bdev_register",
            Self::VolumeDeleted => "bdev_unregister",
            Self::VolumeResized => "bdev_resize",
            Self::VolumeRenamed => "lvol_rename",
            Self::PoolCreated => "lvstore_create",
            Self::PoolDeleted => "lvstore_delete",
            Self::PoolRenamed => "lvstore_rename",
            Self::PoolGrown => "lvstore_grow",
            Self::PoolLow => "lvstore_low_space",
            Self::PoolFull => "lvstore_full",
            Self::PoolSpaceOk => "lvstore_space_ok",
        }
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number.
    pub id: u64,
    /// When it happened, since the epoch.
    pub time: Duration,
    /// What happened.
    pub kind: EventKind,
    /// To which pool.
    pub pool: String,
    /// To which volume of it, if to one.
    pub volume: Option<String>,
    /// Free bytes of the pool, if the event is about space.
    pub free: Option<ByteCount>,
}

/// The memory of events. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct EventLog(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    kept: Mutex<Kept>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Kept {
    next: u64,
    events: VecDeque<Event>,
}

impl EventLog {
    /// Adds an event.
    pub fn add(&self, kind: EventKind, pool: &str, volume: Option<&str>, free: Option<ByteCount>) {
        let mut kept = self.kept();
        let id = kept.next;
        kept.next += 1;
        if kept.events.len() == EVENTS_LIMIT {
            kept.events.pop_front();
        }
        let (pool, volume) = (pool.to_owned(), volume.map(str::to_owned));
        kept.events.push_back(Event { id, time: wall_clock(), kind, pool, volume, free });
        self.0.more.notify_all();
    }

    /// The number that the next event will have.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.kept().next
    }

    /// At most `most` of the events from number `first` on that are remembered, oldest first.
    #[must_use]
    pub fn from(&self, first: u64, most: usize) -> Vec<Event> {
        let kept = self.kept();
        let wanted = kept.events.iter().filter(|event| event.id >= first);
        wanted.take(most).cloned().collect()
    }

    /// Waits until there is an event of number `first` or higher, at most `limit`.
    pub fn wait(&self, first: u64, limit: Duration) {
        let waiting = self.0.more.wait_timeout_while(self.kept(), limit, |kept| kept.next <= first);
        drop(waiting.unwrap_or_else(PoisonError::into_inner));
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_remembered_and_numbered() {
        let log = EventLog::default();
        assert_eq!((log.next(), log.from(0, 10)), (0, Vec::new()));
        for index in 0..EVENTS_LIMIT + 5 {
            log.add(EventKind::VolumeCreated, "p", Some(&index.to_string()), None);
        }
        let first = log.from(0, 1);
        assert_eq!((first[0].id, first[0].volume.as_deref()), (5, Some("5")));
        let last = log.next() - 1;
        assert_eq!(log.from(last, 10).len(), 1);
        assert_eq!(log.from(0, usize::MAX).len(), EVENTS_LIMIT);
    }

    #[test]
    fn a_reader_is_woken_by_the_next_event_and_not_by_old_ones() {
        let log = EventLog::default();
        log.add(EventKind::PoolLow, "p", None, Some(ByteCount(1)));
        log.wait(0, Duration::from_secs(60));
        let (writer, first) = (log.clone(), log.next());
        let reader = std::thread::spawn(move || {
            log.wait(first, Duration::from_secs(60));
            log.from(first, 1)
        });
        writer.add(EventKind::PoolFull, "p", None, Some(ByteCount(0)));
        assert_eq!(reader.join().unwrap()[0].kind, EventKind::PoolFull);
    }

    #[test]
    fn names_are_distinct() {
        let names: std::collections::BTreeSet<_> = EventKind::ALL.map(EventKind::name).into();
        assert_eq!(names.len(), EventKind::ALL.len());
    }
}
