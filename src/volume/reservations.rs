//! Commands on the reservations of a volume, at the pool's owner.
//!
//! A command runs in this order, and for each volume one after the other:
//! 1. The state after it is computed, or it is refused and nothing happens.
//! 2. The state after it is made durable, if that changes what is kept. A failure ends the command;
//!    the state is what it was.
//! 3. It is published at the gate.
//! 4. Every reactor has answered a message sent after that: whatever it lets through from now on is
//!    judged by the new state. For Preempt and Abort, the operations of the preempted hosts that
//!    had been let through before have ended.
//! 5. Others are told.
//! 6. The command is answered.
//!
//! A crash before the end of 2 leaves the old state or, from the rename of the file or the commit
//! of the pool on, the new one; later, the new one. Never another, and never none.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use futures_channel::oneshot;

use super::directory::Entry;
use super::error::Error;
use super::hosts::{DRAIN_LIMIT, Keeping};
use super::owner::PoolOwner;
use crate::reservation::persistence::{decode, encode};
use crate::reservation::{
    Command, Event, Notification, Outcome, Persistence, Register, Reservations, StateFile,
};
use crate::spec::reservation::HostId;
use crate::spec::status::StatusCode;
use crate::units::BlobId;

/// The extended attribute in which a volume keeps its reservations, with `ptpl = "volume"`. The
/// value is what the file would be.
pub const ATTRIBUTE: &[u8] = b"lvolfs.reservations";
/// Where a damaged value is set aside.
const DAMAGED: &[u8] = b"lvolfs.reservations.damaged";

/// What keeps the reservations of one volume.
pub(super) enum Keeper {
    /// Nothing does.
    Nowhere,
    /// A file; `None` while a store is under way, and for ever if it never came back.
    File(Option<StateFile>),
    /// The volume, which holds these bytes.
    Volume(Option<Vec<u8>>),
}

/// What an administrator's reset did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reset {
    /// Why the volume was fenced, if it was.
    pub fence: Option<String>,
    /// Where the damaged file is now.
    pub set_aside: Option<PathBuf>,
    /// How many registrations were removed.
    pub removed: usize,
}

impl PoolOwner {
    /// What is kept for a volume. What cannot be believed gives a fenced state, which is logged.
    pub(super) async fn load_reservations(
        &self,
        blob: BlobId,
        uuid: uuid::Uuid,
        name: &str,
    ) -> Result<(Keeper, Reservations), Error> {
        let loaded = match self.directory.hosts().keeping() {
            Keeping::Nowhere => (Keeper::Nowhere, Reservations::default()),
            Keeping::Folder(folder) => {
                let path = folder.join(format!("{uuid}.json"));
                let load = move || StateFile::load(&path, uuid);
                let loaded = self.directory.hosts().blocking(load).await;
                let (file, state) = loaded.ok_or_else(no_thread)?;
                (Keeper::File(Some(file)), state)
            }
            Keeping::Volume => {
                let stored = self.xattr(blob, ATTRIBUTE)?;
                let state = match decode(stored.as_deref().unwrap_or_default(), uuid) {
                    Ok(state) => state,
                    Err(damage) => Reservations::fenced(damage),
                };
                (Keeper::Volume(stored), state)
            }
        };
        if let Some(damage) = loaded.1.fence() {
            let kept = match &loaded.0 {
                Keeper::File(Some(file)) => file.path().display().to_string(),
                _ => format!("attribute {}", String::from_utf8_lossy(ATTRIBUTE)),
            };
            tracing::error!(
                volume = name,
                %uuid,
                kept,
                %damage,
                "reservations cannot be believed: nobody may read or write the volume until \
                 `lvolfs reservation reset` says so"
            );
        }
        Ok(loaded)
    }

