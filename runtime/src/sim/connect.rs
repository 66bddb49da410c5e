//! Listeners of the simulated network, and attempts to connect to them.
//!
//! Invariants:
//! - An attempt is answered by the listeners that exist when its time has come.
//! - It is refused only by a machine that is up, over links that are free. Otherwise it is made again, until it is given
//!   up after [`GIVE_UP_NS`].

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::task::Waker;

use super::faults::LinkFaults;
use super::net::{self, End, EndId};
use super::node::NodePort;
use super::random::mix;
use super::world::{Happening, Operation, Promise, State, promise};

/// Latency of a connect in nanoseconds, from and to.
const CONNECT_NS: (u64, u64) = (50_000, 300_000);
/// When an attempt that got no answer is made again, in nanoseconds, from and to.
const RETRY_NS: (u64, u64) = (100_000_000, 1_000_000_000);
/// When an attempt that got no answer is given up.
const GIVE_UP_NS: u64 = 60_000_000_000;
/// Connections that may wait for being accepted.
const BACKLOG: usize = 1024;

/// A listening socket.
pub(super) struct Listener {
    pub(super) node: usize,
    pub(super) address: SocketAddr,
    /// Connections whose far end (number 1) is to be accepted.
    pub(super) waiting: VecDeque<u64>,
    pub(super) acceptors: Vec<Waker>,
}

/// Somebody connects.
pub(super) struct Attempt {
    pub(super) node: usize,
    address: SocketAddr,
    give_up_ns: u64,
    promise: Promise<io::Result<EndId>>,
}

/// Who is at an address.
enum Target {
    /// Listeners of a machine.
    Listeners(usize, Vec<u64>),
    /// A machine on which nobody listens now.
    Machine(usize),
    Nobody,
}

/// Whether a listener on `bound` gets what is meant for `address`.
fn answers(bound: SocketAddr, address: SocketAddr) -> bool {
    bound.port() == address.port()
        && (bound.ip() == address.ip() || bound.ip().is_unspecified() || address.ip().is_unspecified())
}

/// Listens on `address`, which several cores of one node may do.
pub(super) fn listen(
    state: &mut State,
    node: usize,
    mut address: SocketAddr,
) -> io::Result<(u64, SocketAddr)> {
    let network = &mut state.network;
    if address.port() == 0 {
        address.set_port(network.new_port());
    }
    let is_taken = network
        .listeners
        .values()
        .any(|listener| listener.node != node && answers(listener.address, address));
    if is_taken {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another simulated node listens on {address}"),
        ));
    }
    let id = network.new_id();
    let listener = Listener { node, address, waiting: VecDeque::new(), acceptors: Vec::new() };
    network.listeners.insert(id, listener);
    network.homes.insert(address, node);
    Ok((id, address))
}

/// The next connection, or None after the waker was left.
pub(super) fn accept(state: &mut State, listener: u64, waker: &Waker) -> Option<(EndId, SocketAddr)> {
    let network = &mut state.network;
    let of_listener = network.listeners.get_mut(&listener)?;
    while let Some(connection) = of_listener.waiting.pop_front() {
        if let Some(both) = network.connections.get(&connection) {
            return Some((EndId { connection, end: 1 }, both.ends[0].address));
        }
    }
    if !of_listener.acceptors.iter().any(|registered| registered.will_wake(waker)) {
        of_listener.acceptors.push(waker.clone());
    }
    None
}

/// Stops listening; connections that were not accepted end.
pub(super) fn close_listener(state: &mut State, listener: u64) {
    let Some(listener) = state.network.listeners.remove(&listener) else { return };
    for connection in listener.waiting {
        net::close(state, EndId { connection, end: 1 });
    }
}

fn target(state: &State, address: SocketAddr) -> Target {
    let network = &state.network;
    let found = network.listeners.iter().filter(|(_, listener)| answers(listener.address, address));
    let listeners: Vec<u64> = found.clone().map(|(id, _)| *id).collect();
    if let Some(node) = found.map(|(_, listener)| listener.node).next() {
        return Target::Listeners(node, listeners);
    }
    let home = network.homes.iter().find(|(bound, _)| answers(**bound, address));
    home.map_or(Target::Nobody, |(_, node)| Target::Machine(*node))
}

