//! Events, asked for and streamed.

use std::time::Duration;

use super::{Answer, DaemonService};
use crate::control::types::{
    Event, GetNotifications, NoParameters, Notification, WatchEvents, Watching,
};
use crate::control::{EventMethods, EventSource};
use crate::volume;
use crate::volume::events::{EVENTS_LIMIT, EventKind};

fn told(event: &volume::events::Event) -> Event {
    Event {
        id: event.id,
        time: event.time.as_secs_f64(),
        kind: event.kind.name().to_owned(),
        pool: event.pool.clone(),
        volume: event.volume.clone(),
        free_bytes: event.free.map(|free| free.get()),
    }
}

impl EventSource for DaemonService {
    fn from(&self, first: u64, most: usize) -> Vec<Event> {
        self.directory.events().from(first, most).iter().map(told).collect()
    }

    fn wait(&self, first: u64, limit: Duration) {
        self.directory.events().wait(first, limit);
    }
}

impl EventMethods for DaemonService {
    fn notify_get_types(&self, _: NoParameters) -> Answer<Vec<String>> {
        Ok(EventKind::ALL.map(|kind| kind.name().to_owned()).into())
    }

    fn notify_get_notifications(&self, wanted: GetNotifications) -> Answer<Vec<Notification>> {
        let most = wanted.max.and_then(|max| usize::try_from(max).ok()).unwrap_or(EVENTS_LIMIT);
        let events = self.directory.events().from(wanted.id.unwrap_or(0), most);
        let notification = |event: volume::events::Event| {
            let ctx = match event.volume {
                Some(volume) => format!("{}/{volume}", event.pool),
                None => event.pool,
            };
            Notification { kind: event.kind.name().to_owned(), ctx, id: event.id }
        };
        Ok(events.into_iter().map(notification).collect())
    }

    fn lvolfs_watch_events(&self, watch: WatchEvents) -> Answer<Watching> {
        Ok(Watching { from: watch.from.unwrap_or_else(|| self.directory.events().next()) })
    }
}
