//! One connection: bytes in, PDUs to the queue, replies out.
//!
//! All of a connection is one task: it receives, runs the commands, and sends what they came to,
//! in that order in one turn, so that an answer that needs no device leaves in the turn in which
//! its command came. Commands that wait for a device wake the same task.
//!
//! The end: nothing more is received; commands that a device may have run to their end; then what
//! is to be sent is sent, the stream is closed, and the queue leaves its controller.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::limits::{DIRECT, IN_CAPSULE, MAX_TRANSFER, RECEIVE, RECEIVE_WITH_DATA, TIME_TO_CLOSE};
use super::pdu::{self, Decoder, Digests, Encoder, Event, FatalStatus, Fault, Limits, Pdu, Role};
use super::queue::{Landing, Queue, Reply, Stop};
use super::service::Service;
use super::stream::Stream;
use super::target::Peer;
use crate::reactor::Gather;

const LIMITS: Limits = Limits { in_capsule: IN_CAPSULE, data: MAX_TRANSFER };

/// Why no more is received.
enum End {
    /// The peer closed, or said why it will.
    Peer,
    /// The stream failed.
    Failed(io::Error),
    /// The peer broke the protocol; it was told.
    Fault(Fault),
}

struct Connection<'a, S> {
    queue: &'a Rc<Queue>,
    stream: &'a S,
}

/// Serves one connection to its end.
pub(super) async fn serve<S: Stream>(service: Rc<Service>, stream: S, peer: Peer) {
    let queue = Queue::new(&service, peer);
    let registered = service.register(&queue);
    let connection = Connection { queue: &queue, stream: &stream };
    let mut receive = Some(Box::pin(connection.receive()));
    let mut send = pin!(connection.send());
    let (mut staged, mut commands) = (Vec::new(), FuturesUnordered::new());
    let mut sending = true;
    poll_fn(|context| {
        queue.set_waker(context.waker());
        service.running.set(Some(registered));
        if queue.stopped().is_some() {
            receive = None;
        }
        if let Some(future) = &mut receive
            && let Poll::Ready(end) = future.as_mut().poll(context)
        {
            receive = None;
            connection.ended(end);
        }
        let idle = loop {
            queue.swap_staged(&mut staged);
            if !staged.is_empty() {
                // Most end at once, and then never enter the set.
                for mut command in staged.drain(..) {
                    if command.as_mut().poll(context).is_pending() {
                        commands.push(command);
                    }
                }
                continue;
            }
            match commands.poll_next_unpin(context) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) => break true,
                Poll::Pending => break false,
            }
        };
        if queue.stopped() == Some(Stop::Drop) {
            queue.outbox().clear();
        }
        if sending && let Poll::Ready(result) = send.as_mut().poll(context) {
            sending = false;
            if result.is_err() {
                queue.stop(Stop::Drop);
            }
        }
        service.running.set(None);
        let Some(stop) = queue.stopped() else { return Poll::Pending };
        // A command that waits for memory or for its turn ends as well; nothing waits for ever.
        let done = idle && (!sending || stop == Stop::Drop);
        if done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    if queue.stopped() == Some(Stop::Fault) {
        connection.wait_for_close().await;
    }
    stream.close();
    service.leave(&queue, registered);
}

