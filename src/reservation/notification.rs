//! What hosts are told: reservation notifications, their masks, and the queue of log pages of one
//! controller (Base, "Reservation Notification" log page and "Reservation Notification Mask").
//!
//! Invariant: a log holds at most [`NotificationLog::CAPACITY`] pages, whatever happens to the
//! namespaces and however slowly its host reads.

use std::collections::{BTreeMap, VecDeque};

use crate::spec::log::{AsyncEvent, AsyncEventType, LogPage};
use crate::spec::reservation::{HostId, NotificationPage, ReservationEvent};
use crate::units::NamespaceId;

/// Something that happened to a registrant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A preempt removed its registration.
    RegistrationPreempted,
    /// A reservation that let registrants in was released, or was replaced by another.
    ReservationReleased,
    /// All registrations were cleared, its own too.
    ReservationPreempted,
}

impl Event {
    /// Type of the log page.
    #[must_use]
    pub const fn wire(self) -> ReservationEvent {
        match self {
            Self::RegistrationPreempted => ReservationEvent::REGISTRATION_PREEMPTED,
            Self::ReservationReleased => ReservationEvent::RESERVATION_RELEASED,
            Self::ReservationPreempted => ReservationEvent::RESERVATION_PREEMPTED,
        }
    }
}

/// An event, for all controllers of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notification {
    /// Whom to tell.
    pub host: HostId,
    /// What.
    pub event: Event,
}

/// Which events a controller does not want of a namespace: feature 82h. Bits 1, 2 and 3 suppress
/// the events with those numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NotificationMask(u32);

impl NotificationMask {
    const KNOWN: u32 = 0b1110;

    /// The mask of dword 11 of Set Features; reserved bits are dropped.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & Self::KNOWN)
    }

    /// Dword 0 of the completion of Get Features.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether `event` is suppressed.
    #[must_use]
    pub const fn suppresses(self, event: Event) -> bool {
        self.0 >> event.wire().0 & 1 != 0
    }
}

/// The notifications that a controller has for its host, and its masks.
#[derive(Clone, Debug, Default)]
pub struct NotificationLog {
    pages: VecDeque<Page>,
    /// The number of the last notification, lost or kept; never 0 after the first.
    count: u64,
    masks: BTreeMap<NamespaceId, NotificationMask>,
}

#[derive(Clone, Copy, Debug)]
struct Page {
    count: u64,
    event: Event,
    namespace: NamespaceId,
}

impl NotificationLog {
    /// The most pages that wait to be read. Further notifications are lost, which the host sees
    /// by a gap in the count.
    pub const CAPACITY: usize = 256;

    /// What the completion of an Asynchronous Event Request says of a log that has pages.
    pub const ASYNC_EVENT: AsyncEvent = AsyncEvent {
        event_type: AsyncEventType::IO_COMMAND_SET,
        information: 0,
        log_page: LogPage::RESERVATION_NOTIFICATION,
    };

    /// The mask for `namespace`; nothing is suppressed until a host says so.
    #[must_use]
    pub fn mask(&self, namespace: NamespaceId) -> NotificationMask {
        self.masks.get(&namespace).copied().unwrap_or_default()
    }

    /// Sets the mask for `namespace`, which must be one that exists: each takes a little memory.
    pub fn set_mask(&mut self, namespace: NamespaceId, mask: NotificationMask) {
        if mask == NotificationMask::default() {
            self.masks.remove(&namespace);
        } else {
            self.masks.insert(namespace, mask);
        }
    }

    /// Forgets mask and pages of a namespace that goes away.
    pub fn remove_namespace(&mut self, namespace: NamespaceId) {
        self.masks.remove(&namespace);
        self.pages.retain(|page| page.namespace != namespace);
    }

