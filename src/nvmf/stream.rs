//! What a connection is made of: bytes in both directions. A socket, or, in tests, a pipe.

use std::future::Future;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::rc::Rc;
use std::sync::Arc;

use crate::hw::dma::DmaBuffer;
use crate::reactor::{Gather, Ring};

/// A stream of bytes to a peer and back.
pub trait Stream {
    /// Receives what there is, at least one byte; 0 at the end.
    fn receive(&self, bytes: Vec<u8>) -> impl Future<Output = (io::Result<usize>, Vec<u8>)>;
    /// Fills a buffer; fewer bytes if the stream ends.
    fn receive_exact(
        &self,
        buffer: DmaBuffer,
    ) -> impl Future<Output = (io::Result<usize>, DmaBuffer)>;
    /// Sends everything, and gives the empty gather back.
    fn send(&self, gather: Gather) -> impl Future<Output = (io::Result<()>, Gather)>;
    /// Ends both directions.
    fn close(&self);
}

/// A TCP socket on a reactor's ring.
pub struct Socket {
    ring: Rc<Ring>,
    stream: Arc<TcpStream>,
}

impl Socket {
    /// A connected socket.
    ///
    /// # Errors
    /// The system's.
    pub fn new(ring: &Rc<Ring>, stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // The ring waits where it must.
        stream.set_nonblocking(false)?;
        Ok(Self { ring: Rc::clone(ring), stream: Arc::new(stream) })
    }
}

impl Stream for Socket {
    async fn receive(&self, bytes: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        self.ring.receive(&self.stream, bytes).await
    }

    async fn receive_exact(&self, buffer: DmaBuffer) -> (io::Result<usize>, DmaBuffer) {
        self.ring.receive_exact(&self.stream, buffer).await
    }

    async fn send(&self, gather: Gather) -> (io::Result<()>, Gather) {
        self.ring.send(&self.stream, gather).await
    }

    fn close(&self) {
        // Fails if the peer was faster.
        self.stream.shutdown(Shutdown::Both).unwrap_or_default();
    }
}
