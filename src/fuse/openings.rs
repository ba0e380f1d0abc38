//! Which files of a mount are open: what a file handle stands for, on every reactor.
//!
//! The handle's number tells by itself what reads and writes need to know, so that they do not
//! look here. One lock orders opening, releasing and truncating.
//!
//! **`O_TRUNC`.** The kernel opens a file with it in two requests of one thread: OPEN without the
//! flag, then SETATTR with size 0 and no file handle. `truncate(path, 0)` sends the same SETATTR
//! (Linux 6.18; nothing in it tells the two apart), `ftruncate` one with a handle. They are told
//! apart by the OPEN: a SETATTR to size 0 without a handle, by a thread that has a *fresh* opening
//! of the file, is the second half of an `O_TRUNC`. An opening is fresh if it allows writing, was
//! not used yet, and is younger than [`FRESH_FOR`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::errno::Errno;
use super::interrupts::Interrupts;
use super::request::{Caller, FileHandle, NodeId};
use crate::volume::{Entry, Opening};

/// Far longer than a thread takes between the two requests, even if it is preempted in between.
const FRESH_FOR: Duration = Duration::from_secs(10);
/// Most openings that are remembered as fresh; of more, the oldest are forgotten.
const FRESH_LIMIT: usize = 64;

/// What a handle allows beyond what the kernel checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// The volume had a size when it was opened: writes end there, as on a block device.
    Fixed,
    /// The volume was empty when it was opened for writing: writes make it larger.
    ByWriting,
}

impl FileHandle {
    const GROWS: u64 = 1;

    fn new(number: u64, growth: Growth) -> Self {
        Self(number << 1 | u64::from(growth == Growth::ByWriting))
    }

    /// Whether writes through it make the volume larger.
    #[must_use]
    pub fn grows(self) -> bool {
        self.0 & Self::GROWS != 0
    }
}

/// The openings of one mount, shared by all reactors.
#[derive(Default)]
pub struct Openings {
    interrupts: Interrupts,
    table: Mutex<Table>,
    /// How many openings are fresh: while there are none, reads and writes need not look.
    fresh: AtomicUsize,
}

#[derive(Default)]
struct Table {
    last_number: u64,
    open: HashMap<FileHandle, (Arc<Entry>, Opening)>,
    fresh: Vec<Fresh>,
}

struct Fresh {
    handle: FileHandle,
    node: NodeId,
    thread: u32,
    /// On the clock of any reactor: all show the machine's.
    opened: Duration,
}

/// Whether an opening is for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only for reading.
    Read,
    /// For writing too.
    Write,
}

impl Mode {
    /// From the flags of `open(2)`.
    #[must_use]
    pub fn of(flags: u32) -> Self {
        let access = flags & libc::O_ACCMODE.cast_unsigned();
        if access == libc::O_RDONLY.cast_unsigned() { Self::Read } else { Self::Write }
    }
}

impl Openings {
    /// The requests on them whose callers got a signal.
    #[must_use]
    pub fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    /// Opens a volume for `caller` at the time `now`.
    ///
    /// # Errors
    /// If it is being deleted.
    pub fn open(
        &self,
        entry: &Arc<Entry>,
        mode: Mode,
        growth: Growth,
        caller: Caller,
        now: Duration,
    ) -> Result<FileHandle, Errno> {
        let opening = entry.open()?;
        let mut table = self.table();
        table.last_number += 1;
        let handle = FileHandle::new(table.last_number, growth);
        table.open.insert(handle, (Arc::clone(entry), opening));
        if mode == Mode::Write {
            let node = NodeId(entry.key().number());
            if table.fresh.len() == FRESH_LIMIT {
                table.fresh.remove(0);
            }
            table.fresh.push(Fresh { handle, node, thread: caller.thread, opened: now });
            self.fresh.store(table.fresh.len(), Ordering::Relaxed);
        }
        Ok(handle)
    }

    /// Notes that an opened file is used at the time `now`, which is asked only if it matters.
    #[inline]
    pub fn used(&self, handle: FileHandle, now: impl FnOnce() -> Duration) {
        if self.fresh.load(Ordering::Relaxed) > 0 {
            let now = now();
            self.retain_fresh(&mut self.table(), |fresh| {
                fresh.handle != handle && now < fresh.opened + FRESH_FOR
            });
        }
    }

    /// Whether a SETATTR to size 0 without a handle is the second half of an `O_TRUNC` by
    /// `caller`. Each opening is that only once.
    pub fn was_opened_to_truncate(&self, node: NodeId, caller: Caller, now: Duration) -> bool {
        let mut table = self.table();
        let mut found = false;
        self.retain_fresh(&mut table, |fresh| {
            let alive = now < fresh.opened + FRESH_FOR;
            let is_it = !found && alive && (fresh.node, fresh.thread) == (node, caller.thread);
            found |= is_it;
            alive && !is_it
        });
        found
    }

    /// Closes a file. Returns the volume if it is to be deleted now.
    pub fn release(&self, handle: FileHandle) -> Option<Arc<Entry>> {
        let mut table = self.table();
        self.retain_fresh(&mut table, |fresh| fresh.handle != handle);
        let (entry, opening) = table.open.remove(&handle)?;
        entry.close(opening).then_some(entry)
    }

    fn retain_fresh(&self, table: &mut Table, keep: impl FnMut(&Fresh) -> bool) {
        table.fresh.retain(keep);
        self.fresh.store(table.fresh.len(), Ordering::Relaxed);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No statement that holds the lock can panic half-way.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
