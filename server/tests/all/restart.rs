//! Nodes die by SIGKILL while they are written to, and come back: what was acknowledged as synced is there, and no slot is
//! left frozen or without an owner.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::common::writers::{StopOnDrop, Written, write_until_stopped};
use crate::common::{Cluster, NodeProcess, key_of, newest_job, until};
use lockgate::client::{Command, Connection, Outcome, Pipeline, Reply};

/// Keys that a writer goes round.
const KEYS: u32 = 40;
/// Sends batches of writes to one node, each closed by WAITAOF, on a new connection whenever one breaks.
fn write_with_waitaof(node: SocketAddr, keys: &[String], written: &Written) {
    let timeouts = crate::common::patient().timeouts;
    let mut connection = Connection::connect(node, timeouts);
    for number in 1.. {
        if written.stopped() {
            return;
        }
        let Some(open) = connection.as_mut().ok().filter(|connection| !connection.is_broken()) else {
            std::thread::sleep(crate::common::LOOK_PAUSE);
            connection = Connection::connect(node, timeouts);
            continue;
        };
        let from = number as usize * 5 % keys.len();
        let keys = &keys[from..(from + 5).min(keys.len())];
        let mut batch = Pipeline::new();
        for key in keys {
            batch.push(&[b"SET", key.as_bytes(), number.to_string().as_bytes()]);
        }
        batch.push(&[b"WAITAOF", b"1", b"0", b"30000"]);
        written.sending(keys, number);
        let (replies, _) = open.pipeline(&batch);
        let stored = replies.iter().filter(|reply| **reply == Reply::Simple("OK".into())).count();
        let synced = matches!(replies.last(), Some(Reply::Array(counts)) if counts[0] == Reply::Integer(1));
        if stored == keys.len() && synced {
            written.synced(keys, number);
        }
    }
}

/// Every slot takes a write and gives it back.
fn assert_every_slot_is_served(cluster: &Cluster) {
    let slots = crate::common::keys_of_all_slots();
    let keys: Vec<&[u8]> = slots.iter().map(|key| key.as_bytes()).collect();
    let mut client = cluster.client();
    for keys in keys.chunks(1_024) {
        let writes: Vec<Command<'_>> = keys.iter().map(|key| Command::Set(key, b"served")).collect();
        let reads: Vec<Command<'_>> = keys.iter().map(|key| Command::Get(key)).collect();
        for commands in [writes, reads] {
            for (command, outcome) in commands.iter().zip(client.execute(&commands)) {
                assert!(matches!(outcome, Outcome::Acknowledged(_)), "{command:?}: {outcome:?}");
            }
        }
    }
}

#[test]
fn what_waitaof_acknowledged_outlives_a_kill_of_a_lone_primary() {
    let mut cluster = Cluster::start(3, 0, &[]);
    // The first node owns slots 0 to 5,460.
    let keys: Vec<String> = (0..KEYS).map(|number| key_of(number as u16 * 130, number)).collect();
    let (written, node) = (Written::default(), cluster.nodes[0].listen);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&written);
        scope.spawn(|| write_with_waitaof(node, &keys, &written));
        for _ in 0..2 {
            written.wait_for_more();
            cluster.nodes[0].kill();
            cluster.nodes[0].restart();
        }
        written.wait_for_more();
        // The last time nobody overwrites what should have survived.
        cluster.nodes[0].kill();
    });
    cluster.nodes[0].restart();
    written.check(&mut cluster.client());
    assert_every_slot_is_served(&cluster);
}

/// Kills `victim` of two shards with a replica each (0 and 2 are primaries) under load, twice.
fn kill_under_synced_load(victim: usize) {
    let mut cluster = Cluster::start(2, 1, &["--ack", "synced"]);
    let keys: Vec<String> = (0..KEYS).map(|number| key_of(number as u16 * 400, number)).collect();
    let (written, addrs) = (Written::default(), cluster.addrs());
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&written);
        scope.spawn(|| write_until_stopped(&addrs, &keys, &written));
        written.wait_for_more();
        cluster.nodes[victim].kill();
        cluster.nodes[victim].restart();
        // Whichever of its shard's two nodes leads it then.
        let (shard, key) = (victim / 2 * 2, key_of((victim / 2 * 8_192) as u16, 0));
        until("the victim's shard is served", || {
            let members = &cluster.nodes[shard..shard + 2];
            members.iter().any(|node| node.ask(&["GET", &key]).is_ok()).then_some(())
        });
        written.wait_for_more();
        cluster.nodes[victim].kill();
    });
    cluster.nodes[victim].restart();
    written.check(&mut cluster.client());
    assert_every_slot_is_served(&cluster);
}

