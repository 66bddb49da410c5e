//! What machines that fail and links that are cut do to connections.

use super::link::{Pair, next_try_ns};
use super::machine::Ending;
use super::net::{self, EndId, Life};
use super::world::{Happening, State};

/// When a peer of a machine that is back tries again, at the latest after this.
const SILENT_NS: u64 = 2_000_000_000;

/// All ends of connections, in a fixed order.
fn ends(state: &State) -> Vec<EndId> {
    let ids = state.network.connections.keys();
    ids.flat_map(|&connection| [0, 1].map(|end| EndId { connection, end })).collect()
}

/// The process of a machine has ended: its sockets are gone.
pub(super) fn end_sockets(state: &mut State, node: usize, ending: Ending) {
    let of_node = |listener: &super::connect::Listener| listener.node == node;
    let gone: Vec<u64> =
        state.network.listeners.iter().filter(|(_, listener)| of_node(listener)).map(|(id, _)| *id).collect();
    for id in gone {
        if let Some(listener) = state.network.listeners.remove(&id) {
            listener.acceptors.into_iter().for_each(|waker| state.wake(Some(waker)));
        }
    }
    state.network.attempts.retain(|_, attempt| attempt.node != node);
    for id in ends(state) {
        let is_here = |end: &mut net::End| end.machine == node && end.life == Life::Open;
        if !state.network.end(id).is_some_and(is_here) {
            continue;
        }
        match ending {
            Ending::Exit => net::shutdown(state, id),
            Ending::Kill if state.random.one_in(2) => net::shutdown(state, id),
            Ending::Kill => {
                lose_some(state, id);
                net::post_reset(state, id.peer());
            }
            Ending::PowerCut(_) => lose_some(state, id),
        }
        let life = if matches!(ending, Ending::PowerCut(_)) { Life::Silent } else { Life::Closed };
        if let Some(end) = state.network.end(id) {
            end.end_life(life);
            end.wakers().into_iter().for_each(|waker| state.wake(waker));
        }
        net::close_flow(state, id);
        net::remove_if_over(state, id.connection);
    }
}

/// Of what an end has sent only a first part arrives, and nothing of it over a blocked link.
fn lose_some(state: &mut State, id: EndId) {
    let Some(connection) = state.network.connections.get_mut(&id.connection) else { return };
    let peer = id.peer().end;
    let is_blocked = state.network.links.is_blocked(connection.pair_to(peer));
    let to = &mut connection.ends[peer];
    let kept = if is_blocked { 0 } else { state.random.index(to.under_way.len() + 1) };
    to.lose_after(kept);
}

/// A machine is up again: what its peers have sent meanwhile comes by its retransmission.
pub(super) fn power_is_back(state: &mut State, node: usize) {
    for id in ends(state) {
        let waits =
            |end: &mut net::End| end.machine == node && end.life == Life::Silent && !end.under_way.is_empty();
        if state.network.end(id).is_some_and(waits) {
            let delay_ns = next_try_ns(SILENT_NS, &mut state.random);
            state.schedule(delay_ns, Happening::Arrival(id));
        }
    }
}

/// Frees a link: what waited arrives by its retransmission.
pub(super) fn unblock(state: &mut State, pair: Pair) {
    let Some(since_ns) = state.network.links.unblock(pair) else { return };
    let held_ns = state.now_ns - since_ns;
    for id in ends(state) {
        let Some(connection) = state.network.connections.get_mut(&id.connection) else { continue };
        let (from, to) = connection.pair_to(id.end);
        let end = &mut connection.ends[id.end];
        if (from, to) == pair && !end.under_way.is_empty() {
            let at_ns = state.now_ns + next_try_ns(held_ns, &mut state.random);
            for parcel in &mut end.under_way {
                parcel.at_ns = parcel.at_ns.max(at_ns);
            }
            end.earliest_ns = end.earliest_ns.max(at_ns);
            state.schedule_at(at_ns, Happening::Arrival(id));
        }
        let Some(end) = state.network.end(id) else { continue };
        if (to, from) == pair && end.unacknowledged_bytes > 0 {
            let delay_ns = next_try_ns(held_ns, &mut state.random);
            state.schedule(delay_ns, Happening::Acknowledgement(id));
        }
    }
}

/// Frees all links, and takes their faults away.
pub(super) fn heal(state: &mut State) {
    for pair in state.network.links.blocked_pairs() {
        unblock(state, pair);
    }
    state.network.links.clear_faults();
}

/// Breaks every connection between two machines, at both ends.
pub(super) fn reset_connections(state: &mut State, a: usize, b: usize) {
    for id in ends(state) {
        let Some(connection) = state.network.connections.get_mut(&id.connection) else { continue };
        let pair = connection.pair_to(id.end);
        if pair != (a, b) && pair != (b, a) {
            continue;
        }
        let end = &mut connection.ends[id.end];
        end.lose_after(0);
        if end.life == Life::Open {
            end.reset();
            end.wakers().into_iter().for_each(|waker| state.wake(waker));
        }
        net::close_flow(state, id);
    }
}
