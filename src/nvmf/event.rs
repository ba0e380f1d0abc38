//! Asynchronous events of one controller (Base 5.1.2): which the host wants, which wait to be
//! told, and which were told and not yet read.

use std::collections::{BTreeSet, VecDeque};

use crate::spec::log::{
    AsyncEvent, AsyncEventType, LogPage, NAMESPACE_LIST_ENTRIES, NOTIFY_FIRMWARE_ACTIVATION,
    NOTIFY_NAMESPACE_ATTRIBUTES, NOTIFY_SMART,
};

/// Asynchronous Event Configuration: ANA changes.
pub(super) const NOTIFY_ANA: u32 = 1 << 11;
/// Asynchronous Event Configuration: discovery log changes.
pub(super) const NOTIFY_DISCOVERY: u32 = 1 << 31;
/// All that can be asked for.
pub(super) const NOTIFY_ALL: u32 = NOTIFY_SMART
    | NOTIFY_NAMESPACE_ATTRIBUTES
    | NOTIFY_FIRMWARE_ACTIVATION
    | NOTIFY_ANA
    | NOTIFY_DISCOVERY;
/// Of a notice: an ANA group changed.
pub(super) const ANA_CHANGED: u8 = 3;
/// Of a notice: the discovery log changed.
pub(super) const DISCOVERY_CHANGED: u8 = 0xf0;

/// The state.
#[derive(Default)]
pub(super) struct Events {
    /// What the host wants to be told (AEC).
    pub(super) configuration: u32,
    waiting: VecDeque<AsyncEvent>,
    /// Told: not told again before the page is read.
    told: Vec<AsyncEvent>,
    changed: BTreeSet<u32>,
    overflowed: bool,
}

impl Events {
    /// True if the event now waits to be told.
    pub(super) fn raise(&mut self, event: AsyncEvent) -> bool {
        let wanted = match (event.event_type, event.information) {
            (AsyncEventType::NOTICE, AsyncEvent::NAMESPACE_ATTRIBUTES_CHANGED) => {
                NOTIFY_NAMESPACE_ATTRIBUTES
            }
            (AsyncEventType::NOTICE, ANA_CHANGED) => NOTIFY_ANA,
            (AsyncEventType::NOTICE, DISCOVERY_CHANGED) => NOTIFY_DISCOVERY,
            (AsyncEventType::SMART, warning) => super::health::warnings(warning),
            _ => u32::MAX,
        };
        let wanted = wanted == u32::MAX || self.configuration & wanted != 0;
        if !wanted || self.waiting.contains(&event) || self.told.contains(&event) {
            return false;
        }
        // There are few kinds of events, and each waits once.
        self.waiting.push_back(event);
        true
    }

    /// The next one to tell.
    pub(super) fn next(&mut self) -> Option<AsyncEvent> {
        let event = self.waiting.pop_front()?;
        self.told.push(event);
        Some(event)
    }

    /// The host has read a page.
    pub(super) fn read(&mut self, page: LogPage) {
        self.told.retain(|event| event.log_page != page);
        self.waiting.retain(|event| event.log_page != page);
    }

    /// A namespace that the Changed Attached Namespace List is to name.
    pub(super) fn note_namespace(&mut self, namespace: u32) {
        if self.changed.len() < NAMESPACE_LIST_ENTRIES {
            self.changed.insert(namespace);
        } else if !self.changed.contains(&namespace) {
            self.overflowed = true;
        }
    }

    /// The namespaces changed since the list was read; `None` if there are too many to name.
    pub(super) fn changed(&mut self, clear: bool) -> Option<Vec<u32>> {
        let list = (!self.overflowed).then(|| self.changed.iter().copied().collect());
        if clear {
            self.changed.clear();
            self.overflowed = false;
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed() -> AsyncEvent {
        AsyncEvent {
            event_type: AsyncEventType::NOTICE,
            information: AsyncEvent::NAMESPACE_ATTRIBUTES_CHANGED,
            log_page: LogPage::CHANGED_NAMESPACES,
        }
    }

    #[test]
    fn an_event_is_told_once_until_its_page_is_read() {
        let mut events = Events::default();
        assert!(!events.raise(changed()), "nobody asked");
        events.configuration = NOTIFY_NAMESPACE_ATTRIBUTES;
        assert!(events.raise(changed()) && !events.raise(changed()));
        assert_eq!(events.next(), Some(changed()));
        assert!(!events.raise(changed()), "told and not read");
        assert_eq!(events.next(), None);
        events.read(LogPage::CHANGED_NAMESPACES);
        assert!(events.raise(changed()));
    }

    #[test]
    fn the_list_of_changes_overflows_and_starts_again() {
        let mut events = Events::default();
        for namespace in 1..=1024 {
            events.note_namespace(namespace);
        }
        events.note_namespace(7);
        assert_eq!(events.changed(false).map(|list| list.len()), Some(1024));
        events.note_namespace(2000);
        assert_eq!(events.changed(true), None);
        assert_eq!(events.changed(true), Some(vec![]));
    }
}