#[test]
fn what_was_acknowledged_as_synced_outlives_a_kill_of_a_primary() {
    kill_under_synced_load(0);
}

#[test]
fn what_was_acknowledged_as_synced_outlives_a_kill_of_a_replica() {
    kill_under_synced_load(3);
}

/// Slots of the jobs that are interrupted.
const JOB: (u16, u16) = (0, 2_999);
/// Keys in them, and the bytes of each value: more than a stream's window.
const JOB_KEYS: u32 = 300;
const JOB_VALUE_BYTES: usize = 32 << 10;

/// Writes what a job moves. Returns it.
fn load(cluster: &Cluster) -> BTreeMap<String, Vec<u8>> {
    let value = |number: u32| vec![number as u8; JOB_VALUE_BYTES];
    let data: BTreeMap<String, Vec<u8>> =
        (0..JOB_KEYS).map(|number| (key_of(number as u16 * 9, number), value(number))).collect();
    let mut client = cluster.client();
    for (key, value) in &data {
        assert!(matches!(client.set(key.as_bytes(), value), Outcome::Acknowledged(())), "{key}");
    }
    data
}

/// Nothing of `data` is lost, every slot is served, and the same slots can be moved after all.
fn assert_sound_after_job(cluster: &Cluster, data: &BTreeMap<String, Vec<u8>>, from: usize, to: usize) {
    assert_every_slot_is_served(cluster);
    let mut client = cluster.client();
    for (key, value) in data {
        let read = client.get(key.as_bytes());
        assert!(matches!(&read, Outcome::Acknowledged(Some(read)) if read == value), "{key}");
    }
    let owned = |at: usize| cluster.nodes[at].ask(&["GET", &key_of(JOB.0, 0)]).is_ok();
    let (from, to) = if owned(from) { (from, to) } else { (to, from) };
    cluster.migrate(from, to, JOB.0, JOB.1);
    for (key, value) in data {
        let read = client.get(key.as_bytes());
        assert!(matches!(&read, Outcome::Acknowledged(Some(read)) if read == value), "{key}, moved");
    }
}

/// The job's state as a node sees it, if it answers.
fn state(node: &NodeProcess) -> Option<String> {
    newest_job(node, JOB.0, JOB.1).map(|job| job.state)
}

#[test]
fn a_job_whose_target_dies_goes_on_when_it_is_back() {
    let mut cluster = Cluster::start(3, 0, &[]);
    let data = load(&cluster);
    // A target that is halted cannot finish the job before it is killed.
    let name = cluster.nodes[1].name();
    cluster.nodes[1].pause();
    let (first, last) = (JOB.0.to_string(), JOB.1.to_string());
    // The control log may have to elect another leader first: then the request ends undecided, or was taken all the same.
    until("the job is started", || {
        let started = cluster.nodes[0].ask(&crate::common::migrate_slots(&first, &last, &name));
        (started.is_ok() || state(&cluster.nodes[0]).is_some()).then_some(())
    });
    let active = state(&cluster.nodes[0]).expect("a started job is listed");
    assert!(!["success", "failed", "cancelled"].contains(&active.as_str()), "{active}");
    cluster.nodes[1].kill();
    cluster.nodes[1].restart();
    let job = cluster.wait_for_job(0, JOB.0, JOB.1);
    assert_eq!(job.state, "success", "{}", job.message);
    // The first attempt ended with the reign that it belonged to.
    assert!(job.message.contains("failed over to node 2 boot 2"), "the reason is: {}", job.message);
    assert_sound_after_job(&cluster, &data, 0, 1);
}

/// Kills `victim` as soon as a job from node 0 to node 1 has begun: it fails for a reason, or completes.
fn kill_in_a_job(victim: usize) {
    let mut cluster = Cluster::start(3, 0, &[]);
    let data = load(&cluster);
    cluster.start_job(0, 1, JOB.0, JOB.1);
    cluster.nodes[victim].kill();
    cluster.nodes[victim].restart();
    let job = cluster.wait_for_job(0, JOB.0, JOB.1);
    match job.state.as_str() {
        "success" => eprintln!("the job was done before the node died, or in spite of it"),
        "failed" => {
            assert!(!job.message.is_empty(), "a failed job says why");
            eprintln!("the job failed: {}", job.message);
        }
        state => panic!("the job is {state}: {}", job.message),
    }
    assert_sound_after_job(&cluster, &data, 0, 1);
}

#[test]
fn a_job_outlives_or_reports_the_death_of_its_target() {
    kill_in_a_job(1);
}

#[test]
fn a_job_outlives_or_reports_the_death_of_its_source() {
    kill_in_a_job(0);
}
