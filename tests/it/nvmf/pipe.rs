//! Two ends of a stream in memory, for tests on virtual time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use lvolfs::hw::dma::DmaBuffer;
use lvolfs::nvmf::stream::Stream;
use lvolfs::reactor::Gather;

/// Bytes that one direction holds, as a socket's buffer does.
const CAPACITY: usize = 256 << 10;

#[derive(Default)]
struct Direction {
    bytes: VecDeque<u8>,
    closed: bool,
    wakers: Vec<Waker>,
}

impl Direction {
    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    fn wait<T>(&mut self, context: &Context<'_>) -> Poll<T> {
        if !self.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            self.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }
}

/// One end.
pub(crate) struct Pipe {
    to: Rc<RefCell<Direction>>,
    from: Rc<RefCell<Direction>>,
}

/// Both ends.
pub(crate) fn pair() -> (Pipe, Pipe) {
    let (one, two) = (Rc::default(), Rc::default());
    (Pipe { to: Rc::clone(&one), from: Rc::clone(&two) }, Pipe { to: two, from: one })
}

impl Pipe {
    async fn take(&self, into: &mut [u8]) -> usize {
        poll_fn(|context| {
            let mut from = self.from.borrow_mut();
            if from.bytes.is_empty() {
                return if from.closed { Poll::Ready(0) } else { from.wait(context) };
            }
            let length = into.len().min(from.bytes.len());
            for (to, byte) in into.iter_mut().zip(from.bytes.drain(..length)) {
                *to = byte;
            }
            from.wake();
            Poll::Ready(length)
        })
        .await
    }
}

impl Stream for Pipe {
    async fn receive(&self, mut bytes: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let length = self.take(&mut bytes).await;
        (Ok(length), bytes)
    }

    async fn receive_exact(&self, mut buffer: DmaBuffer) -> (io::Result<usize>, DmaBuffer) {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.take(&mut buffer[filled..]).await {
                0 => break,
                length => filled += length,
            }
        }
        (Ok(filled), buffer)
    }

    async fn send(&self, mut gather: Gather) -> (io::Result<()>, Gather) {
        let bytes = gather.copied();
        let mut rest = &bytes[..];
        let result = poll_fn(|context| {
            let mut to = self.to.borrow_mut();
            if to.closed {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let (now, later) = rest.split_at(rest.len().min(CAPACITY - to.bytes.len()));
            to.bytes.extend(now);
            rest = later;
            if !now.is_empty() {
                to.wake();
            }
            if rest.is_empty() { Poll::Ready(Ok(())) } else { to.wait(context) }
        })
        .await;
        gather.clear();
        (result, gather)
    }

    fn close(&self) {
        for direction in [&self.to, &self.from] {
            let mut direction = direction.borrow_mut();
            direction.closed = true;
            direction.wake();
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.close();
    }
}
