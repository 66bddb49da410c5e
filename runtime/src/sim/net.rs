//! The simulated network: connections of two ends that bytes reach after a latency, in order.
//!
//! Invariants:
//! - Bytes and the end of a stream arrive in the order in which they were sent (unless a middlebox reorders them).
//! - What is under way to an end, waits there to be received, or was received and could not be acknowledged, is at most
//!   [`BUFFER_BYTES`].
//! - A connection is removed when neither of its ends is open.
//! - Over a blocked link nothing arrives: parcels wait in their order.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::task::Waker;

use super::connect::{Attempt, Listener};
use super::link::Links;
use super::middlebox::{Flow, Piece};
use super::random::{hash, mix};
use super::world::{Happening, State};

/// What the kernel's buffers of one direction hold.
const BUFFER_BYTES: usize = 256 * 1024;
/// The most bytes that travel together.
const CHUNK_BYTES: usize = 64 * 1024;
/// The ports that are given out.
const FIRST_PORT: u16 = 20_000;
const LAST_PORT: u16 = 60_000;

/// All sockets of a simulation.
pub(super) struct Network {
    next_id: u64,
    next_port: u16,
    pub(super) listeners: BTreeMap<u64, Listener>,
    /// Which machine last listened on an address.
    pub(super) homes: BTreeMap<SocketAddr, usize>,
    pub(super) attempts: BTreeMap<u64, Attempt>,
    pub(super) connections: BTreeMap<u64, Connection>,
    pub(super) links: Links,
    pub(super) has_middlebox: bool,
    /// What the middlebox has not been told yet.
    pub(super) closed_flows: Vec<Flow>,
}

pub(super) struct Connection {
    pub(super) ends: [End; 2],
    /// The port that was connected to.
    port: u16,
}

/// Who is at an end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// A process has it.
    Open,
    /// It was closed, and the peer was told.
    Closed,
    /// Its machine lost its power: nobody was told.
    Silent,
}

/// One end: what has come for it, and who waits there.
pub(super) struct End {
    pub(super) machine: usize,
    pub(super) address: SocketAddr,
    pub(super) life: Life,
    received: Received,
    /// What is sent to this end, in the order of arrival.
    pub(super) under_way: VecDeque<Parcel>,
    under_way_bytes: usize,
    /// What was received here while the way back was blocked.
    pub(super) unacknowledged_bytes: usize,
    /// Nothing that is sent to this end may arrive earlier, a middlebox aside.
    pub(super) earliest_ns: u64,
    /// The peer's end of the stream has arrived: nothing follows, and sends are in vain.
    is_peer_gone: bool,
    /// The next receive and the next send are told of a reset.
    has_recv_reset: bool,
    has_send_reset: bool,
    /// `shutdown` was called here.
    is_shut: bool,
    /// The middlebox was told that nothing more is sent from here.
    is_flow_closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Something that is under way.
pub(super) struct Parcel {
    pub(super) at_ns: u64,
    what: What,
}

enum What {
    Bytes(Vec<u8>),
    /// The end of the stream.
    End,
    Reset,
}

/// What has arrived at an end.
#[derive(Default)]
struct Received {
    chunks: VecDeque<Vec<u8>>,
    /// How much of the first chunk was taken.
    taken: usize,
    len: usize,
}

/// Names one end of a connection: 0 has connected, 1 was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EndId {
    pub(super) connection: u64,
    pub(super) end: usize,
}

/// What a send has sent.
pub(super) struct Sent {
    pub(super) bytes: usize,
    /// What the middlebox is to see before it goes on its way.
    pub(super) passing: Option<Passing>,
}

pub(super) struct Passing {
    pub(super) flow: Flow,
    pub(super) bytes: Vec<u8>,
    /// When it would arrive without a middlebox.
    pub(super) at_ns: u64,
}

impl EndId {
    pub(super) fn peer(self) -> Self {
        Self { connection: self.connection, end: 1 - self.end }
    }
}

impl Received {
    fn push(&mut self, chunk: Vec<u8>) {
        self.len += chunk.len();
        self.chunks.push_back(chunk);
    }