impl<S: Stream> Connection<'_, S> {
    fn ended(&self, end: End) {
        let peer = self.queue.peer.remote;
        match end {
            End::Peer => self.queue.stop(Stop::Drop),
            End::Failed(error) => {
                tracing::debug!(%peer, %error, "connection lost");
                self.queue.stop(Stop::Drop);
            }
            End::Fault(fault) => {
                if self.queue.service.target.may_log() {
                    tracing::warn!(%peer, %fault, "the peer broke the protocol: disconnected");
                }
                self.queue.stop(Stop::Fault);
            }
        }
    }

    async fn receive(&self) -> End {
        let mut decoder = Decoder::new(Role::Controller, LIMITS);
        let mut landing = Landing::Nowhere;
        let mut bytes = vec![0; RECEIVE];
        loop {
            if let Some(end) = self.receive_directly(&mut decoder, landing).await {
                return end;
            }
            let wanted = if self.queue.expects_long_data() { RECEIVE_WITH_DATA } else { RECEIVE };
            bytes.resize(wanted, 0);
            let (received, back) = self.stream.receive(bytes).await;
            bytes = back;
            let mut input = match received {
                Ok(0) => return End::Peer,
                Ok(length) => &bytes[..length],
                Err(error) => return End::Failed(error),
            };
            loop {
                match decoder.feed(&mut input) {
                    Ok(None) => break,
                    Ok(Some(Event::Header(Pdu::Terminate { status, information }))) => {
                        let peer = self.queue.peer.remote;
                        tracing::info!(%peer, status, information, "the host ended the connection");
                        return End::Peer;
                    }
                    Ok(Some(Event::Header(pdu))) => match self.header(&mut decoder, pdu).await {
                        Ok(place) => landing = place,
                        Err(fault) => return self.fault(&decoder, fault),
                    },
                    Ok(Some(Event::Data(data))) => self.queue.land(landing, data),
                    Ok(Some(Event::End(data))) => self.queue.landed(landing, data),
                    Err(fault) => return self.fault(&decoder, fault),
                }
            }
        }
    }

    /// Receives long data where it belongs.
    async fn receive_directly(&self, decoder: &mut Decoder, landing: Landing) -> Option<End> {
        let left = decoder.data_left();
        if left < DIRECT {
            return None;
        }
        let tail = self.queue.take_tail(landing, left)?;
        let (received, tail) = self.stream.receive_exact(tail).await;
        let length = match received {
            Ok(0) => return Some(End::Peer),
            Ok(length) => length,
            Err(error) => return Some(End::Failed(error)),
        };
        let end = decoder.received(&tail[..length]);
        self.queue.put_tail(landing, tail, length);
        if let Some(data) = end {
            self.queue.landed(landing, data);
        }
        None
    }

    async fn header(&self, decoder: &mut Decoder, pdu: Pdu) -> Result<Landing, Fault> {
        match pdu {
            Pdu::InitializeRequest { alignment, digests, .. } => {
                self.initialize(decoder, alignment, digests);
                Ok(Landing::Nowhere)
            }
            Pdu::Command { entry, length } => self.queue.arrive(entry, length).await,
            Pdu::HostData { command, tag, offset, length, last } => {
                self.queue.host_data(command, tag, offset, length, last)
            }
            _ => Err(Fault::new(FatalStatus::SequenceError, "a PDU that only controllers send")),
        }
    }

    fn initialize(&self, decoder: &mut Decoder, alignment: u8, digests: Digests) {
        // Hosts insist on data without padding to the controller.
        decoder.agree(digests, 0);
        let answer = Pdu::InitializeResponse { alignment: 0, digests, max_data: MAX_TRANSFER };
        let mut bytes = Vec::new();
        Encoder::default().header(&answer, &mut bytes);
        self.queue.outbox().push(Reply::Bytes(bytes));
        self.queue.agree(Encoder { digests, alignment });
    }

    fn fault(&self, decoder: &Decoder, fault: Fault) -> End {
        let mut bytes = Vec::new();
        let header = decoder.last_header();
        pdu::terminate(
            Role::Controller,
            fault.status as u16,
            fault.information,
            header,
            &mut bytes,
        );
        self.queue.outbox().push(Reply::Bytes(bytes));
        End::Fault(fault)
    }

    /// Sends whatever is to be sent, until the connection is stopped and nothing is left.
    async fn send(&self) -> io::Result<()> {
        let mut gather = Gather::default();
        loop {
            let more = poll_fn(|_| {
                if !self.queue.outbox().is_empty() {
                    return Poll::Ready(true);
                }
                let stopped = self.queue.stopped().is_some() && !self.queue.is_busy();
                if stopped { Poll::Ready(false) } else { Poll::Pending }
            });
            if !more.await {
                return Ok(());
            }
            let encoder = self.queue.encoder();
            self.queue.outbox().gather(encoder, &mut gather);
            self.queue.sending.set(Some(self.queue.service.reactor.now()));
            let (result, back) = self.stream.send(gather).await;
            gather = back;
            self.queue.sending.set(None);
            let permits = self.queue.outbox().sent();
            drop(permits);
            result?;
        }
    }

    /// Reads and throws away until the peer closes, or has had its time.
    async fn wait_for_close(&self) {
        let reactor = &self.queue.service.reactor;
        let deadline = reactor.now().after(TIME_TO_CLOSE);
        let mut bytes = vec![0; RECEIVE_WITH_DATA];
        let drain = async {
            loop {
                let (received, back) = self.stream.receive(bytes).await;
                bytes = back;
                if !received.is_ok_and(|length| length > 0) {
                    return;
                }
            }
        };
        futures_util::future::select(pin!(drain), reactor.sleep_until(deadline)).await;
    }
}
