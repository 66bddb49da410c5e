//! What the tests of whole processes share: nodes of the built binary, in a temporary folder, on ports that the system
//! chooses.
//!
//! Invariants: a node never outlives its handle (nor the thread that started it), and is ended by its own id only. What
//! the nodes of a failed test wrote is printed.

pub mod writers;

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use lockgate::client::{ClientConfig, ClientError, ClusterClient, Connection, Reply, Timeouts};
use lockgate::survey::Survey;
use lockgate_engine::Slot;
use lockgate_migrate::control::NodeId;
use lockgate_migrate::node::{NodeStatus, ShardStatus};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The most that anything waited for may take, on a machine that has other things to do.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// An address of this machine whose port the system chooses.
pub const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// What nodes write to standard error. The streams' followers name each slot of a job.
const LOG: &str = "info,lockgate_net::link::stream=warn,lockgate_migrate::node::links=debug";
/// Pause between two looks.
pub const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// Looks until there is something, and gives up loudly.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < give_up, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(LOOK_PAUSE);
    }
}

/// A folder for one test's nodes.
pub fn folder() -> TempDir {
    tempfile::Builder::new().prefix("lockgate-test-").tempdir().expect("a temporary folder")
}

/// One running node.
pub struct NodeProcess {
    child: Child,
    /// Where clients reach it.
    pub listen: SocketAddr,
    /// Where other nodes reach it.
    pub link: SocketAddr,
    /// Its data directory.
    pub data: PathBuf,
    options: Vec<String>,
}

/// A node that ended instead of starting.
#[derive(Debug)]
pub struct NotStarted {
    /// How it ended.
    pub status: ExitStatus,
    /// What this start wrote to standard error.
    pub errors: String,
}

impl NodeProcess {
    /// Starts a node with the data directory `data`, on ports that the system chooses.
    pub fn start(data: &Path, options: &[&str]) -> NodeProcess {
        Self::try_start(data, options).expect("the node starts")
    }

    /// Starts a node that may refuse to.
    pub fn try_start(data: &Path, options: &[&str]) -> Result<NodeProcess, NotStarted> {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Self::launch(data.to_owned(), options, ANY, ANY)
    }

    /// Starts a node that may refuse to, on these addresses; one with port 0 is chosen by the system.
    pub fn try_start_at(
        data: &Path,
        listen: SocketAddr,
        link: SocketAddr,
    ) -> Result<NodeProcess, NotStarted> {
        Self::launch(data.to_owned(), Vec::new(), listen, link)
    }

    fn launch(
        data: PathBuf,
        options: Vec<String>,
        listen: SocketAddr,
        link: SocketAddr,
    ) -> Result<NodeProcess, NotStarted> {
        let output = output_of(&data);
        let before = fs::metadata(&output).map_or(0, |metadata| metadata.len());
        let errors = OpenOptions::new().create(true).append(true).open(&output).expect("the output's file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_lockgate"));
        command.args(["serve", "--cores", "1", "--pin", "false", "--spin-us", "0", "--exit-with-parent"]);
        command.args(["--listen", &listen.to_string(), "--link", &link.to_string(), "--data"]).arg(&data);
        command.args(&options).env("NO_COLOR", "1").env("LOCKGATE_LOG", LOG);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().expect("the binary runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("text");
        match addresses(&line) {
            Some((listen, link)) => Ok(NodeProcess { child, listen, link, data, options }),
            None => {
                // Without the line, standard output was closed, so the process is about to end.
                let status = child.wait().expect("it can be waited for");
                let errors = fs::read_to_string(&output).expect("text").split_off(before as usize);
                Err(NotStarted { status, errors })
            }
        }
    }

    /// Starts it again, with the same directory, ports and options. It must have ended.
    pub fn restart(&mut self) {
        self.try_restart().expect("the node starts again");
    }

    /// Starts it again; it may refuse to.
    pub fn try_restart(&mut self) -> Result<(), NotStarted> {
        assert!(self.ended().is_some(), "a node is restarted after it has ended");
        let again = until("a port that another program borrowed is free again", || {
            match Self::launch(self.data.clone(), self.options.clone(), self.listen, self.link) {
                Err(refused) if refused.errors.contains("in use (os error") => None,
                outcome => Some(outcome),
            }
        });
        *self = again?;
        Ok(())
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it can be waited for");
    }

