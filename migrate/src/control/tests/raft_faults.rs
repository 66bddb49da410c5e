//! Whole groups in memory: messages are lost, repeated and reordered, disks are slow, members crash and restart from what
//! their disk had. Whatever was decided is never lost or decided otherwise, and once the faults end, all agree.

use std::collections::{BTreeMap, VecDeque};

use super::super::codec::{
    Replay, decode_map, decode_message, encode_entry, encode_map, encode_message, encode_persist,
};
use super::super::raft::*;
use super::raft_group::{apply_entry, genesis_map, restored_map};
use super::*;

/// splitmix64: a seed is all that a run depends on.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// One member, its disk, and what is on its way there.
struct Member {
    config: RaftConfig,
    core: Option<RaftCore>,
    disk: Vec<Vec<u8>>,
    cached: VecDeque<(u64, Vec<u8>, Vec<RaftMessage>)>,
    map: ClusterMap,
}

struct Group {
    genesis: ClusterMap,
    /// Whether the voters change too.
    changes: bool,
    changed: u64,
    /// Snapshots that members took from others.
    installed: u64,
    compacted: u64,
    random: Random,
    members: Vec<Member>,
    network: Vec<Vec<u8>>,
    /// What was decided, as the first member to say so said it.
    decided: BTreeMap<u64, RaftEntry>,
    faults: bool,
    /// Proposals are made until this much is decided.
    goal: usize,
    proposed: u64,
    crashes: u64,
    trace: u64,
}

impl Group {
    fn new(seed: u64, voters: u32, learners: u32) -> Group {
        let genesis = genesis_map(voters, learners);
        let member = |id| Member {
            // Short, so that snapshots are needed often.
            config: RaftConfig { tail_entries: 3, ..RaftConfig::of_genesis(NodeId(id), &genesis) },
            core: None,
            disk: vec![],
            cached: VecDeque::new(),
            map: genesis.clone(),
        };
        let mut group = Group {
            random: Random(seed),
            members: (1..=voters + learners).map(member).collect(),
            genesis,
            changes: false,
            changed: 0,
            installed: 0,
            compacted: 0,
            network: vec![],
            decided: BTreeMap::new(),
            faults: true,
            goal: usize::MAX,
            proposed: 0,
            crashes: 0,
            trace: 0,
        };
        (0..group.members.len()).for_each(|member| group.start(member));
        group
    }

    fn start(&mut self, member: usize) {
        let mut random = Random(self.random.next());
        let member = &mut self.members[member];
        let mut replay = Replay::new(1);
        member.disk.iter().for_each(|record| replay.push(record).unwrap());
        let restored = replay.finish();
        member.map = restored_map(&self.genesis, &restored);
        member.core = Some(RaftCore::new(&member.config, restored, Box::new(move || random.next())).unwrap());
    }

    /// What the disk did not have yet is gone, except that some of it may have got there.
    fn crash(&mut self, member: usize) {
        let member = &mut self.members[member];
        let survive = self.random.below(member.cached.len() as u64 + 1);
        member.disk.extend(member.cached.drain(..).take(survive as usize).map(|(_, record, _)| record));
        member.cached.clear();
        member.core = None;
        self.crashes += 1;
    }

    fn send(&mut self, messages: Vec<RaftMessage>) {
        self.network.extend(messages.iter().map(|message| encode_message(message).unwrap()));
    }

    fn run_ready(&mut self, member: usize) {
        loop {
            let Some(ready) = self.members[member].core.as_mut().and_then(|core| core.ready()) else {
                return;
            };
            self.send(ready.messages_now);
            if let Some(snapshot) = &ready.snapshot {
                self.members[member].map = decode_map(&snapshot.map).unwrap();
                self.installed += 1;
            }
            for entry in ready.committed {
                // The map asserts that entries come in order, each once.
                let Member { core, map, .. } = &mut self.members[member];
                let voters = map.voters();
                apply_entry(core.as_mut().unwrap(), map, &entry);
                self.changed += u64::from(map.voters() != voters);
                let decided = self.decided.entry(entry.index).or_insert_with(|| entry.clone());
                assert_eq!(*decided, entry, "two members decided otherwise");
            }
            let record = encode_persist(&ready.persist).unwrap();
            self.members[member].cached.push_back((ready.number, record, ready.messages_after));
        }
    }

    fn sync(&mut self, member: usize, records: usize) {
        for _ in 0..records {
            let Some((number, record, messages)) = self.members[member].cached.pop_front() else { return };
            self.members[member].disk.push(record);
            self.members[member].core.as_mut().unwrap().on_persisted(number);
            self.send(messages);
            self.run_ready(member);
        }
    }

    fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let at = self.random.below(self.network.len() as u64) as usize;
        let (at, fate) = if self.faults { (at, self.random.below(20)) } else { (0, 19) };
        let bytes = match fate {
            0 => self.network[at].clone(),
            _ if self.faults => self.network.swap_remove(at),
            _ => self.network.remove(at),
        };
        if fate == 1 {
            return;
        }
        let message = decode_message(&bytes).unwrap();
        let to = message.to.0 as usize - 1;
        if let Some(core) = &mut self.members[to].core {
            // Late messages may be refused; nothing may panic.
            let _ = core.step(message);
            self.run_ready(to);
        }
    }

    /// A log is begun anew with all that the member has: what was on its way to the disk is there with it.
    fn compact(&mut self, member: usize) {
        let Member { core: Some(core), map, disk, cached, .. } = &mut self.members[member] else { return };
        // What is applied may be ahead of the disk: then it is tried again.
        core.stay_in_step(core.applied() != map.applied);
        if core.applied() != map.applied {
            return;
        }
        core.compact(map.applied, encode_map(map).unwrap()).unwrap();
        if core.snapshot_index() == map.applied {
            let nothing = encode_persist(&Persist::default()).unwrap();
            cached.iter_mut().for_each(|(_, record, _)| record.clone_from(&nothing));
            *disk = vec![encode_persist(&core.kept()).unwrap()];
            self.compacted += 1;
        }
    }

    fn propose(&mut self) {
        for member in 0..self.members.len() {
            let Some(core) = &mut self.members[member].core else { continue };
            let entries =
                (0..3).map(|entry| (self.proposed * 3 + entry + 1).to_le_bytes().to_vec()).collect();
            if core.is_leader() && core.propose(entries).is_ok() {
                self.proposed += 1;
            }
            self.run_ready(member);
        }
    }

    /// Asks for any voters, also for more than there are nodes.
    fn change_voters(&mut self) {
        let nodes = self.members.len() as u64 + self.random.below(8) / 7;
        let (mask, first) = (self.random.next(), 1 + self.random.below(nodes));
        let voters = (1..=nodes)
            .filter(|id| *id == first || mask >> id & 1 == 1)
            .map(|id| NodeId(id as u32))
            .collect();
        self.proposed += 1;
        let origin = Origin { node: NodeId(1), boot: 1, seq: self.proposed };
        let entry = encode_entry(&Entry { origin, at_ms: 0, body: EntryBody::SetVoters { voters } }).unwrap();
        for member in 0..self.members.len() {
            if let Some(core) = &mut self.members[member].core {
                let _ = core.propose(vec![entry.clone()]);
            }
            self.run_ready(member);
        }
    }

    fn step(&mut self) {
        let member = self.random.below(self.members.len() as u64) as usize;
        match self.random.below(if self.faults { 1_000 } else { 990 }) {
            0..700 => self.deliver(),
            700..850 => {
                let records = self.random.below(3) as usize;
                self.sync(member, records);
            }
            850..966 => {
                if let Some(core) = &mut self.members[member].core {
                    core.tick();
                }
                self.run_ready(member);
            }
            966..970 => self.compact(member),
            970..975 if self.changes && self.faults => self.change_voters(),
            970..990 if self.decided.len() < self.goal => self.propose(),
            970..990 => {}
            _ if self.members[member].core.is_some() => self.crash(member),
            _ => self.start(member),
        }
        if self.members[member].core.is_none() && self.random.below(20) == 0 {
            self.start(member);
        }
        self.trace = self.trace.rotate_left(7) ^ self.network.len() as u64 ^ ((member as u64) << 32);
    }

    /// Ends the faults and demands that everybody gets to the same log, with something new in it.
    fn heal(&mut self) {
        self.faults = false;
        for member in 0..self.members.len() {
            if self.members[member].core.is_none() {
                self.start(member);
            }
        }
        self.goal = self.decided.len() + 10;
        for _ in 0..200_000 {
            self.step();
            let last = self.decided.keys().last().copied().unwrap_or(1);
            if self.decided.len() >= self.goal && self.members.iter().all(|member| member.map.applied == last)
            {
                return;
            }
        }
        panic!("the group did not recover");
    }

    fn run(seed: u64, voters: u32, learners: u32, changes: bool) -> Group {
        let mut group = Group::new(seed, voters, learners);
        group.changes = changes;
        for _ in 0..10_000 {
            group.step();
        }
        group.heal();
        let indexes: Vec<u64> = group.decided.keys().copied().collect();
        assert_eq!(indexes, (2..2 + indexes.len() as u64).collect::<Vec<_>>(), "no gap");
        let first = &group.members[0];
        let members = first.core.as_ref().unwrap().members();
        assert!(members.is_joint() || members.voters == first.map.voters());
        for member in &group.members {
            assert_eq!(member.map, first.map);
            assert_eq!(member.core.as_ref().unwrap().members(), members);
        }
        group
    }
}

fn run_many(voters: u32, learners: u32, seeds: std::ops::Range<u64>) {
    let (mut crashes, mut decided) = (0, 0);
    for seed in seeds {
        let group = Group::run(seed, voters, learners, false);
        crashes += group.crashes;
        decided += group.decided.len();
    }
    assert!(crashes > 50 && decided > 300, "{crashes} crashes, {decided} entries: the runs did not try much");
}

#[test]
fn three_voters() {
    run_many(3, 0, 0..10);
}

#[test]
fn five_voters_and_a_learner() {
    run_many(5, 1, 100..106);
}

#[test]
fn one_voter_and_two_learners() {
    run_many(1, 2, 200..210);
}

#[test]
fn two_voters() {
    run_many(2, 0, 300..306);
}

#[test]
fn a_seed_decides_the_whole_run() {
    let (first, second) = (Group::run(7, 3, 1, true), Group::run(7, 3, 1, true));
    assert_eq!((first.trace, first.decided), (second.trace, second.decided));
}

#[test]
fn voters_that_change_all_the_time() {
    let (mut crashes, mut changed, mut installed, mut compacted) = (0, 0, 0, 0);
    for seed in 400..414 {
        let group = Group::run(seed, 1 + (seed % 4) as u32, 4 - (seed % 4) as u32, true);
        crashes += group.crashes;
        changed += group.changed;
        installed += group.installed;
        compacted += group.compacted;
    }
    let tried =
        format!("{crashes} crashes, {changed} changes seen, {compacted} compactions, {installed} installed");
    assert!(crashes > 50 && changed > 80 && compacted > 100 && installed > 8, "{tried}: not much");
}
