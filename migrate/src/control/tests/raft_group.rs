//! A group of members that a test leads by hand: every message goes through its bytes, disks are always done, and members
//! can be cut off.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::codec::{
    Replay, decode_entry, decode_map, decode_message, encode_entry, encode_map, encode_message,
    encode_persist,
};
use super::super::raft::*;
use super::*;

/// Nodes 1 to `voters` vote, those after them learn; nobody serves anything.
pub(super) fn genesis_map(voters: u32, learners: u32) -> ClusterMap {
    let nodes = (1..=voters + learners).map(|node| node_info(node, node <= voters)).collect();
    ClusterMap::genesis(Genesis { cluster: [7; 16], generation: 0, nodes, shards: vec![] }).unwrap()
}

/// The map that a member starts with.
pub(super) fn restored_map(genesis: &ClusterMap, restored: &Restored) -> ClusterMap {
    restored.snapshot.as_ref().map_or_else(|| genesis.clone(), |snapshot| decode_map(&snapshot.map).unwrap())
}

/// Does what an owner does with a committed entry. What is no entry is passed over.
pub(super) fn apply_entry(core: &mut RaftCore, map: &mut ClusterMap, entry: &RaftEntry) {
    let outcome = match decode_entry(&entry.data) {
        Ok(body) => Some(map.apply(entry.index, &body)),
        Err(_) => {
            map.skip(entry.index);
            None
        }
    };
    if entry.change == MembersChange::Voters {
        let voters = match &outcome {
            Some(Outcome::Applied(Effect::VotersSet { voters })) => Some(&voters[..]),
            _ => None,
        };
        core.finish_change(entry.index, voters);
    }
    match outcome {
        Some(Outcome::Applied(Effect::NodeAdded { node })) => core.add_learner(node),
        Some(Outcome::Applied(Effect::NodeRemoved { node })) => core.remove_learner(node),
        _ => {}
    }
}

/// One member and what it said.
pub(super) struct Member {
    pub(super) core: RaftCore,
    pub(super) map: ClusterMap,
    genesis: ClusterMap,
    disk: Vec<Vec<u8>>,
    pub(super) committed: Vec<RaftEntry>,
    pub(super) rounds: Vec<(u64, u64)>,
    /// How many snapshots it installed.
    pub(super) installed: usize,
}

impl Member {
    fn start(id: u32, genesis: ClusterMap, disk: Vec<Vec<u8>>) -> Member {
        let config = RaftConfig::of_genesis(NodeId(id), &genesis);
        let mut replay = Replay::new(config.start_index);
        disk.iter().for_each(|record| replay.push(record).unwrap());
        // Apart from each other, so that elections need no second try.
        let spread = u64::from(id) * 3;
        let restored = replay.finish();
        let map = restored_map(&genesis, &restored);
        let core = RaftCore::new(&config, restored, Box::new(move || spread)).unwrap();
        Member { core, map, genesis, disk, committed: Vec::new(), rounds: Vec::new(), installed: 0 }
    }

    /// Compacts the log, and begins the disk anew.
    pub(super) fn compact(&mut self) {
        self.core.compact(self.map.applied, encode_map(&self.map).unwrap()).unwrap();
        self.disk = vec![encode_persist(&self.core.kept()).unwrap()];
    }
}

/// The members by number, and the messages between them.
pub(super) struct RaftGroup {
    pub(super) members: BTreeMap<u32, Member>,
    /// Who neither sends nor receives.
    pub(super) cut: BTreeSet<u32>,
    /// A kind of message that gets lost.
    pub(super) lost: Option<RaftMessageKind>,
    network: VecDeque<Vec<u8>>,
    seq: u64,
}

impl RaftGroup {
    pub(super) fn new(voters: u32, learners: u32) -> RaftGroup {
        let genesis = genesis_map(voters, learners);
        let members = (1..=voters + learners).map(|id| (id, Member::start(id, genesis.clone(), vec![])));
        let members = members.collect();
        RaftGroup { members, cut: BTreeSet::new(), lost: None, network: VecDeque::new(), seq: 0 }
    }

    pub(super) fn core(&mut self, id: u32) -> &mut RaftCore {
        &mut self.members.get_mut(&id).unwrap().core
    }

    pub(super) fn member(&mut self, id: u32) -> &mut Member {
        self.members.get_mut(&id).unwrap()
    }

    pub(super) fn restart(&mut self, id: u32) {
        let member = self.members.remove(&id).unwrap();
        self.members.insert(id, Member::start(id, member.genesis, member.disk));
    }

    /// A member that the genesis does not name: it has nothing, and hears of itself from the others.
    pub(super) fn join(&mut self, id: u32) {
        let genesis = self.members[&1].genesis.clone();
        self.members.insert(id, Member::start(id, genesis, Vec::new()));
    }

    fn run_ready(&mut self, id: u32) {
        let member = self.members.get_mut(&id).unwrap();
        while let Some(ready) = member.core.ready() {
            if let Some(snapshot) = &ready.snapshot {
                member.map = decode_map(&snapshot.map).unwrap();
                member.installed += 1;
            }
            for entry in &ready.committed {
                apply_entry(&mut member.core, &mut member.map, entry);
            }
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
            let is_cut = self.cut.contains(&message.from.0) || self.cut.contains(&message.to.0);
            if is_cut || self.lost == Some(message.kind) {
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

    /// An encoded entry that has not been proposed before.
    pub(super) fn entry(&mut self, body: EntryBody) -> Vec<u8> {
        self.seq += 1;
        let origin = Origin { node: NodeId(1), boot: 1, seq: self.seq };
        encode_entry(&Entry { origin, at_ms: 0, body }).unwrap()
    }

    pub(super) fn propose_body(&mut self, leader: u32, body: EntryBody) -> Result<Proposed, ProposeError> {
        let entry = self.entry(body);
        let proposed = self.core(leader).propose(vec![entry]);
        self.settle();
        proposed
    }

    pub(super) fn set_voters(&mut self, leader: u32, voters: &[u32]) -> Result<Proposed, ProposeError> {
        let voters = voters.iter().map(|id| NodeId(*id)).collect();
        self.propose_body(leader, EntryBody::SetVoters { voters })
    }

    /// Whether what `leader` proposes now is decided without time passing.
    pub(super) fn can_decide(&mut self, leader: u32) -> bool {
        let index = self.propose(leader, 9).first_index;
        self.core(leader).status().applied >= index
    }

    /// The configuration that all named members agree on, and their maps too.
    pub(super) fn agreed(&self, ids: &[u32]) -> Members {
        let members = self.members[&ids[0]].core.members();
        for id in ids {
            let member = &self.members[id];
            assert_eq!(member.core.members(), members, "node {id} has another configuration");
            assert_eq!(member.map, self.members[&ids[0]].map, "node {id} has another map");
        }
        members
    }

    /// Who leads, as far as those think who are not cut off.
    pub(super) fn leaders(&self) -> Vec<u32> {
        let reachable = self.members.iter().filter(|(id, _)| !self.cut.contains(id));
        reachable.filter(|(_, member)| member.core.is_leader()).map(|(id, _)| *id).collect()
    }
}