    /// Asks it to stop, and waits until it has.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        until("the node stops when it is asked to", || self.ended())
    }

    /// Halts it, so that it answers nobody, and knows nothing of it.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process has an id");
        kill_process(pid, signal).expect("a child that was not waited for can be signalled");
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it can be waited for")
    }

    /// A connection of a client.
    pub fn connect(&self) -> Connection {
        Connection::connect(self.listen, patient().timeouts).expect("the node accepts clients")
    }

    /// The answer to one command on a connection of its own; an error is its text.
    pub fn ask(&self, args: &[&str]) -> Result<Reply, String> {
        ask(&mut self.connect(), args)
    }

    /// Its name in the cluster.
    pub fn name(&self) -> String {
        text(&self.ask(&["CLUSTER", "MYID"]).expect("a member has a name"))
    }

    /// What all its starts wrote to standard error.
    pub fn output(&self) -> String {
        fs::read_to_string(output_of(&self.data)).expect("text")
    }

    /// How the cluster is, as it sees it; `None` if it does not answer, or has none.
    pub fn survey(&self) -> Option<Survey> {
        let json = lockgate(&["cluster", "status", "--json", &self.link.to_string()]).ok()?;
        Some(serde_json::from_str(&json).expect("status is JSON"))
    }

    /// Waits until the map that it has applied is as wanted.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&NodeStatus) -> bool) -> NodeStatus {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let last = self.survey().map(|survey| survey.seen);
            match last {
                Some(status) if wanted(&status) => return status,
                _ => assert!(Instant::now() < give_up, "not within {PATIENCE:?}: {what}; it is {last:#?}"),
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }

    /// Waits until shard 1 is led by `primary`, or by any node, with so many members in sync, all that it has.
    pub fn wait_until_whole(&self, primary: Option<u32>, members: usize) -> ShardStatus {
        let shard = |status: &NodeStatus| status.shards.first().cloned().expect("a shard");
        let status = self.wait_for("the shard is led and all its members are in sync", |status| {
            let shard = shard(status);
            let led = !shard.is_vacant && primary.is_none_or(|primary| shard.primary == NodeId(primary));
            led && shard.members.len() == members && shard.members.iter().all(|member| member.in_sync)
        });
        shard(&status)
    }

    /// Waits until it answers for this key, whatever the value.
    pub fn wait_until_it_serves(&self, key: &str) {
        until("the node serves the key", || self.ask(&["GET", key]).ok());
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // It may have ended in between.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let output = fs::read_to_string(output_of(&self.data)).unwrap_or_default();
            eprintln!("--- {}, clients on {}\n{output}", self.data.display(), self.listen);
        }
    }
}

fn output_of(data: &Path) -> PathBuf {
    data.with_extension("out")
}

/// The addresses in the line that a node prints when it is ready.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let rest = line.strip_prefix("lockgate: clients on ")?;
    let (listen, rest) = rest.split_once(", nodes on ")?;
    let (link, _) = rest.split_once(", data in ")?;
    Some((listen.parse().ok()?, link.parse().ok()?))
}

/// Nodes that were made a cluster of.
pub struct Cluster {
    /// Shard by shard, the primary first.
    pub nodes: Vec<NodeProcess>,
    // After the nodes: they use it.
    folder: TempDir,
}

impl Cluster {
    /// Starts nodes and forms a cluster of them.
    pub fn start(shards: usize, replicas: usize, options: &[&str]) -> Cluster {
        let folder = folder();
        let nodes: Vec<NodeProcess> = (0..shards * (replicas + 1))
            .map(|number| NodeProcess::start(&folder.path().join(format!("node-{number}")), options))
            .collect();
        form(&nodes, replicas);
        Cluster { nodes, folder }
    }

    /// Starts one more node, with an empty directory. It does not belong to the cluster yet.
    pub fn start_another(&mut self, options: &[&str]) {
        let data = self.folder.path().join(format!("node-{}", self.nodes.len()));
        self.nodes.push(NodeProcess::start(&data, options));
    }

    /// Runs a subcommand that asks a node, by way of this one.
    pub fn operate(&self, at: usize, args: &[&str]) -> Result<String, String> {
        let link = self.nodes[at].link.to_string();
        lockgate(&[args, &["--node", &link]].concat())
    }

    /// A client that knows all nodes.
    pub fn client(&self) -> ClusterClient {
        ClusterClient::new(&self.addrs(), patient())
    }