    /// Adds a notification. Whether there is something new to read: `false` if it is masked, or
    /// lost because the log is full.
    pub fn push(&mut self, namespace: NamespaceId, event: Event) -> bool {
        if self.mask(namespace).suppresses(event) {
            return false;
        }
        // Zero marks an empty page, so the count rolls over to 1.
        self.count = self.count.checked_add(1).unwrap_or(1);
        let count = self.count;
        if self.pages.len() < Self::CAPACITY {
            self.pages.push_back(Page { count, event, namespace });
            return true;
        }
        // The last page takes the count of each that is lost after it.
        if let Some(last) = self.pages.back_mut() {
            last.count = count;
        }
        false
    }

    /// How many pages wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.pages.len()
    }

    /// Takes the oldest page, or an empty one if none waits. Each Get Log Page that reads a whole
    /// page takes one.
    pub fn next_page(&mut self) -> NotificationPage {
        let page = self.first_page();
        self.pages.pop_front();
        page
    }

    /// The oldest page, which stays; or an empty one if none waits.
    #[must_use]
    pub fn first_page(&self) -> NotificationPage {
        let page = self.pages.front();
        let mut wire = NotificationPage {
            count: 0.into(),
            event: ReservationEvent::EMPTY.0,
            available: u8::try_from(self.pages.len().saturating_sub(1)).unwrap_or(u8::MAX),
            reserved10: [0; 2],
            namespace: 0.into(),
            reserved16: [0; 48],
        };
        if let Some(page) = page {
            wire.count = page.count.into();
            wire.event = page.event.wire().0;
            wire.namespace = page.namespace.get().into();
        }
        wire
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    const NSID: NamespaceId = NamespaceId(5);
    const EVENTS: [Event; 3] =
        [Event::RegistrationPreempted, Event::ReservationReleased, Event::ReservationPreempted];

    #[test]
    fn pages_come_in_order_and_then_empty() {
        let mut log = NotificationLog::default();
        assert_eq!(log.next_page().as_bytes(), [0; 64]);
        for event in EVENTS {
            assert!(log.push(NSID, event));
        }
        for number in 1..=3_u8 {
            let page = log.next_page();
            let mut expected = [0; 64];
            (expected[0], expected[8], expected[9], expected[12]) = (number, number, 3 - number, 5);
            assert_eq!(page.as_bytes(), expected);
        }
        assert_eq!(log.next_page().as_bytes(), [0; 64]);
    }

    #[test]
    fn each_mask_suppresses_its_event_of_its_namespace() {
        for bits in 0..=0xf_u32 {
            let mut log = NotificationLog::default();
            log.set_mask(NSID, NotificationMask::from_bits(bits | 0xffff_0000));
            assert_eq!(log.mask(NSID).bits(), bits & 0b1110);
            for event in EVENTS {
                assert_eq!(log.push(NSID, event), bits >> event.wire().0 & 1 == 0, "{bits:#b}");
                assert!(log.push(NamespaceId(6), event));
            }
            log.remove_namespace(NamespaceId(6));
            assert_eq!(log.waiting() as u32, 3 - (bits >> 1).count_ones());
            log.set_mask(NSID, NotificationMask::from_bits(0));
            assert!(log.push(NSID, Event::ReservationReleased));
        }
    }

    #[test]
    fn a_full_log_counts_what_it_loses() {
        let mut log = NotificationLog::default();
        let capacity = NotificationLog::CAPACITY;
        for number in 0..capacity + 44 {
            assert_eq!(log.push(NSID, Event::ReservationReleased), number < capacity);
        }
        assert_eq!(log.waiting(), capacity);
        assert_eq!(log.next_page().available, 255);
        let mut last = 1;
        for left in (0..capacity as u64 - 1).rev() {
            let page = log.next_page();
            assert_eq!(u64::from(page.available), left);
            last = page.count.get();
        }
        assert_eq!(last, capacity as u64 + 44);
        assert!(log.push(NSID, Event::ReservationReleased));
        assert_eq!(log.next_page().count.get(), last + 1);
        log.count = u64::MAX;
        assert!(log.push(NSID, Event::ReservationReleased));
        assert_eq!(log.next_page().count.get(), 1);
    }

    #[test]
    fn the_event_names_the_page() {
        assert_eq!(NotificationLog::ASYNC_EVENT.to_dword(), 0x0080_0006);
    }
}
