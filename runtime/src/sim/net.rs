//! The simulated network: listeners, and connections of two ends that bytes reach after a latency, in order.
//!
//! Invariants:
//! - Bytes and the end of a stream arrive in the order in which they were sent.
//! - What is under way to an end and what waits there to be received is at most [`BUFFER_BYTES`].
//! - A connection is removed when both of its ends are closed.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::task::Waker;

use super::world::State;

/// What the kernel's buffers of one direction hold.
const BUFFER_BYTES: usize = 256 * 1024;
/// The most bytes that travel together.
const CHUNK_BYTES: usize = 64 * 1024;
/// Latencies in nanoseconds, from and to.
const CHUNK_NS: (u64, u64) = (15_000, 150_000);
/// Connections that may wait for being accepted.
const BACKLOG: usize = 1024;
/// The ports that are given out.
const FIRST_PORT: u16 = 20_000;
const LAST_PORT: u16 = 60_000;

/// All sockets of a simulation.
pub(super) struct Network {
    next_id: u64,
    next_port: u16,
    listeners: BTreeMap<u64, Listener>,
    connections: BTreeMap<u64, Connection>,
}

struct Listener {
    node: usize,
    address: SocketAddr,
    /// Connections whose far end (number 1) is to be accepted.
    waiting: VecDeque<u64>,
    acceptors: Vec<Waker>,
}

struct Connection {
    ends: [End; 2],
}

/// One end: what has come for it, and who waits there.
struct End {
    address: SocketAddr,
    arrived: VecDeque<u8>,
    /// Bytes under way to this end.
    under_way: usize,
    /// Nothing that is sent to this end may arrive earlier.
    last_arrival_ns: u64,
    /// The peer's end of the stream has arrived: nothing follows, and sends are in vain.
    is_peer_gone: bool,
    /// `shutdown` was called here.
    is_shut: bool,
    is_closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Names one end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EndId {
    connection: u64,
    end: usize,
}

impl EndId {
    fn peer(self) -> Self {
        Self { connection: self.connection, end: 1 - self.end }
    }
}

impl End {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            arrived: VecDeque::new(),
            under_way: 0,
            last_arrival_ns: 0,
            is_peer_gone: false,
            is_shut: false,
            is_closed: false,
            reader: None,
            writer: None,
        }
    }
}

impl Network {
    pub(super) fn new() -> Self {
        Self { next_id: 0, next_port: FIRST_PORT, listeners: BTreeMap::new(), connections: BTreeMap::new() }
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn new_port(&mut self) -> u16 {
        loop {
            let port = self.next_port;
            self.next_port = if port == LAST_PORT { FIRST_PORT } else { port + 1 };
            if !self.listeners.values().any(|listener| listener.address.port() == port) {
                return port;
            }
        }
    }

    fn end(&mut self, id: EndId) -> Option<&mut End> {
        self.connections.get_mut(&id.connection).map(|connection| &mut connection.ends[id.end])
    }

    /// Listens on `address`, which several cores of one node may do.
    pub(super) fn listen(&mut self, node: usize, mut address: SocketAddr) -> io::Result<(u64, SocketAddr)> {
        if address.port() == 0 {
            address.set_port(self.new_port());
        }
        let is_taken = self
            .listeners
            .values()
            .any(|listener| listener.node != node && answers(listener.address, address));
        if is_taken {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("another simulated node listens on {address}"),
            ));
        }
        let id = self.new_id();
        let listener = Listener { node, address, waiting: VecDeque::new(), acceptors: Vec::new() };
        self.listeners.insert(id, listener);
        Ok((id, address))
    }

    /// The next connection, or None after the waker was left.
    pub(super) fn accept(&mut self, listener: u64, waker: &Waker) -> Option<(EndId, SocketAddr)> {
        let of_listener = self.listeners.get_mut(&listener)?;
        while let Some(connection) = of_listener.waiting.pop_front() {
            if let Some(both) = self.connections.get(&connection) {
                return Some((EndId { connection, end: 1 }, both.ends[0].address));
            }
        }
        if !of_listener.acceptors.iter().any(|registered| registered.will_wake(waker)) {
            of_listener.acceptors.push(waker.clone());
        }
        None
    }

    /// Takes what has come to `end`: at most `max` bytes, more than one piece perhaps, or part of one.
    fn take(&mut self, id: EndId, max: usize) -> Option<Vec<u8>> {
        let end = self.end(id)?;
        let count = max.min(end.arrived.len());
        Some(end.arrived.drain(..count).collect())
    }
}

/// Whether a listener on `bound` gets what is meant for `address`.
fn answers(bound: SocketAddr, address: SocketAddr) -> bool {
    bound.port() == address.port()
        && (bound.ip() == address.ip() || bound.ip().is_unspecified() || address.ip().is_unspecified())
}

