//! TCP sockets of the current core: the machine's, or simulated ones.
//!
//! Invariants:
//! - A socket belongs to the core that made it (it is not Send); its clones share it.
//! - Dropping the future of an `accept` or a `recv` loses no connection and no byte of the stream: the next call gets
//!   them. (What the buffer that was handed to the dropped `recv` held already is dropped with it.)
//! - Dropping the future of a send leaves unknown how much was sent: after that the stream is good for
//!   [`TcpStream::shutdown`] only.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::buf::IoBuf;
use crate::context;
use crate::executor::Backend;
use crate::sim::{SimListener, SimStream};
use crate::uring::{UringListener, UringStream};

/// A listening TCP socket of one core.
pub struct TcpListener(ListenerImp);

enum ListenerImp {
    Uring(UringListener),
    Sim(SimListener),
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpListener").field("local_addr", &self.local_addr()).finish_non_exhaustive()
    }
}

impl TcpListener {
    /// Listens on `address`. Every core may bind the same one: connections are shared out among them.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let core = context::expect("TcpListener::bind");
        Ok(Self(match &core.backend {
            Backend::Uring(ring) => ListenerImp::Uring(UringListener::bind(ring, address)?),
            Backend::Sim(port) => ListenerImp::Sim(SimListener::bind(port, address)?),
        }))
    }

    /// Waits for the next connection.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let stream = match &self.0 {
            ListenerImp::Uring(listener) => StreamImp::Uring(Rc::new(listener.accept().await?)),
            ListenerImp::Sim(listener) => StreamImp::Sim(Rc::new(listener.accept().await?)),
        };
        let stream = TcpStream(stream);
        let peer = stream.peer_addr();
        Ok((stream, peer))
    }

    /// The address that is listened on, with its real port.
    pub fn local_addr(&self) -> SocketAddr {
        match &self.0 {
            ListenerImp::Uring(listener) => listener.local_addr(),
            ListenerImp::Sim(listener) => listener.local_addr(),
        }
    }
}

/// A TCP connection of one core. Cheap to clone; one task may receive while another one sends. Closed with its last
/// clone. TCP_NODELAY is set.
#[derive(Clone)]
pub struct TcpStream(StreamImp);

#[derive(Clone)]
enum StreamImp {
    Uring(Rc<UringStream>),
    Sim(Rc<SimStream>),
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpStream").field("peer_addr", &self.peer_addr()).finish_non_exhaustive()
    }
}

impl TcpStream {
    /// Connects to `address`.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let core = context::expect("TcpStream::connect");
        Ok(Self(match &core.backend {
            Backend::Uring(ring) => StreamImp::Uring(Rc::new(UringStream::connect(ring, address).await?)),
            Backend::Sim(port) => StreamImp::Sim(Rc::new(SimStream::connect(port, address).await?)),
        }))
    }

    /// Receives what has come, or waits for it; appends it to `buf`, at most as much as its spare capacity holds
    /// (which is made 4 KiB when there is none). 0 means that the peer has closed the stream.
    pub async fn recv(&self, mut buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        if buf.len() == buf.capacity() {
            buf.reserve(RECV_RESERVE_BYTES);
        }
        match &self.0 {
            StreamImp::Uring(stream) => stream.recv(buf).await,
            StreamImp::Sim(stream) => stream.recv(buf).await,
        }
    }

    /// Sends all of `buf`. One task at a time may send.
    pub async fn send_all<B: IoBuf>(&self, buf: B) -> (io::Result<()>, B) {
        match &self.0 {
            StreamImp::Uring(stream) => stream.send_all(buf).await,
            StreamImp::Sim(stream) => {
                let result = stream.send_all(buf.as_slice()).await;
                (result, buf)
            }
        }
    }

    /// Sends all of `bufs`, one after the other, in as few system calls as possible. One task at a time may send.
    pub async fn send_all_vectored(&self, bufs: Vec<Box<dyn IoBuf>>) -> io::Result<()> {
        match &self.0 {
            StreamImp::Uring(stream) => stream.send_all_vectored(bufs).await,
            StreamImp::Sim(stream) => {
                for buf in &bufs {
                    stream.send_all(buf.as_slice()).await?;
                }
                Ok(())
            }
        }
    }

    /// Ends the stream in both directions: pending and later receives end, later sends fail.
    pub fn shutdown(&self) {
        match &self.0 {
            StreamImp::Uring(stream) => stream.shutdown(),
            StreamImp::Sim(stream) => stream.shutdown(),
        }
    }

    /// The other end's address.
    pub fn peer_addr(&self) -> SocketAddr {
        match &self.0 {
            StreamImp::Uring(stream) => stream.peer_addr(),
            StreamImp::Sim(stream) => stream.peer_addr(),
        }
    }
}

/// The room made in a receive buffer that has none.
const RECV_RESERVE_BYTES: usize = 4096;
