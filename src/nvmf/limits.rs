//! Every limit of the target, by name.

use std::time::Duration;

/// Largest transfer of one command: MDTS, and MAXH2CDATA.
pub const MAX_TRANSFER: u32 = 1 << 20;
/// MDTS: the same as a power of two of 4 KiB pages.
pub const MDTS: u8 = 8;
/// Most data in a command capsule, on every queue.
pub const IN_CAPSULE: u32 = 8192;
/// Most entries of a queue: CAP.MQES + 1.
pub const QUEUE_ENTRIES: u32 = 128;
/// I/O queues of one controller.
pub const IO_QUEUES: u16 = 64;
/// Asynchronous Event Requests that wait at a time.
pub const EVENT_REQUESTS: usize = 4;
/// Abort commands at a time.
pub const ABORTS: usize = 4;
/// Connections of one reactor.
pub const CONNECTIONS: usize = 1024;
/// Controllers of the whole target.
pub const CONTROLLERS: usize = 1024;
/// What one connection receives at once; data that is expected to be longer than
/// [`DIRECT`] goes straight to its DMA buffer instead.
pub const RECEIVE: usize = 64 << 10;
/// What is received at once while data for commands is expected.
pub const RECEIVE_WITH_DATA: usize = 4 << 10;
/// From here on it is cheaper to receive data where it belongs than to copy it there.
pub const DIRECT: usize = 8 << 10;
/// DMA memory that the commands of one connection hold at a time.
pub const CONNECTION_MEMORY: usize = 4 << 20;
/// Most data of one system call.
pub const SEND_BYTES: usize = 1 << 20;
/// Most buffers of one system call.
pub const SEND_BUFFERS: usize = 256;
/// Time from the connection to ICReq.
pub const TIME_TO_INITIALIZE: Duration = Duration::from_secs(10);
/// Time from the connection to Connect.
pub const TIME_TO_CONNECT: Duration = Duration::from_secs(20);
/// Time for a peer to take what is sent.
pub const TIME_TO_SEND: Duration = Duration::from_secs(30);
/// Time for a host to send data that it was asked for, and the second half of a fused pair.
pub const TIME_FOR_DATA: Duration = Duration::from_secs(30);
/// Time for a peer to close after a terminating PDU.
pub const TIME_TO_CLOSE: Duration = Duration::from_secs(5);
/// How often connections are looked at for what took too long.
pub const TICK: Duration = Duration::from_millis(250);
/// How long to wait for DMA memory before looking again.
pub const MEMORY_RETRY: Duration = Duration::from_micros(200);
/// The shortest keep-alive timeout, in milliseconds; shorter ones are raised to it.
pub const MIN_KEEP_ALIVE: u32 = 10_000;
/// KAS: granularity of keep-alive timeouts, in units of 100 ms.
pub const KEEP_ALIVE_UNITS: u16 = 10;
/// Keep-alive timeout of discovery controllers whose host did not ask for one, in milliseconds.
pub const DISCOVERY_KEEP_ALIVE: u32 = 120_000;
/// CAP.TO, in units of 500 ms: no transition takes longer.
pub const READY_TIMEOUT: u8 = 30;
