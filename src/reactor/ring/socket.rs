//! Sockets through the ring: bytes into memory or into a DMA buffer, and gathered out of both.

use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;

use io_uring::{opcode, types};

use super::{Descriptor, Holding, Ring, count};
use crate::hw::dma::{DeviceBuffer, DmaBuffer};

/// What is to be sent: bytes of its own and DMA buffers, in the order they were added. Buffers
/// are not copied.
#[derive(Debug, Default)]
pub struct Gather {
    bytes: Vec<u8>,
    buffers: Vec<(DmaBuffer, Range<usize>)>,
    parts: Vec<Part>,
    /// How many of `bytes` belong to a part already.
    sealed: usize,
    length: usize,
}

#[derive(Debug)]
enum Part {
    Bytes(Range<usize>),
    Buffer(usize),
}

impl Gather {
    /// Where bytes are appended.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Adds the `range` of a buffer.
    pub fn push(&mut self, buffer: DmaBuffer, range: Range<usize>) {
        self.seal();
        self.length += range.len();
        self.parts.push(Part::Buffer(self.buffers.len()));
        self.buffers.push((buffer, range));
    }

    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length + self.bytes.len() - self.sealed
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many buffers were added.
    #[must_use]
    pub fn buffers(&self) -> usize {
        self.buffers.len()
    }

    /// Empties it, keeping its room; buffers go back to their arena.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.buffers.clear();
        self.parts.clear();
        (self.sealed, self.length) = (0, 0);
    }

    /// Everything that is to be sent, as one copy: for streams that are no sockets.
    #[must_use]
    pub fn copied(&mut self) -> Vec<u8> {
        self.seal();
        let mut all = Vec::with_capacity(self.length);
        for part in &self.parts {
            match part {
                Part::Bytes(range) => all.extend_from_slice(&self.bytes[range.clone()]),
                Part::Buffer(index) => {
                    let (buffer, range) = &self.buffers[*index];
                    all.extend_from_slice(&buffer[range.clone()]);
                }
            }
        }
        all
    }

    fn seal(&mut self) {
        if self.sealed < self.bytes.len() {
            self.length += self.bytes.len() - self.sealed;
            self.parts.push(Part::Bytes(self.sealed..self.bytes.len()));
            self.sealed = self.bytes.len();
        }
    }
}