/// Connects to `address`: the near end of the new connection.
pub(super) fn connect(port: &NodePort, address: SocketAddr) -> Operation<io::Result<EndId>> {
    let (promise, operation) = promise(&port.world, |state, result| {
        if let Ok(end) = result {
            net::close(state, end);
        }
    });
    port.world.with(|state| {
        if !state.machines[port.node].runs(port.process) {
            promise.keep(state, Err(io::ErrorKind::NetworkDown.into()));
            return;
        }
        state.trace(mix(port.node as u64) ^ u64::from(address.port()));
        let latency_ns = match target(state, address) {
            Target::Listeners(to, _) | Target::Machine(to) => handshake_ns(state, port.node, to),
            Target::Nobody => state.random.between(CONNECT_NS.0, CONNECT_NS.1),
        };
        let attempt = state.network.new_id();
        let give_up_ns = state.now_ns + GIVE_UP_NS;
        let under_way = Attempt { node: port.node, address, give_up_ns, promise };
        state.network.attempts.insert(attempt, under_way);
        state.schedule(latency_ns, Happening::Connect(attempt));
    });
    operation
}

/// Draws how long a question and its answer take.
fn handshake_ns(state: &mut State, from: usize, to: usize) -> u64 {
    let ways = [(from, to), (to, from)];
    if ways.iter().all(|way| state.network.links.of(*way) == LinkFaults::default()) {
        return state.random.between(CONNECT_NS.0, CONNECT_NS.1);
    }
    let now_ns = state.now_ns;
    let there = state.network.links.arrival_ns(ways[0], 0, now_ns, &mut state.random);
    state.network.links.arrival_ns(ways[1], 0, there, &mut state.random) - now_ns
}

/// An attempt's time has come.
pub(super) fn answer(state: &mut State, attempt: u64) {
    let Some(under_way) = state.network.attempts.remove(&attempt) else { return };
    if under_way.promise.is_unwanted() {
        return;
    }
    let (from, address) = (under_way.node, under_way.address);
    let is_cut_off = |state: &State, to: usize| {
        let links = &state.network.links;
        !state.machines[to].has_power || links.is_blocked((from, to)) || links.is_blocked((to, from))
    };
    let result = match target(state, address) {
        Target::Listeners(to, _) | Target::Machine(to) if is_cut_off(state, to) => None,
        Target::Listeners(_, listeners) => {
            let has_room = |id: &u64| {
                state.network.listeners.get(id).is_some_and(|listener| listener.waiting.len() < BACKLOG)
            };
            let listeners: Vec<u64> = listeners.into_iter().filter(has_room).collect();
            // As with a full backlog on the machine: no answer.
            (!listeners.is_empty()).then(|| Ok(establish(state, from, address, &listeners)))
        }
        Target::Machine(_) | Target::Nobody => Some(Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            format!("nobody listens on {address}"),
        ))),
    };
    match result {
        Some(result) => under_way.promise.keep(state, result),
        None if state.now_ns >= under_way.give_up_ns => {
            under_way.promise.keep(state, Err(io::ErrorKind::TimedOut.into()));
        }
        None => {
            let again_ns = state.now_ns + state.random.between(RETRY_NS.0, RETRY_NS.1);
            state.schedule_at(again_ns.min(under_way.give_up_ns), Happening::Connect(attempt));
            state.network.attempts.insert(attempt, under_way);
        }
    }
}

/// Makes a connection to one of `listeners`, which exist.
fn establish(state: &mut State, from: usize, address: SocketAddr, listeners: &[u64]) -> EndId {
    let listener = listeners[state.random.index(listeners.len())];
    let network = &mut state.network;
    let near = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), network.new_port());
    let to = network.listeners[&listener].node;
    let connection = network.add_connection([End::new(from, near), End::new(to, address)]);
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
    EndId { connection, end: 0 }
}
