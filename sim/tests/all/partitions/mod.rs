//! Real processes on machines of their own (network namespaces) that are cut off from each other, in both directions or in
//! one, while slots move and clients go on; what clients saw of each key must be linearizable.
//!
//! Clients are never cut off: the danger is a node that still answers them and that nobody else hears. Needs `ip` and the
//! right to make namespaces; says so where it is skipped.

mod clients;
mod wires;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use lockgate::cli::Cli;
use lockgate::client::{ClientError, Connection, Timeouts};
use lockgate::formation;
use lockgate_migrate::node::{NodeStatus, ShardStatus};
use lockgate_runtime::Runtime;

use clients::Clients;
use wires::{Wires, addr};

/// The words of a child that is to be the binary, one a line.
const CHILD_ARGS: &str = "LOCKGATE_PARTITIONS_CHILD";
const SHARDS: usize = 2;
const MEMBERS: usize = 3;
const NODES: usize = SHARDS * MEMBERS;
const VOTERS: usize = 5;
/// Clients and the operator live on the last machine.
const OUTSIDE: usize = NODES;
const NODE_TIMEOUT_MS: u64 = 1_000;
/// Slots of the first shard that go to and fro.
const MOVING: (u16, u16) = (100, 103);
/// The most that anything waited for may take, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Who is cut off.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    Source,
    Target,
    Leader,
}

/// How it is cut off from the other nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    /// It hears nobody, and nobody hears it.
    Both,
    /// Nobody hears it.
    Mute,
    /// It hears nobody.
    Deaf,
}

const ROUNDS: [(Cut, Role); 7] = [
    (Cut::Both, Role::Source),
    (Cut::Both, Role::Target),
    (Cut::Both, Role::Leader),
    (Cut::Mute, Role::Source),
    (Cut::Deaf, Role::Target),
    (Cut::Deaf, Role::Source),
    (Cut::Mute, Role::Leader),
];

/// A node as a process on a machine of its own.
struct Node {
    child: Child,
    listen: SocketAddr,
    link: SocketAddr,
}