    /// Moves the first `count` bytes, which are there, to the end of `into`.
    fn take(&mut self, count: usize, into: &mut Vec<u8>) {
        let mut left = count;
        while let Some(chunk) = self.chunks.front() {
            let part = &chunk[self.taken..];
            if part.len() > left {
                into.extend_from_slice(&part[..left]);
                self.taken += left;
                break;
            }
            into.extend_from_slice(part);
            left -= part.len();
            self.taken = 0;
            self.chunks.pop_front();
        }
        self.len -= count;
    }
}

impl End {
    pub(super) fn new(machine: usize, address: SocketAddr) -> Self {
        Self {
            machine,
            address,
            life: Life::Open,
            received: Received::default(),
            under_way: VecDeque::new(),
            under_way_bytes: 0,
            unacknowledged_bytes: 0,
            earliest_ns: 0,
            is_peer_gone: false,
            has_recv_reset: false,
            has_send_reset: false,
            is_shut: false,
            is_flow_closed: false,
            reader: None,
            writer: None,
        }
    }

    fn room(&self) -> usize {
        BUFFER_BYTES
            .saturating_sub(self.received.len)
            .saturating_sub(self.under_way_bytes)
            .saturating_sub(self.unacknowledged_bytes)
    }

    fn push(&mut self, at_ns: u64, what: What) {
        if let What::Bytes(bytes) = &what {
            self.under_way_bytes += bytes.len();
        }
        let place = self.under_way.iter().rposition(|earlier| earlier.at_ns <= at_ns).map_or(0, |at| at + 1);
        self.under_way.insert(place, Parcel { at_ns, what });
    }

    /// Only the first `kept` parcels arrive.
    pub(super) fn lose_after(&mut self, kept: usize) {
        for parcel in self.under_way.drain(kept.min(self.under_way.len())..) {
            if let What::Bytes(bytes) = &parcel.what {
                self.under_way_bytes -= bytes.len();
            }
        }
    }

    /// Nobody is at this end any more.
    pub(super) fn end_life(&mut self, life: Life) {
        self.life = life;
        self.received = Received::default();
    }

    /// A reset has come.
    pub(super) fn reset(&mut self) {
        self.is_peer_gone = true;
        self.has_recv_reset = true;
        self.has_send_reset = true;
    }

    pub(super) fn wakers(&mut self) -> [Option<Waker>; 2] {
        [self.reader.take(), self.writer.take()]
    }
}

impl Network {
    pub(super) fn new() -> Self {
        Self {
            next_id: 0,
            next_port: FIRST_PORT,
            listeners: BTreeMap::new(),
            homes: BTreeMap::new(),
            attempts: BTreeMap::new(),
            connections: BTreeMap::new(),
            links: Links::new(),
            has_middlebox: false,
            closed_flows: Vec::new(),
        }
    }

    pub(super) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn new_port(&mut self) -> u16 {
        loop {
            let port = self.next_port;
            self.next_port = if port == LAST_PORT { FIRST_PORT } else { port + 1 };
            if !self.listeners.values().any(|listener| listener.address.port() == port) {
                return port;
            }
        }
    }

    pub(super) fn add_connection(&mut self, ends: [End; 2]) -> u64 {
        let connection = self.new_id();
        let port = ends[1].address.port();
        self.connections.insert(connection, Connection { ends, port });
        connection
    }

    pub(super) fn end(&mut self, id: EndId) -> Option<&mut End> {
        self.connections.get_mut(&id.connection).map(|connection| &mut connection.ends[id.end])
    }
}

impl Connection {
    /// From which machine to which one what is sent to an end goes.
    pub(super) fn pair_to(&self, end: usize) -> (usize, usize) {
        (self.ends[1 - end].machine, self.ends[end].machine)
    }

    pub(super) fn is_over(&self) -> bool {
        self.ends.iter().all(|end| end.life != Life::Open)
    }
}

