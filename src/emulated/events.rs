//! Asynchronous events: what happened, and the requests that wait to be told (Base 5.1.2).

use std::collections::VecDeque;

use crate::spec::log::{AsyncEvent, AsyncEventType};
use crate::units::CommandId;

/// Asynchronous Event Requests that may wait at once.
pub(super) const REQUEST_LIMIT: usize = 4;
/// Events kept while no request waits; later ones are dropped.
const EVENT_LIMIT: usize = 16;

/// The events of one controller.
#[derive(Debug, Default)]
pub(super) struct Events {
    requests: VecDeque<CommandId>,
    happened: VecDeque<AsyncEvent>,
    /// Types that were reported and whose log page was not read since, by bit.
    masked: u8,
}

impl Events {
    /// A request waits. False if too many do.
    pub(super) fn request(&mut self, id: CommandId) -> bool {
        let room = self.requests.len() < REQUEST_LIMIT;
        if room {
            self.requests.push_back(id);
        }
        room
    }

    /// Takes a waiting request back.
    pub(super) fn abort(&mut self, id: CommandId) -> bool {
        let place = self.requests.iter().position(|&request| request == id);
        place.and_then(|place| self.requests.remove(place)).is_some()
    }

    /// Something happened.
    pub(super) fn raise(&mut self, event: AsyncEvent) {
        if self.happened.len() < EVENT_LIMIT && !self.happened.contains(&event) {
            self.happened.push_back(event);
        }
    }

    /// The log page that belongs to `kind` was read.
    pub(super) fn read(&mut self, kind: AsyncEventType) {
        self.masked &= !bit(kind);
        // What was read together with the event that was reported needs no report of its own.
        self.happened.retain(|event| event.event_type != kind);
    }

    /// Whether [`Events::next`] has something.
    pub(super) fn has_next(&self) -> bool {
        !self.requests.is_empty() && self.reportable().is_some()
    }

    fn reportable(&self) -> Option<usize> {
        self.happened.iter().position(|event| self.masked & bit(event.event_type) == 0)
    }

    /// A request to answer now, and with what.
    pub(super) fn next(&mut self) -> Option<(CommandId, AsyncEvent)> {
        if self.requests.is_empty() {
            return None;
        }
        let event = self.reportable().and_then(|place| self.happened.remove(place))?;
        self.masked |= bit(event.event_type);
        Some((self.requests.pop_front()?, event))
    }
}

fn bit(kind: AsyncEventType) -> u8 {
    1 << (kind.0 & 7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::log::LogPage;

    #[test]
    fn a_type_is_reported_once_until_its_page_is_read() {
        let error = |information| AsyncEvent {
            event_type: AsyncEventType::ERROR,
            information,
            log_page: LogPage::ERROR,
        };
        let mut events = Events::default();
        events.raise(error(0));
        assert_eq!(events.next(), None, "nobody asked");
        assert!(events.request(CommandId(1)) && events.request(CommandId(2)));
        assert_eq!(events.next(), Some((CommandId(1), error(0))));
        events.raise(error(1));
        assert_eq!(events.next(), None, "masked");
        events.read(AsyncEventType::ERROR);
        events.raise(error(1));
        assert_eq!(events.next(), Some((CommandId(2), error(1))));
        for id in 0..REQUEST_LIMIT as u16 {
            assert!(events.request(CommandId(id)));
        }
        assert!(!events.request(CommandId(9)));
        assert!(events.abort(CommandId(3)) && !events.abort(CommandId(3)));
    }
}
