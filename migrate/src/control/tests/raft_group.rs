//! A group of members that a test leads by hand: every message goes through its bytes, disks are always done, and members
//! can be cut off.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::codec::{Replay, decode_message, encode_message, encode_persist};
use super::super::raft::*;
use super::*;

/// One member and what it said.
pub(super) struct Member {
    config: RaftConfig,
    pub(super) core: RaftCore,
    disk: Vec<Vec<u8>>,
    pub(super) committed: Vec<RaftEntry>,
    pub(super) rounds: Vec<(u64, u64)>,
}

impl Member {
    fn start(config: RaftConfig, disk: Vec<Vec<u8>>) -> Member {
        let mut replay = Replay::new(config.start_index);
        disk.iter().for_each(|record| replay.push(record).unwrap());
        // Apart from each other, so that elections need no second try.
        let spread = u64::from(config.id.0) * 3;
        let core = RaftCore::new(&config, replay.finish(), Box::new(move || spread)).unwrap();
        Member { config, core, disk, committed: Vec::new(), rounds: Vec::new() }
    }
}

/// The members by number, and the messages between them.
pub(super) struct RaftGroup {
    pub(super) members: BTreeMap<u32, Member>,
    /// Who neither sends nor receives.
    pub(super) cut: BTreeSet<u32>,
    network: VecDeque<Vec<u8>>,
}

impl RaftGroup {
    pub(super) fn new(voters: u32, learners: u32) -> RaftGroup {
        let ids = |range: std::ops::RangeInclusive<u32>| range.map(NodeId).collect::<Vec<_>>();
        let config = |id| RaftConfig {
            id: NodeId(id),
            voters: ids(1..=voters),
            learners: ids(voters + 1..=voters + learners),
            start_index: 1,
            start_term: 1,
            election_ticks: 10,
            heartbeat_ticks: 2,
        };
        let members = (1..=voters + learners).map(|id| (id, Member::start(config(id), vec![]))).collect();
        RaftGroup { members, cut: BTreeSet::new(), network: VecDeque::new() }
    }

    pub(super) fn core(&mut self, id: u32) -> &mut RaftCore {
        &mut self.members.get_mut(&id).unwrap().core
    }

    pub(super) fn restart(&mut self, id: u32) {
        let member = self.members.remove(&id).unwrap();
        self.members.insert(id, Member::start(member.config, member.disk));
    }

    fn run_ready(&mut self, id: u32) {
        let member = self.members.get_mut(&id).unwrap();
        while let Some(ready) = member.core.ready() {
            member.committed.extend(ready.committed);
            member.rounds.extend(ready.rounds);
            member.disk.push(encode_persist(&ready.persist).unwrap());
            member.core.on_persisted(ready.number);
            let messages = ready.messages_now.iter().chain(&ready.messages_after);
            self.network.extend(messages.map(|message| encode_message(message).unwrap()));
        }
    }

    /// Runs until nobody has anything to do or to say.
    pub(super) fn settle(&mut self) {
        loop {
            for id in self.members.keys().copied().collect::<Vec<_>>() {
                self.run_ready(id);
            }
            let Some(bytes) = self.network.pop_front() else { return };
            let message = decode_message(&bytes).unwrap();
            if self.cut.contains(&message.from.0) || self.cut.contains(&message.to.0) {
                continue;
            }
            if let Some(member) = self.members.get_mut(&message.to.0) {
                // A member may be told of by those who know it no longer.
                let _ = member.core.step(message);
            }
        }
    }

    /// Time passes for all.
    pub(super) fn tick(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.members.values_mut().for_each(|member| member.core.tick());
            self.settle();
        }
    }

    /// Lets `id` be the first whose patience ends.
    pub(super) fn elect(&mut self, id: u32) {
        for _ in 0..100 {
            self.core(id).tick();
            self.settle();
            self.tick(1);
            if self.core(id).has_applied_own_term() {
                return;
            }
        }
        panic!("node {id} was not elected");
    }

    pub(super) fn propose(&mut self, leader: u32, data: u8) -> Proposed {
        let proposed = self.core(leader).propose(vec![vec![data]]).unwrap();
        self.settle();
        proposed
    }

    /// Who leads, as far as those think who are not cut off.
    pub(super) fn leaders(&self) -> Vec<u32> {
        let reachable = self.members.iter().filter(|(id, _)| !self.cut.contains(id));
        reachable.filter(|(_, member)| member.core.is_leader()).map(|(id, _)| *id).collect()
    }
}