/// Connects to `address`: the near end of the new connection.
pub(super) fn connect(state: &mut State, address: SocketAddr) -> io::Result<EndId> {
    let network = &mut state.network;
    let listeners: Vec<u64> = network
        .listeners
        .iter()
        .filter(|(_, listener)| answers(listener.address, address) && listener.waiting.len() < BACKLOG)
        .map(|(id, _)| *id)
        .collect();
    if listeners.is_empty() {
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("nobody listens on {address}")));
    }
    let listener = listeners[state.random.index(listeners.len())];
    let connection = network.new_id();
    let near = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), network.new_port());
    let ends = [End::new(near), End::new(address)];
    network.connections.insert(connection, Connection { ends });
    let acceptors = match network.listeners.get_mut(&listener) {
        Some(listener) => {
            listener.waiting.push_back(connection);
            std::mem::take(&mut listener.acceptors)
        }
        None => Vec::new(),
    };
    for waker in acceptors {
        state.wake(Some(waker));
    }
    Ok(EndId { connection, end: 0 })
}

/// Stops listening; connections that were not accepted end.
pub(super) fn close_listener(state: &mut State, listener: u64) {
    let Some(listener) = state.network.listeners.remove(&listener) else { return };
    for connection in listener.waiting {
        close(state, EndId { connection, end: 1 });
    }
}

/// When something that is sent now arrives at `end`.
fn arrival(state: &mut State, id: EndId) -> u64 {
    let at_ns = state.now_ns + state.random.between(CHUNK_NS.0, CHUNK_NS.1);
    let Some(end) = state.network.end(id) else { return at_ns };
    end.last_arrival_ns = end.last_arrival_ns.max(at_ns);
    end.last_arrival_ns
}

/// Sends the front of `bytes` as far as there is room, and says how much; None after the waker was left.
pub(super) fn send(state: &mut State, id: EndId, bytes: &[u8], waker: &Waker) -> Option<io::Result<usize>> {
    let peer = id.peer();
    let (is_gone, room) = {
        let is_gone = state.network.end(id).is_none_or(|end| end.is_shut || end.is_peer_gone);
        let room = state
            .network
            .end(peer)
            .map_or(0, |end| BUFFER_BYTES.saturating_sub(end.arrived.len() + end.under_way));
        (is_gone, room)
    };
    if is_gone {
        return Some(Err(io::ErrorKind::BrokenPipe.into()));
    }
    if room == 0 {
        state.network.end(id)?.writer = Some(waker.clone());
        return None;
    }
    let chunk = bytes[..bytes.len().min(room).min(CHUNK_BYTES)].to_vec();
    let count = chunk.len();
    state.network.end(peer)?.under_way += count;
    let at_ns = arrival(state, peer);
    state.schedule_at(at_ns, move |state| {
        let Some(end) = state.network.end(peer) else { return };
        end.under_way -= chunk.len();
        if !end.is_closed {
            end.arrived.extend(chunk);
        }
        let reader = end.reader.take();
        state.wake(reader);
    });
    Some(Ok(count))
}

/// Receives at most `max` bytes (not zero); none at the end of the stream; None after the waker was left.
pub(super) fn recv(state: &mut State, id: EndId, max: usize, waker: &Waker) -> Option<Vec<u8>> {
    let Some(end) = state.network.end(id) else { return Some(Vec::new()) };
    let there = end.arrived.len().min(max);
    if there == 0 {
        if end.is_peer_gone || end.is_shut {
            return Some(Vec::new());
        }
        end.reader = Some(waker.clone());
        return None;
    }
    // Part of what is there, now and then: nobody may rely on pieces.
    let count = if state.random.one_in(4) { 1 + state.random.index(there) } else { there };
    let bytes = state.network.take(id, count)?;
    let writer = state.network.end(id.peer()).and_then(|peer| peer.writer.take());
    state.wake(writer);
    Some(bytes)
}

/// Ends the stream in both directions; what has arrived can still be received.
pub(super) fn shutdown(state: &mut State, id: EndId) {
    let Some(end) = state.network.end(id) else { return };
    if std::mem::replace(&mut end.is_shut, true) {
        return;
    }
    let (reader, writer) = (end.reader.take(), end.writer.take());
    state.wake(reader);
    state.wake(writer);
    let peer = id.peer();
    let at_ns = arrival(state, peer);
    state.schedule_at(at_ns, move |state| {
        let Some(end) = state.network.end(peer) else { return };
        end.is_peer_gone = true;
        let (reader, writer) = (end.reader.take(), end.writer.take());
        state.wake(reader);
        state.wake(writer);
    });
}

/// The end's last handle is gone.
pub(super) fn close(state: &mut State, id: EndId) {
    shutdown(state, id);
    let Some(end) = state.network.end(id) else { return };
    end.is_closed = true;
    end.arrived = VecDeque::new();
    if state.network.end(id.peer()).is_some_and(|peer| peer.is_closed) {
        state.network.connections.remove(&id.connection);
    }
}