/// A gather as the kernel reads it.
pub(super) struct Message {
    bytes: Vec<u8>,
    buffers: Vec<(DeviceBuffer, Range<usize>)>,
    parts: Vec<Part>,
    vectors: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl Message {
    fn new(mut gather: Gather) -> Box<Self> {
        gather.seal();
        let buffers: Vec<(DeviceBuffer, Range<usize>)> =
            gather.buffers.drain(..).map(|(buffer, range)| (buffer.into_device(), range)).collect();
        let bytes = std::mem::take(&mut gather.bytes);
        let parts = std::mem::take(&mut gather.parts);
        let vector = |part: &Part| {
            let (base, range) = match part {
                Part::Bytes(range) => (bytes.as_ptr().cast_mut(), range),
                Part::Buffer(index) => (buffers[*index].0.pointer(), &buffers[*index].1),
            };
            let base = base.wrapping_add(range.start).cast();
            libc::iovec { iov_base: base, iov_len: range.len() }
        };
        let vectors: Vec<libc::iovec> = parts.iter().map(vector).collect();
        let header = libc::msghdr {
            msg_name: std::ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: std::ptr::null_mut(),
            msg_iovlen: 0,
            msg_control: std::ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        let mut message = Box::new(Self { bytes, buffers, parts, vectors, header });
        message.point();
        message
    }

    fn point(&mut self) {
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = self.vectors.len();
    }

    /// Takes `sent` bytes off the front; false if nothing is left.
    fn advance(&mut self, mut sent: usize) -> bool {
        let mut done = 0;
        for vector in &mut self.vectors {
            if sent < vector.iov_len {
                vector.iov_base = vector.iov_base.wrapping_byte_add(sent);
                vector.iov_len -= sent;
                break;
            }
            sent -= vector.iov_len;
            done += 1;
        }
        self.vectors.drain(..done);
        self.point();
        !self.vectors.is_empty()
    }

    /// The gather again, for its room.
    pub(super) fn reclaim(self) -> Gather {
        let buffers = self.buffers.into_iter();
        let buffers = buffers.map(|(device, range)| (device.reclaim(), range)).collect();
        let sealed = self.bytes.len();
        Gather { bytes: self.bytes, buffers, parts: self.parts, sealed, length: 0 }
    }
}

impl Ring {
    /// Receives what there is into `bytes`, at least one byte; 0 at the end of the stream.
    pub async fn receive(
        self: &Rc<Self>,
        socket: &Arc<TcpStream>,
        mut bytes: Vec<u8>,
    ) -> (io::Result<usize>, Vec<u8>) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry = opcode::Recv::new(types::Fd(socket.as_raw_fd()), bytes.as_mut_ptr(), length);
        let descriptor = Arc::clone(socket) as Descriptor;
        match self.run(entry.build(), Holding::Bytes(bytes), descriptor).await {
            (result, Holding::Bytes(bytes)) => (count(result), bytes),
            _ => unreachable!("a receive holds its bytes until it is answered"),
        }
    }

    /// Fills `buffer` from the stream; fewer bytes if the stream ends or fails before.
    pub async fn receive_exact(
        self: &Rc<Self>,
        socket: &Arc<TcpStream>,
        buffer: DmaBuffer,
    ) -> (io::Result<usize>, DmaBuffer) {
        let device = buffer.into_device();
        let length = u32::try_from(device.len()).unwrap_or(u32::MAX);
        let entry = opcode::Recv::new(types::Fd(socket.as_raw_fd()), device.pointer(), length)
            .flags(libc::MSG_WAITALL)
            .build();
        let descriptor = Arc::clone(socket) as Descriptor;
        match self.run(entry, Holding::Buffer(device), descriptor).await {
            (result, Holding::Buffer(device)) => (count(result), device.reclaim()),
            _ => unreachable!("a receive holds its buffer until it is answered"),
        }
    }

    /// Sends all of `gather`, and gives it back, empty.
    ///
    /// # Errors
    /// The system's; it is then not known how much was sent.
    pub async fn send(
        self: &Rc<Self>,
        socket: &Arc<TcpStream>,
        gather: Gather,
    ) -> (io::Result<()>, Gather) {
        let mut message = Message::new(gather);
        loop {
            let entry =
                opcode::SendMsg::new(types::Fd(socket.as_raw_fd()), &raw const message.header)
                    .flags((libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32)
                    .build();
            let descriptor = Arc::clone(socket) as Descriptor;
            let (result, holding) = self.run(entry, Holding::Message(message), descriptor).await;
            let Holding::Message(back) = holding else {
                unreachable!("a send holds its message until it is answered");
            };
            message = back;
            let result = match count(result) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) if message.advance(sent) => continue,
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            let mut gather = message.reclaim();
            gather.clear();
            return (result, gather);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::hw::dma::DmaArena;
    use crate::reactor::{Reactor, ReactorOptions};
    use crate::units::ByteCount;

    #[test]
    fn gathered_parts_arrive_in_order_and_buffers_come_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = Arc::new(listener.accept().unwrap().0);
        let arena = DmaArena::new(ByteCount(8 << 20), false).unwrap();
        let free = arena.free();
        // More than the socket's buffers hold, so that it is sent in several steps.
        let mut gather = Gather::default();
        let mut expected = Vec::new();
        for part in 0..6_u8 {
            gather.bytes().extend([part; 3]);
            expected.extend([part; 3]);
            let mut buffer = arena.allocate(1 << 20).unwrap();
            buffer.fill(part ^ 0xff);
            expected.extend_from_slice(&buffer[5..]);
            gather.push(buffer, 5..1 << 20);
        }
        gather.bytes().push(9);
        expected.push(9);
        assert_eq!((gather.len(), gather.buffers()), (expected.len(), 6));
        assert!(gather.copied() == expected);
        let length = expected.len();
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; length];
            peer.read_exact(&mut all).unwrap();
            peer.write_all(b"thank you").unwrap();
            all
        });
        let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
        let ring = Rc::clone(reactor.ring());
        reactor.block_on(async {
            let (sent, gather) = ring.send(&socket, gather).await;
            sent.unwrap();
            assert!(gather.is_empty());
            let buffer = arena.allocate(5).unwrap();
            let (received, buffer) = ring.receive_exact(&socket, buffer).await;
            assert_eq!((received.unwrap(), &*buffer), (5, b"thank".as_slice()));
            let (received, bytes) = ring.receive(&socket, vec![0; 64]).await;
            assert_eq!(&bytes[..received.unwrap()], b" you");
            let (end, _) = ring.receive(&socket, bytes).await;
            assert_eq!(end.unwrap(), 0);
        });
        assert!(reader.join().unwrap() == expected);
        assert_eq!(arena.free(), free);
    }
}