/// Which direction what is sent from an end is.
fn flow_from(state: &State, id: EndId) -> Option<Flow> {
    let connection = state.network.connections.get(&id.connection)?;
    let name = |end: usize| state.machines[connection.ends[end].machine].name.clone();
    Some(Flow {
        connection: id.connection,
        is_from_connector: id.end == 0,
        from: name(id.end),
        to: name(1 - id.end),
        port: connection.port,
    })
}

/// Nothing more is sent from an end.
pub(super) fn close_flow(state: &mut State, id: EndId) {
    let Some(end) = state.network.end(id) else { return };
    if !std::mem::replace(&mut end.is_flow_closed, true) && state.network.has_middlebox {
        let flow = flow_from(state, id);
        state.network.closed_flows.extend(flow);
    }
}

/// When `bytes` that are sent to an end now arrive.
fn arrival_ns(state: &mut State, to: EndId, bytes: usize) -> u64 {
    let Some(connection) = state.network.connections.get_mut(&to.connection) else { return state.now_ns };
    let pair = connection.pair_to(to.end);
    let at_ns = state.network.links.arrival_ns(pair, bytes, state.now_ns, &mut state.random);
    let end = &mut connection.ends[to.end];
    end.earliest_ns = end.earliest_ns.max(at_ns);
    end.earliest_ns
}

fn post(state: &mut State, to: EndId, at_ns: u64, what: What) {
    let Some(end) = state.network.end(to) else { return };
    end.push(at_ns, what);
    state.schedule_at(at_ns, Happening::Arrival(to));
}

/// Sends something that comes after all that is under way.
fn post_last(state: &mut State, to: EndId, what: What) {
    let at_ns = arrival_ns(state, to, 0);
    let last_ns = state.network.end(to).and_then(|end| end.under_way.back()).map_or(0, |last| last.at_ns);
    post(state, to, at_ns.max(last_ns), what);
}

/// Sends a reset to an end.
pub(super) fn post_reset(state: &mut State, to: EndId) {
    post_last(state, to, What::Reset);
}

/// Sends the front of `bytes` as far as there is room, and says how much; None after the waker was left.
pub(super) fn send(state: &mut State, id: EndId, bytes: &[u8], waker: &Waker) -> Option<io::Result<Sent>> {
    let to = id.peer();
    let Some(connection) = state.network.connections.get_mut(&id.connection) else {
        return Some(Err(io::ErrorKind::BrokenPipe.into()));
    };
    let end = &mut connection.ends[id.end];
    if std::mem::replace(&mut end.has_send_reset, false) {
        return Some(Err(io::ErrorKind::ConnectionReset.into()));
    }
    if end.is_shut || end.is_peer_gone || end.life != Life::Open {
        return Some(Err(io::ErrorKind::BrokenPipe.into()));
    }
    let room = connection.ends[to.end].room();
    if room == 0 {
        connection.ends[id.end].writer = Some(waker.clone());
        return None;
    }
    let chunk = &bytes[..bytes.len().min(room).min(CHUNK_BYTES)];
    let count = chunk.len();
    state.trace(hash(chunk) ^ mix(id.connection << 1 | id.end as u64));
    let at_ns = arrival_ns(state, to, count);
    let passing = if state.network.has_middlebox { flow_from(state, id) } else { None };
    let passing = match passing {
        Some(flow) => Some(Passing { flow, bytes: chunk.to_vec(), at_ns }),
        None => {
            post(state, to, at_ns, What::Bytes(chunk.to_vec()));
            None
        }
    };
    Some(Ok(Sent { bytes: count, passing }))
}

/// Sends what the middlebox has made of what was sent from an end.
pub(super) fn send_pieces(state: &mut State, id: EndId, base_ns: u64, pieces: Vec<Piece>) {
    for piece in pieces.into_iter().filter(|piece| !piece.bytes.is_empty()) {
        let at_ns = base_ns.saturating_add(piece.delay_ns);
        post(state, id.peer(), at_ns, What::Bytes(piece.bytes));
    }
}