impl Node {
    fn start(wires: &Wires, machine: usize, data: &Path) -> Node {
        let (listen, link) = (SocketAddr::new(addr(machine), 6379), SocketAddr::new(addr(machine), 16379));
        let words = format!(
            "lockgate\nserve\n--cores\n1\n--pin\nfalse\n--spin-us\n0\n--exit-with-parent\n--listen\n{listen}\n--link\n\
             {link}\n--node-timeout-ms\n{NODE_TIMEOUT_MS}\n--data\n{}",
            data.display()
        );
        let output = std::fs::File::create(data.with_extension("out")).expect("the output's file");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &wires.name(machine)]);
        command.arg(std::env::current_exe().expect("this test has a program"));
        command.args(["--exact", "partitions::a_child_is_the_binary", "--nocapture", "--test-threads=1"]);
        command.env(CHILD_ARGS, words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(output);
        let mut child = command.spawn().expect("ip runs");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let ready = lines.any(|line| line.is_ok_and(|line| line.contains("lockgate: clients on ")));
        assert!(ready, "{}", std::fs::read_to_string(data.with_extension("out")).expect("text"));
        // It goes on to write there; nobody reads on.
        std::thread::spawn(move || lines.for_each(drop));
        Node { child, listen, link }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What [`Node::start`] runs: not a test of its own, but the binary inside this program.
#[test]
fn a_child_is_the_binary() {
    let Ok(words) = std::env::var(CHILD_ARGS) else { return };
    let ended = lockgate::run(Cli::parse_from(words.split('\n')));
    assert_eq!(ended.expect("the command succeeds"), 0);
}

#[test]
fn what_clients_see_of_a_partitioned_cluster_is_linearizable() {
    // A thread of its own: it moves to another namespace.
    let run = std::thread::spawn(|| match Wires::lay(NODES + 1) {
        Ok(wires) => partitions(&wires),
        Err(why) => {
            eprintln!("*** partitions of real processes are SKIPPED: no network namespaces here: {why} ***")
        }
    });
    run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn partitions(wires: &Wires) {
    wires.enter(OUTSIDE);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let start = |machine| Node::start(wires, machine, &folder.path().join(format!("node-{machine}")));
    let cluster = Cluster { nodes: (0..NODES).map(start).collect(), runtime: runtime() };
    cluster.form();
    let clients = Clients::start(cluster.nodes.iter().map(|node| node.listen).collect(), MOVING);
    for (number, (cut, role)) in ROUNDS.into_iter().enumerate() {
        cluster.round(wires, number, cut, role);
    }
    clients.check();
}

fn runtime() -> Runtime {
    Runtime::builder().cores(1).pin(false).spin_us(0).name("operator").build().expect("a runtime")
}

struct Cluster {
    nodes: Vec<Node>,
    runtime: Runtime,
}

impl Cluster {
    fn form(&self) {
        let links: Vec<SocketAddr> = self.nodes.iter().map(|node| node.link).collect();
        let shards: Vec<Vec<SocketAddr>> = links.chunks(MEMBERS).map(<[_]>::to_vec).collect();
        let formed =
            self.runtime.block_on(0, move || async move { formation::create(&shards, VOTERS).await });
        formed.expect("the cluster is formed");
    }

    /// What a node says; `None` if it does not.
    fn status(&self, at: usize) -> Option<NodeStatus> {
        let link = self.nodes[at].link;
        self.runtime.block_on(0, move || async move { formation::status(link).await }).ok()
    }

    /// Waits until a node other than `except` says that it is so.
    fn wait_for(&self, what: &str, except: usize, is_so: impl Fn(&NodeStatus) -> bool) -> NodeStatus {
        let give_up = Instant::now() + PATIENCE;
        for at in (0..NODES).cycle().filter(|&at| at != except) {
            match self.status(at) {
                Some(status) if is_so(&status) => return status,
                status => assert!(Instant::now() < give_up, "not within {PATIENCE:?}: {what}; {status:#?}"),
            }
            std::thread::sleep(LOOK_PAUSE);
        }
        unreachable!("a cycle has no end")
    }

    fn wait_until_whole(&self) -> NodeStatus {
        let whole =
            |shard: &ShardStatus| !shard.is_vacant && shard.members.iter().all(|member| member.in_sync);
        self.wait_for("every shard is led and whole, and no job is left", usize::MAX, |status| {
            status.leader.is_some()
                && status.shards.iter().all(whole)
                && status.jobs.iter().all(|job| !matches!(job.state.as_str(), "active" | "committed"))
        })
    }

    /// A job moves the slots to the other shard; one of those that it needs is cut off; somebody else takes its place; and
    /// once it is back, everything is whole again.
    fn round(&self, wires: &Wires, number: usize, cut: Cut, role: Role) {
        let before = self.wait_until_whole();
        let owner = before
            .shards
            .iter()
            .find(|shard| shard.slots.iter().any(|range| range.start <= MOVING.0 && MOVING.0 <= range.end))
            .expect("somebody owns the slots");
        let target = before.shards.iter().find(|shard| shard.id != owner.id).expect("there are two shards");
        let machine = |node: lockgate_migrate::control::NodeId| node.0 as usize - 1;
        self.migrate(machine(owner.primary), &before, machine(target.primary));
        std::thread::sleep(Duration::from_millis(3 * number as u64));
        let who = match role {
            Role::Source => machine(owner.primary),
            Role::Target => machine(target.primary),
            Role::Leader => machine(before.leader.expect("somebody led")),
        };
        eprintln!("round {number}: {cut:?} {role:?}, which is node {}", who + 1);
        let others = (0..NODES).filter(|&other| other != who);
        let wires_cut: Vec<(usize, usize)> = others
            .flat_map(|other| [((who, other), Cut::Deaf), ((other, who), Cut::Mute)])
            .filter(|&(_, spared)| cut != spared)
            .map(|(wire, _)| wire)
            .collect();
        wires_cut.iter().for_each(|&(from, to)| wires.cut(from, to));
        self.wait_for("somebody else takes its place", who, |status| {
            let led = |shard: &ShardStatus| !shard.is_vacant && machine(shard.primary) != who;
            match role {
                Role::Leader => status.leader.is_some_and(|leader| machine(leader) != who),
                Role::Source | Role::Target => status.shards.iter().all(led),
            }
        });
        wires_cut.iter().for_each(|&(from, to)| wires.mend(from, to));
    }

    fn migrate(&self, source: usize, status: &NodeStatus, target: usize) {
        let (first, last) = (MOVING.0.to_string(), MOVING.1.to_string());
        let words =
            ["CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", &first, &last, "NODE", &status.nodes[target].name];
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let timeouts = Timeouts { connect: Duration::from_secs(5), answer: Duration::from_secs(20) };
        let mut connection =
            Connection::connect(self.nodes[source].listen, timeouts).expect("clients are not cut off");
        match connection.call(&words) {
            Ok(_) => {}
            // The cluster may have changed its mind about who leads.
            Err(ClientError::Server { error, .. }) => eprintln!("no job in this round: {}", error.text()),
            Err(error) => panic!("the job was not started: {error}"),
        }
    }
}