    /// Does a reservation command of `host`. On return it is in force on every reactor, and
    /// durable if the volume's reservations persist. A caller that stops waiting does not stop it.
    ///
    /// # Errors
    /// [`Error::ReservationConflict`] and [`Error::Reservation`], and nothing changed; except
    /// with `COMMAND_INTERRUPTED`: then the new state is in force, but it is not known that no
    /// operation of the preempted hosts is under way.
    pub async fn reserve(
        self: Rc<Self>,
        entry: Arc<Entry>,
        host: HostId,
        command: Command,
    ) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        let this = Rc::clone(&self);
        self.reactor.spawn(async move {
            drop(answer.send(this.run_command(&entry, host, &command).await));
        });
        answered.await.unwrap_or(Err(Error::Store(crate::lvol::Error::Gone)))
    }

    async fn run_command(
        &self,
        entry: &Arc<Entry>,
        host: HostId,
        command: &Command,
    ) -> Result<(), Error> {
        let mut keeper = entry.keeper().lock().await;
        if entry.gate().is_closed() {
            return Err(Error::Deleted);
        }
        entry.check_not_cached()?;
        if matches!(*keeper, Keeper::Nowhere) && asks_to_persist(command) {
            let reason = "nothing here keeps reservations through a power loss";
            return Err(refused(StatusCode::INVALID_FIELD, reason));
        }
        let outcome = entry.gate().reservations().apply(host, command); // 1
        let Outcome { after, notifications, abort } = outcome.map_err(of_status)?;
        self.keep(entry, &mut keeper, &after).await?; // 2
        entry.gate().publish(after); // 3
        let hosts = self.directory.hosts();
        let settled = hosts.settle(&self.reactor, entry.key(), &abort).await; // 4
        hosts.tell(entry, &notifications); // 5
        self.tell_local(entry, &notifications);
        if settled {
            return Ok(());
        }
        let reason = format!(
            "the reservation is taken, but operations of the preempted hosts did not end within \
             {} s",
            DRAIN_LIMIT.as_secs()
        );
        Err(refused(StatusCode::COMMAND_INTERRUPTED, reason))
    }

    /// Makes `after` what is kept.
    async fn keep(
        &self,
        entry: &Arc<Entry>,
        keeper: &mut Keeper,
        after: &Reservations,
    ) -> Result<(), Error> {
        let stored = match keeper {
            Keeper::Nowhere => return Ok(()),
            Keeper::File(file) => {
                let Some(mut taken) = file.take() else { return Err(no_thread()) };
                if taken.holds(after) {
                    *file = Some(taken);
                    return Ok(());
                }
                let state = after.clone();
                let store = move || {
                    let stored = taken.store(&state);
                    (taken, stored)
                };
                let done = self.directory.hosts().blocking(store).await;
                let (back, stored) = done.ok_or_else(no_thread)?;
                *file = Some(back);
                stored.map_err(|error| error.to_string())
            }
            Keeper::Volume(durable) => {
                // Behind a fence nothing is kept: the damage is the administrator's to judge.
                let bytes = encode(after, entry.uuid());
                let nothing_new = durable.is_none() && !is_persistent(after);
                if after.fence().is_some() || nothing_new || durable.as_deref() == Some(&*bytes) {
                    return Ok(());
                }
                let stored = self.store().set_xattr(entry.blob(), ATTRIBUTE, &bytes).await;
                if stored.is_ok() {
                    *durable = Some(bytes);
                }
                stored.map_err(|error| format!("cannot store reservations: {error}"))
            }
        };
        stored.map_err(|reason| {
            tracing::error!(volume = entry.name(), reason, "a reservation command fails");
            refused(StatusCode::INTERNAL_ERROR, reason)
        })
    }

    /// What happens to the local mount's registration is told where its user looks.
    fn tell_local(&self, entry: &Arc<Entry>, notifications: &[Notification]) {
        let local = self.directory.hosts().local();
        for told in notifications.iter().filter(|told| told.host == local) {
            let what = match told.event {
                Event::RegistrationPreempted => "the registration of the local mount was preempted",
                Event::ReservationReleased => "the reservation was released",
                Event::ReservationPreempted => "all registrations were cleared",
            };
            tracing::warn!(volume = entry.name(), "{what}");
        }
    }

    /// An administrator's override. Lifts a fence, after what was damaged has been set aside; with
    /// `force`, also removes every registration and the reservation, without any key. On return it
    /// is durable and in force on every reactor.
    ///
    /// # Errors
    /// [`Error::Reservation`], and nothing changed.
    pub async fn reset_reservations(
        self: Rc<Self>,
        entry: Arc<Entry>,
        force: bool,
    ) -> Result<Reset, Error> {
        let (answer, answered) = oneshot::channel();
        let this = Rc::clone(&self);
        self.reactor.spawn(async move {
            drop(answer.send(this.run_reset(&entry, force).await));
        });
        answered.await.unwrap_or(Err(Error::Store(crate::lvol::Error::Gone)))
    }

    async fn run_reset(&self, entry: &Arc<Entry>, force: bool) -> Result<Reset, Error> {
        let mut keeper = entry.keeper().lock().await;
        let before = entry.gate().reservations();
        if before.fence().is_none() && !force {
            let reason = "the volume is not fenced; force removes all registrations as well";
            return Err(refused(StatusCode::INVALID_FIELD, reason));
        }
        let mut reset = Reset::default();
        if let Some(damage) = before.fence() {
            reset.fence = Some(damage.to_string());
            reset.set_aside = self.set_aside(entry, &mut keeper).await?;
        }
        let after = if force { before.cleared() } else { before.without_fence() };
        self.keep(entry, &mut keeper, &after).await?;
        reset.removed = before.registrants().len() - after.registrants().len();
        entry.gate().publish(after);
        let hosts = self.directory.hosts();
        hosts.settle(&self.reactor, entry.key(), &[]).await;
        if force {
            let event = Event::ReservationPreempted;
            let all = before.registrants().iter();
            let told: Vec<_> = all.map(|one| Notification { host: one.host, event }).collect();
            hosts.tell(entry, &told);
        }
        tracing::warn!(
            volume = entry.name(),
            fence = reset.fence,
            set_aside = ?reset.set_aside,
            removed = reset.removed,
            "reservations were reset by an administrator"
        );
        Ok(reset)
    }

    async fn set_aside(
        &self,
        entry: &Arc<Entry>,
        keeper: &mut Keeper,
    ) -> Result<Option<PathBuf>, Error> {
        match keeper {
            Keeper::Nowhere => Ok(None),
            Keeper::File(file) => {
                let Some(mut taken) = file.take() else { return Err(no_thread()) };
                let move_it = move || {
                    let moved = taken.set_aside();
                    (taken, moved)
                };
                let done = self.directory.hosts().blocking(move_it).await;
                let (back, moved) = done.ok_or_else(no_thread)?;
                *file = Some(back);
                moved.map_err(|error| refused(StatusCode::INTERNAL_ERROR, error.to_string()))
            }
            Keeper::Volume(durable) => {
                // The copy first: a crash in between leaves the volume fenced.
                if let Some(bytes) = durable.as_deref() {
                    self.store().set_xattr(entry.blob(), DAMAGED, bytes).await?;
                    self.store().remove_xattr(entry.blob(), ATTRIBUTE).await?;
                }
                *durable = None;
                Ok(None)
            }
        }
    }

    /// Forgets what is kept outside a volume that was deleted. What cannot be removed is found
    /// by a volume with the same UUID only.
    pub(super) async fn forget_reservations(&self, entry: &Entry) {
        let mut keeper = entry.keeper().lock().await;
        let Keeper::File(file) = &mut *keeper else { return };
        let Some(mut taken) = file.take() else { return };
        if let Some(Err(error)) = self.directory.hosts().blocking(move || taken.remove()).await {
            tracing::warn!(volume = %entry.uuid(), %error, "the file of its reservations stays");
        }
    }
}

fn is_persistent(state: &Reservations) -> bool {
    state.persistence() == Persistence::ThroughPowerLoss
}

fn asks_to_persist(command: &Command) -> bool {
    let persist = Persistence::ThroughPowerLoss;
    match command {
        Command::Register { action: Register::Unregister, .. } => false,
        Command::Register { persistence, .. } => *persistence == Some(persist),
        Command::SetPersistence(asked) => *asked == persist,
        Command::Acquire { .. } | Command::Release { .. } => false,
    }
}

fn of_status(status: StatusCode) -> Error {
    match status {
        StatusCode::RESERVATION_CONFLICT => Error::ReservationConflict,
        StatusCode::INVALID_FIELD => refused(status, "it makes no sense in the present state"),
        _ => refused(status, "there are too many registrants"),
    }
}

fn refused(status: StatusCode, reason: impl Into<String>) -> Error {
    Error::Reservation { status, reason: reason.into() }
}

fn no_thread() -> Error {
    refused(StatusCode::INTERNAL_ERROR, "the thread that stores reservations is gone")
}
