//! TCP sockets by io_uring.
//!
//! Invariants:
//! - An accept or a receive whose future is dropped stays in flight, kept by its listener or stream; the next call
//!   takes it over. So neither a connection nor a byte is lost by a timeout around them. They are cancelled when the
//!   socket itself is dropped.
//! - Every operation owns a share of the descriptor, so the number cannot be given to another file under it.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use rustix::net::sockopt::{set_socket_reuseaddr, set_socket_reuseport, set_tcp_nodelay};
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, bind, getpeername, getsockname, listen, shutdown,
    socket_with,
};

use super::file::is_transient;
use super::request::{Accept, Connect, Recv, Request, Send, SendVectored, count, encode_address};
use super::ring::{Op, Ring};
use crate::buf::IoBuf;
use crate::sync::Arc;

/// How many connections may wait for being accepted (the kernel caps it by net.core.somaxconn).
const BACKLOG: i32 = 1024;

/// An operation that its socket keeps while nobody waits for it.
struct Kept<'a, R: Request> {
    place: &'a RefCell<Option<Op<R>>>,
    op: Option<Op<R>>,
}

impl<R: Request> Future for Kept<'_, R> {
    type Output = (io::Result<u32>, Box<R>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let op = self.op.as_mut().expect("not polled after its end");
        let output = std::task::ready!(Pin::new(op).poll(cx));
        self.op = None;
        Poll::Ready(output)
    }
}

impl<R: Request> Drop for Kept<'_, R> {
    fn drop(&mut self) {
        if let Some(op) = self.op.take() {
            let replaced = self.place.borrow_mut().replace(op);
            drop(replaced);
        }
    }
}

fn tcp_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

fn to_socket_addr(address: rustix::net::SocketAddrAny) -> io::Result<SocketAddr> {
    SocketAddr::try_from(address).map_err(io::Error::from)
}

/// A listening socket.
pub(crate) struct UringListener {
    ring: Rc<Ring>,
    fd: Arc<OwnedFd>,
    local: SocketAddr,
    accepting: RefCell<Option<Op<Accept>>>,
}

impl UringListener {
    pub(crate) fn bind(ring: &Rc<Ring>, address: SocketAddr) -> io::Result<Self> {
        let fd = tcp_socket(address)?;
        set_socket_reuseaddr(&fd, true)?;
        set_socket_reuseport(&fd, true)?;
        bind(&fd, &address)?;
        listen(&fd, BACKLOG)?;
        let local = to_socket_addr(getsockname(&fd)?)?;
        Ok(Self { ring: ring.clone(), fd: Arc::new(fd), local, accepting: RefCell::new(None) })
    }

    pub(crate) async fn accept(&self) -> io::Result<UringStream> {
        loop {
            let kept = self.accepting.borrow_mut().take();
            let op = kept.unwrap_or_else(|| self.ring.submit(Accept { fd: self.fd.clone(), accepted: None }));
            let (result, request) = Kept { place: &self.accepting, op: Some(op) }.await;
            match result {
                Ok(_) => {
                    let fd = request.accepted.expect("set by a successful accept");
                    // The peer may be gone already; then the next one is waited for.
                    let Ok(Some(peer)) = getpeername(&fd) else { continue };
                    return UringStream::new(&self.ring, Arc::new(fd), to_socket_addr(peer)?);
                }
                Err(error) if is_transient(&error) => {}
                Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

/// A connection.
pub(crate) struct UringStream {
    ring: Rc<Ring>,
    fd: Arc<OwnedFd>,
    peer: SocketAddr,
    receiving: RefCell<Option<Op<Recv>>>,
    /// Bytes of an abandoned receive that did not fit into the next caller's buffer.
    leftover: RefCell<Vec<u8>>,
    leftover_start: Cell<usize>,
}

impl UringStream {
    fn new(ring: &Rc<Ring>, fd: Arc<OwnedFd>, peer: SocketAddr) -> io::Result<Self> {
        set_tcp_nodelay(&fd, true)?;
        Ok(Self {
            ring: ring.clone(),
            fd,
            peer,
            receiving: RefCell::new(None),
            leftover: RefCell::default(),
            leftover_start: Cell::new(0),
        })
    }

    pub(crate) async fn connect(ring: &Rc<Ring>, address: SocketAddr) -> io::Result<Self> {
        let fd = Arc::new(tcp_socket(address)?);
        let request = Connect { fd: fd.clone(), address: encode_address(address) };
        ring.submit(request).await.0?;
        Self::new(ring, fd, address)
    }

    pub(crate) async fn recv(&self, mut buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        loop {
            if let Some(taken) = self.take_leftover(&mut buf) {
                return (Ok(taken), buf);
            }
            let kept = self.receiving.borrow_mut().take();
            if let Some(op) = kept {
                let (result, request) = Kept { place: &self.receiving, op: Some(op) }.await;
                match result {
                    Ok(0) => return (Ok(0), buf),
                    Ok(_) => {
                        self.leftover.replace(request.buf);
                        self.leftover_start.set(request.start);
                    }
                    Err(error) if is_transient(&error) => {}
                    Err(error) => return (Err(error), buf),
                }
                continue;
            }
            let start = buf.len();
            let op = self.ring.submit(Recv { fd: self.fd.clone(), buf, start });
            let (result, request) = Kept { place: &self.receiving, op: Some(op) }.await;
            buf = request.buf;
            match result {
                Err(error) if is_transient(&error) => {}
                result => return (result.map(count), buf),
            }
        }
    }

    fn take_leftover(&self, buf: &mut Vec<u8>) -> Option<usize> {
        let mut leftover = self.leftover.borrow_mut();
        let left = &leftover[self.leftover_start.get()..];
        if left.is_empty() {
            return None;
        }
        let taken = left.len().min(buf.capacity() - buf.len());
        buf.extend_from_slice(&left[..taken]);
        self.leftover_start.set(self.leftover_start.get() + taken);
        if self.leftover_start.get() == leftover.len() {
            *leftover = Vec::new();
            self.leftover_start.set(0);
        }
        Some(taken)
    }

    pub(crate) async fn send_all<B: IoBuf>(&self, mut buf: B) -> (io::Result<()>, B) {
        let len = buf.as_slice().len();
        let mut start = 0;
        while start < len {
            let (result, request) = self.ring.submit(Send { fd: self.fd.clone(), buf, start }).await;
            buf = request.buf;
            match result {
                Ok(sent) => start += count(sent),
                Err(error) if is_transient(&error) => {}
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }

    pub(crate) async fn send_all_vectored(&self, bufs: Vec<Box<dyn IoBuf>>) -> io::Result<()> {
        let mut request = SendVectored::new(self.fd.clone(), bufs);
        while !request.is_done() {
            let (result, done) = self.ring.submit(request).await;
            request = *done;
            match result {
                Ok(sent) => request.advance(count(sent)),
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) fn shutdown(&self) {
        // The only error is that the connection has ended already.
        let _ = shutdown(&self.fd, Shutdown::Both);
    }

    pub(crate) fn peer_addr(&self) -> SocketAddr {
        self.peer
    }
}