    /// Where clients reach the nodes.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.listen).collect()
    }

    /// Starts a job that moves the slots `first..=last` between two nodes' shards, both primaries.
    pub fn start_job(&self, from: usize, to: usize, first: u16, last: u16) {
        let (first, last, name) = (first.to_string(), last.to_string(), self.nodes[to].name());
        let started = self.nodes[from].ask(&migrate_slots(&first, &last, &name));
        assert_eq!(started, Ok(Reply::Simple("OK".into())));
    }

    /// Moves slots, and waits until the job has succeeded.
    pub fn migrate(&self, from: usize, to: usize, first: u16, last: u16) {
        self.start_job(from, to, first, last);
        let job = self.wait_for_job(from, first, last);
        assert_eq!(job.state, "success", "{}", job.message);
    }

    /// Waits until the newest job over these slots has ended, as `at` sees it.
    pub fn wait_for_job(&self, at: usize, first: u16, last: u16) -> Job {
        until("the job has ended", || {
            let job = newest_job(&self.nodes[at], first, last)?;
            matches!(job.state.as_str(), "success" | "failed" | "cancelled").then_some(job)
        })
    }
}

/// What the binary prints when it is run with these words, or why it fails.
pub fn lockgate(args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockgate"));
    let output = command.args(args).stdin(Stdio::null()).output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text").trim_end().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// The words that move slots.
pub fn migrate_slots<'a>(first: &'a str, last: &'a str, name: &'a str) -> [&'a str; 7] {
    ["CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", name]
}

/// Makes a cluster of started nodes, by the command that people use.
pub fn form(nodes: &[NodeProcess], replicas: usize) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockgate"));
    command.args(["cluster", "create", "--replicas", &replicas.to_string()]);
    command.args(nodes.iter().map(|node| node.link.to_string()));
    let formed = command.output().expect("the binary runs");
    assert!(formed.status.success(), "{}", String::from_utf8_lossy(&formed.stderr));
}

/// A client that does not mind a busy machine.
pub fn patient() -> ClientConfig {
    let timeouts = Timeouts { connect: Duration::from_secs(10), answer: Duration::from_secs(30) };
    ClientConfig { timeouts, retry: PATIENCE }
}

/// The answer to a command; an error is its text.
pub fn ask(connection: &mut Connection, args: &[&str]) -> Result<Reply, String> {
    let args: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
    connection.call(&args).map_err(|error| match error {
        ClientError::Server { error, .. } => error.text().to_owned(),
        other => other.to_string(),
    })
}

/// A string of bytes, or a simple string, as text.
pub fn text(reply: &Reply) -> String {
    match reply {
        Reply::Bulk(bytes) => String::from_utf8(bytes.clone()).expect("text"),
        Reply::Simple(word) => word.clone(),
        other => panic!("not a text: {other:?}"),
    }
}

/// A job as a node reports it.
#[derive(Debug)]
pub struct Job {
    /// Its state's word.
    pub state: String,
    /// Why it is so, or empty.
    pub message: String,
}

/// The newest job over exactly these slots.
pub fn newest_job(node: &NodeProcess, first: u16, last: u16) -> Option<Job> {
    let Ok(Reply::Array(jobs)) = node.ask(&["CLUSTER", "GETSLOTMIGRATIONS"]) else { return None };
    let ranges = Reply::Bulk(format!("{first}-{last}").into_bytes());
    jobs.iter().find_map(|job| {
        let Reply::Array(pairs) = job else { panic!("a job is a list: {job:?}") };
        let field = |name: &str| {
            let named = Reply::Bulk(name.as_bytes().to_vec());
            &pairs.chunks_exact(2).find(|pair| pair[0] == named).expect("every job has it")[1]
        };
        let found = || Job { state: text(field("state")), message: text(field("message")) };
        (*field("slot_ranges") == ranges).then(found)
    })
}

/// A key of this slot; different for different numbers.
pub fn key_of(slot: u16, number: u32) -> String {
    let wanted = Slot::new(slot).expect("a slot");
    let tag = (0..).find(|tag: &u32| Slot::of_key(tag.to_string().as_bytes()) == wanted);
    format!("{{{}}}{number}", tag.expect("some number has that slot"))
}

/// Changes a file's bytes.
pub fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("the file is read");
    change(&mut bytes);
    fs::write(path, bytes).expect("the file is written");
}

/// One key for each slot, in the order of the slots.
pub fn keys_of_all_slots() -> Vec<String> {
    let mut keys = vec![String::new(); usize::from(lockgate_engine::SLOTS)];
    let (mut found, mut number) = (0, 0_u32);
    while found < keys.len() {
        let key = format!("slot-key-{number}");
        let place = &mut keys[Slot::of_key(key.as_bytes()).index()];
        if place.is_empty() {
            *place = key;
            found += 1;
        }
        number += 1;
    }
    keys
}
