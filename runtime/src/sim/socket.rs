//! Sockets of the simulated network: the futures that wait at one end of a connection, or at a listener.

use std::future::poll_fn;
use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;

use super::net::{self, EndId};
use super::node::NodePort;
use super::{connect, driver};

/// A listening socket.
pub(crate) struct SimListener {
    port: NodePort,
    id: u64,
    local: SocketAddr,
    not_moved: PhantomData<Rc<()>>,
}

impl SimListener {
    pub(crate) fn bind(port: &NodePort, address: SocketAddr) -> io::Result<Self> {
        let (id, local) = port.world.with(|state| {
            if !state.machines[port.node].runs(port.process) {
                return Err(io::ErrorKind::NetworkDown.into());
            }
            connect::listen(state, port.node, address)
        })?;
        Ok(Self { port: port.clone(), id, local, not_moved: PhantomData })
    }

    pub(crate) async fn accept(&self) -> io::Result<SimStream> {
        let (end, peer) =
            poll_fn(|cx| match self.port.world.with(|state| connect::accept(state, self.id, cx.waker())) {
                Some(accepted) => Poll::Ready(accepted),
                None => Poll::Pending,
            })
            .await;
        Ok(SimStream { port: self.port.clone(), end, peer, not_moved: PhantomData })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.port.world.with(|state| connect::close_listener(state, self.id));
    }
}

/// One end of a connection.
pub(crate) struct SimStream {
    port: NodePort,
    end: EndId,
    peer: SocketAddr,
    not_moved: PhantomData<Rc<()>>,
}

impl SimStream {
    pub(crate) async fn connect(port: &NodePort, address: SocketAddr) -> io::Result<Self> {
        let end = connect::connect(port, address).await?;
        Ok(Self { port: port.clone(), end, peer: address, not_moved: PhantomData })
    }

    pub(crate) async fn recv(&self, mut buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let result = poll_fn(|cx| {
            match self.port.world.with(|state| net::recv(state, self.end, &mut buf, cx.waker())) {
                Some(result) => Poll::Ready(result),
                None => Poll::Pending,
            }
        })
        .await;
        (result, buf)
    }

    pub(crate) async fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = poll_fn(|cx| {
                match self.port.world.with(|state| net::send(state, self.end, bytes, cx.waker())) {
                    Some(result) => Poll::Ready(result),
                    None => Poll::Pending,
                }
            })
            .await?;
            if let Some(passing) = sent.passing {
                driver::pass(&self.port, self.end, passing);
            }
            bytes = &bytes[sent.bytes..];
        }
        Ok(())
    }

    pub(crate) fn shutdown(&self) {
        self.port.world.with(|state| net::shutdown(state, self.end));
    }

    pub(crate) fn peer_addr(&self) -> SocketAddr {
        self.peer
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.port.world.with(|state| net::close(state, self.end));
    }
}