/// What is due arrives at an end, unless its link is blocked.
pub(super) fn arrive(state: &mut State, id: EndId) {
    let now_ns = state.now_ns;
    let Some(connection) = state.network.connections.get_mut(&id.connection) else { return };
    if state.network.links.is_blocked(connection.pair_to(id.end)) {
        return;
    }
    let end = &mut connection.ends[id.end];
    if end.under_way.front().is_none_or(|parcel| parcel.at_ns > now_ns) {
        return;
    }
    if end.life == Life::Silent {
        // While the machine is off, its peers try again and again. Then it knows nothing of the connection.
        if state.machines[end.machine].has_power {
            end.lose_after(0);
            post_reset(state, id.peer());
        }
        return;
    }
    while let Some(parcel) = end.under_way.pop_front_if(|parcel| parcel.at_ns <= now_ns) {
        match parcel.what {
            What::Bytes(bytes) => {
                end.under_way_bytes -= bytes.len();
                if end.life == Life::Open {
                    end.received.push(bytes);
                }
            }
            What::End => end.is_peer_gone = true,
            What::Reset => end.reset(),
        }
    }
    let [reader, writer] = if end.is_peer_gone { end.wakers() } else { [end.reader.take(), None] };
    state.wake(reader);
    state.wake(writer);
}

/// Receives at most as much as `buf` has room for (not zero); none at the end of the stream; None after the waker was
/// left.
pub(super) fn recv(
    state: &mut State,
    id: EndId,
    buf: &mut Vec<u8>,
    waker: &Waker,
) -> Option<io::Result<usize>> {
    let Some(connection) = state.network.connections.get_mut(&id.connection) else { return Some(Ok(0)) };
    let (to, from) = connection.pair_to(id.end);
    let end = &mut connection.ends[id.end];
    let there = end.received.len.min(buf.capacity() - buf.len());
    if there == 0 {
        if std::mem::replace(&mut end.has_recv_reset, false) {
            return Some(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if end.is_peer_gone || end.is_shut || end.life != Life::Open {
            return Some(Ok(0));
        }
        end.reader = Some(waker.clone());
        return None;
    }
    // Part of what is there, now and then: nobody may rely on pieces.
    let count = if state.random.one_in(4) { 1 + state.random.index(there) } else { there };
    end.received.take(count, buf);
    if state.network.links.is_blocked((from, to)) {
        end.unacknowledged_bytes += count;
    } else {
        let writer = connection.ends[id.peer().end].writer.take();
        state.wake(writer);
    }
    Some(Ok(count))
}

/// The peer of an end learns how much was received there.
pub(super) fn acknowledge(state: &mut State, id: EndId) {
    let Some(connection) = state.network.connections.get_mut(&id.connection) else { return };
    let (to, from) = connection.pair_to(id.end);
    if state.network.links.is_blocked((from, to)) {
        return;
    }
    connection.ends[id.end].unacknowledged_bytes = 0;
    let writer = connection.ends[id.peer().end].writer.take();
    state.wake(writer);
}

/// Ends the stream in both directions; what has arrived can still be received.
pub(super) fn shutdown(state: &mut State, id: EndId) {
    let Some(end) = state.network.end(id) else { return };
    if end.life != Life::Open || std::mem::replace(&mut end.is_shut, true) {
        return;
    }
    let [reader, writer] = end.wakers();
    state.wake(reader);
    state.wake(writer);
    post_last(state, id.peer(), What::End);
    close_flow(state, id);
}

/// The end's last handle is gone.
pub(super) fn close(state: &mut State, id: EndId) {
    shutdown(state, id);
    let Some(end) = state.network.end(id) else { return };
    if end.life == Life::Open {
        end.end_life(Life::Closed);
    }
    remove_if_over(state, id.connection);
}

/// Removes a connection when nobody is at either end.
pub(super) fn remove_if_over(state: &mut State, connection: u64) {
    if state.network.connections.get(&connection).is_some_and(Connection::is_over) {
        close_flow(state, EndId { connection, end: 0 });
        close_flow(state, EndId { connection, end: 1 });
        state.network.connections.remove(&connection);
    }
}
