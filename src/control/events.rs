//! The stream of events: a connection that asked for it gets each event as a notification, a
//! JSON-RPC request without an `id`, between the answers to whatever else it asks.
//!
//! Each stream has a thread, which looks every [`LOOK_UP`] whether its connection is still there.

use std::time::Duration;

use serde_json::{Value, json};

use super::types::Event;

/// Streams at a time, over all connections.
pub const WATCHERS_LIMIT: usize = 8;
/// The method of the notifications.
pub const NOTIFICATION: &str = "lvolfs_event";
/// The method that begins a stream.
pub(super) const WATCH: &str = "lvolfs_watch_events";
/// How long a stream sleeps before it looks whether somebody listens.
pub(super) const LOOK_UP: Duration = Duration::from_millis(250);
/// Events written in a row.
pub(super) const BATCH: usize = 64;

/// Where events come from.
pub trait EventSource {
    /// At most `most` of the events from number `first` on that are remembered, oldest first.
    fn from(&self, first: u64, most: usize) -> Vec<Event>;

    /// Waits until there is an event of number `first` or higher, at most `limit`.
    fn wait(&self, first: u64, limit: Duration);
}

/// An event as it is sent.
pub(super) fn notification(event: &Event) -> Value {
    json!({ "jsonrpc": "2.0", "method": NOTIFICATION, "params": event })
}
