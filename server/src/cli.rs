//! The command line: what can be asked for, and with which defaults. Parses only; the subcommands' modules do the work.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lockgate_migrate::Times;

/// A sharded in-memory storage engine with a durable log, whose slots move between machines while they are written.
#[derive(Debug, Parser)]
#[command(name = "lockgate", version, about, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: CliCommand,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// Run a node: serve clients by RESP, and take part in a cluster
    Serve(ServeArgs),
    /// Create a cluster of running nodes, ask one how it is, and change it
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Make a replica the primary of its shard: nothing is lost, writes wait for some milliseconds
    Failover(FailoverArgs),
    /// Write what a running node serves, or what a directory holds, to one file, without stopping anything
    Backup(BackupArgs),
    /// Make a new data directory of a backup, or write its keys into a running cluster
    Restore(RestoreArgs),
    /// Verify a data directory that no process uses, without changing it; or make a new one of what is left of it
    Check(CheckArgs),
    /// Run a whole cluster of six nodes here, move its slots around under load, and verify every answer
    Demo(DemoArgs),
}

/// What `lockgate cluster` can do.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Form a cluster of running, empty nodes
    Create(CreateArgs),
    /// Show a cluster's nodes, shards and jobs, as one of its nodes sees them
    Status(StatusArgs),
    /// Take a running node with an empty directory into the cluster, without a role yet
    AddNode(AddNodeArgs),
    /// Take a node without a role out of the cluster, for good
    RemoveNode(RemoveNodeArgs),
    /// Make a shard, without slots yet, of nodes without a role
    AddShard(AddShardArgs),
    /// End a shard that owns no slots; its nodes have no role then
    RemoveShard(RemoveShardArgs),
    /// Say who follows in a shard: who comes new copies all of it, who is not named leaves the shard
    SetReplicas(SetReplicasArgs),
    /// Say who votes on ownership
    SetVoters(SetVotersArgs),
    /// Begin a new generation of a cluster that has lost a majority of its voters for good: what only the lost nodes have is
    /// lost
    Recover(RecoverArgs),
    /// Say whose the slots are that two shards claim after a recovery
    Assign(AssignArgs),
    /// Put a running node with an empty directory into the place of a dead one, which leaves for good
    ReplaceNode(ReplaceNodeArgs),
}

/// What must have happened to a write before it is acknowledged to a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Ack {
    /// The primary has written it to its log's file. No replica is waited for: a failover may lose what was acknowledged,
    /// and reads may go back in time across one
    Primary,
    /// The primary has written it to its log's file, and every in-sync replica has received it: it outlives the loss of
    /// any node, but not a power cut of all members of the shard at once
    #[default]
    Written,
    /// The primary and every in-sync replica have synced it to their disks: it outlives power cuts too
    Synced,
}

/// The options of `lockgate serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// The data directory; created if it is missing. One process at a time may use it
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Where clients connect (RESP)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:6379")]
    pub listen: SocketAddr,
    /// Where other nodes connect. Not encrypted yet: keep it inside a trusted network
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:16379")]
    pub link: SocketAddr,
    /// How many cores to run, one thread each [default: as many as this machine has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub cores: Option<u16>,
    /// Whether each core's thread is pinned to a CPU
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub pin: bool,
    /// How long a core with nothing to do looks for work before it sleeps
    #[arg(long, value_name = "US", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub spin_us: u32,
    /// When a write is acknowledged; give it to all nodes alike
    #[arg(long, value_enum, default_value_t = Ack::Written)]
    pub ack: Ack,
    /// How many members of its shard must be in sync, the primary among them, for it to take writes. With 1 a primary goes
    /// on alone when its replicas are gone
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub min_in_sync: u16,
    /// How long a primary may be silent before another node takes its place, in milliseconds; the same on all nodes. A
    /// failover takes up to twice as long where the leader of the control log dies too
    #[arg(long, value_name = "MS", default_value_t = Times::NODE_TIMEOUT.as_millis() as u64)]
    pub node_timeout_ms: u64,
    /// By how much the nodes' clocks may run faster or slower than each other, in parts per million; the same on all nodes.
    /// Beyond it two nodes might serve one slot
    #[arg(long, value_name = "PPM", default_value_t = Times::DRIFT_PPM)]
    pub drift_ppm: u64,
    /// How old the answers of this node may be where it is a replica that a client reads from after READONLY, in
    /// milliseconds [default: the node timeout]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..=3_600_000))]
    pub replica_staleness_ms: Option<u64>,
    /// The folder that this node writes backups to when `lockgate backup` asks for one; without it, it refuses. Whoever may
    /// connect may fill it
    #[arg(long, value_name = "DIR")]
    pub backup_dir: Option<PathBuf>,
    /// End when the process that started this one ends
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

/// The options of `lockgate cluster create`.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// The nodes' link addresses: the first shard's primary and its replicas, then the second shard's, ...
    #[arg(required = true, value_name = "LINK_ADDR")]
    pub nodes: Vec<SocketAddr>,
    /// How many replicas each shard has
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=6))]
    pub replicas: u16,
    /// How many nodes vote on ownership: an odd number up to seven [default: as many as there can be]
    #[arg(long, value_name = "N", value_parser = parse_voters)]
    pub voters: Option<u16>,
}

/// The options of `lockgate cluster status`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Any node's link address
    #[arg(value_name = "LINK_ADDR")]
    pub node: SocketAddr,
    /// Print everything as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The options of `lockgate cluster recover`.
#[derive(Args, Clone, Debug)]
pub struct RecoverArgs {
    /// The link addresses of nodes that are left; all nodes that they know of are asked
    #[arg(long, value_name = "LINK_ADDR", required = true, num_args = 1..)]
    pub node: Vec<SocketAddr>,
    /// Give the present generation of the cluster up for lost. Without this it is only said what that would mean
    #[arg(long)]
    pub force_new_generation: bool,
    /// Do not ask for a confirmation
    #[arg(long, requires = "force_new_generation")]
    pub yes: bool,
}

/// The options of `lockgate cluster assign`.
#[derive(Args, Clone, Debug)]
pub struct AssignArgs {
    /// The disputed slots: one, or a range as FIRST-LAST. The whole job is decided that moves them
    #[arg(long, value_name = "SLOTS", value_parser = parse_slots)]
    pub slots: (u16, u16),
    /// The shard that serves them from now on, with what it has of them
    #[arg(long, value_name = "SHARD")]
    pub to: u32,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it")]
    pub any: AnyNode,
}

fn parse_slots(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<u16>().ok().filter(|number| *number < lockgate_engine::SLOTS);
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        _ => Err(format!("slots are 0 to {}, one or FIRST-LAST", lockgate_engine::SLOTS - 1)),
    }
}

/// Which node is asked.
#[derive(Args, Clone, Debug)]
pub struct AnyNode {
    /// The link address of any node of the cluster
    #[arg(long, value_name = "LINK_ADDR", default_value = "127.0.0.1:16379")]
    pub node: SocketAddr,
}

/// The options of `lockgate failover`.
#[derive(Args, Clone, Debug)]
pub struct FailoverArgs {
    /// The shard's number
    #[arg(value_name = "SHARD")]
    pub shard: u32,
    /// The number of the replica that shall lead
    #[arg(long, value_name = "NODE")]
    pub to: u32,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it")]
    pub any: AnyNode,
}

/// The options of `lockgate cluster add-node`.
#[derive(Args, Clone, Debug)]
pub struct AddNodeArgs {
    /// The new node's link address
    #[arg(value_name = "LINK_ADDR")]
    pub new: SocketAddr,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it")]
    pub any: AnyNode,
}

/// The options of `lockgate cluster remove-node`.
#[derive(Args, Clone, Debug)]
pub struct RemoveNodeArgs {
    /// The node's number
    #[arg(value_name = "NODE")]
    pub leaving: u32,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it")]
    pub any: AnyNode,
}

/// The options of `lockgate cluster add-shard`.
#[derive(Args, Clone, Debug)]
pub struct AddShardArgs {
    /// The numbers of its nodes: the primary, then its replicas
    #[arg(required = true, value_name = "NODE")]
    pub members: Vec<u32>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it")]
    pub any: AnyNode,
}

/// The options of `lockgate cluster remove-shard`.
#[derive(Args, Clone, Debug)]
pub struct RemoveShardArgs {
    /// The shard's number
    #[arg(value_name = "SHARD")]
    pub shard: u32,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it")]
    pub any: AnyNode,
}

/// The options of `lockgate cluster set-replicas`.
#[derive(Args, Clone, Debug)]
pub struct SetReplicasArgs {
    /// The shard's number
    #[arg(value_name = "SHARD")]
    pub shard: u32,
    /// The numbers of all nodes that follow from now on; none, and the primary is alone
    #[arg(value_name = "NODE")]
    pub replicas: Vec<u32>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it")]
    pub any: AnyNode,
}

/// The options of `lockgate cluster set-voters`.
#[derive(Args, Clone, Debug)]
pub struct SetVotersArgs {
    /// The numbers of all nodes that vote from now on: best an odd number of them, up to seven
    #[arg(required = true, value_name = "NODE")]
    pub voters: Vec<u32>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it")]
    pub any: AnyNode,
}

/// The options of `lockgate cluster replace-node`.
#[derive(Args, Clone, Debug)]
pub struct ReplaceNodeArgs {
    /// The dead node's number
    #[arg(value_name = "DEAD")]
    pub dead: u32,
    /// The new node's link address
    #[arg(long = "with", value_name = "LINK_ADDR")]
    pub new: SocketAddr,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it")]
    pub any: AnyNode,
}

/// The options of `lockgate backup`.
#[derive(Args, Clone, Debug)]
#[command(allow_missing_positional = true)]
pub struct BackupArgs {
    /// The client address of a running node. It writes the slots that it serves to the folder that its --backup-dir names,
    /// on its own machine
    #[arg(value_name = "ADDR", required_unless_present = "dir", conflicts_with = "dir")]
    pub node: Option<SocketAddr>,
    /// The file, which must not exist: with ADDR a plain name in the node's folder, with --dir a path here
    #[arg(value_name = "FILE", required = true)]
    pub file: PathBuf,
    /// A data directory that no process uses; it is only read
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Write at most so many bytes in a second [default: no bound]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub bytes_per_second: Option<u64>,
    /// With --dir: how much memory its data may take, in bytes; all of it is held at once
    #[arg(long, value_name = "BYTES", default_value_t = lockgate_engine::MEMORY_BYTES_MAX_DEFAULT)]
    pub memory_max: u64,
}

/// The options of `lockgate restore`.
#[derive(Args, Clone, Debug)]
pub struct RestoreArgs {
    /// The backup. All of it is verified before anything is made or written
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The new data directory, which must not exist or be empty: for an engine that is embedded. A node of a cluster does
    /// not begin with data: give it its keys by --node
    #[arg(value_name = "DIR", required_unless_present_any = ["node", "verify"], conflicts_with_all = ["node", "verify"])]
    pub dir: Option<PathBuf>,
    /// The client address of any node of a running cluster: the keys are written to their owners, over those of the same name
    /// that are there
    #[arg(long, value_name = "ADDR")]
    pub node: Option<SocketAddr>,
    /// Only verify the file
    #[arg(long, conflicts_with = "node")]
    pub verify: bool,
    /// How many logs the new directory has; it may be opened with another number of cores
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub cores: u16,
    /// How much memory the data may take on the way into a directory, in bytes; all of it is held at once
    #[arg(long, value_name = "BYTES", default_value_t = lockgate_engine::MEMORY_BYTES_MAX_DEFAULT)]
    pub memory_max: u64,
}

/// The options of `lockgate check`. It exits with 0 if the directory is fine, with 1 if it is damaged (repaired or not), and
/// with 2 if that could not be found out.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// The data directory. It is locked meanwhile, and refused while a process uses it
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Print everything as one JSON object
    #[arg(long)]
    pub json: bool,
    /// If it is damaged, make a new directory of all that can be proven, in its place. The damaged one is kept, untouched, as
    /// DIR.damaged-1. The new one is a member of no cluster: bring its keys back by `lockgate backup --dir` and `restore`
    #[arg(long)]
    pub repair: bool,
    /// With --repair: remove the damaged directory once the new one is there
    #[arg(long, requires = "repair")]
    pub in_place: bool,
    /// How much memory its data may take, in bytes; all of it is held at once, with --repair twice
    #[arg(long, value_name = "BYTES", default_value_t = lockgate_engine::MEMORY_BYTES_MAX_DEFAULT)]
    pub memory_max: u64,
}

/// The options of `lockgate demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// What to load: lines of a key, a tab, and the value as a JSON string [default: a bundled sample of 1 MB]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// How long slots move around, in seconds [default: 30, or 90 with --kill]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: Option<u64>,
    /// Kill a node (SIGKILL) in the middle of every other job's finalize, and start it again later
    #[arg(long, value_enum)]
    pub kill: Option<Kill>,
    /// Which keys are written and which slots move when; the same seed makes the same choices [default: a new one]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Leave the data directories and the nodes' output in place, and say where
    #[arg(long)]
    pub keep: bool,
    /// End with one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// Whom the demo kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kill {
    /// The primary that gives slots away
    Source,
    /// The primary that gets them
    Target,
    /// Both
    Both,
    /// The node that leads the control log
    Leader,
}

impl DemoArgs {
    /// How long slots move around, in seconds.
    pub fn seconds(&self) -> u64 {
        self.seconds.unwrap_or(if self.kill.is_some() { 90 } else { 30 })
    }
}

fn parse_voters(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(voters @ (1 | 3 | 5 | 7)) => Ok(voters),
        _ => {
            Err("an odd number from 1 to 7: an even one tolerates no more failures than the odd one below it"
                .into())
        }
    }
}

impl CreateArgs {
    /// The shards, each a primary and its replicas; or what is wrong with the list of nodes.
    pub fn shards(&self) -> Result<Vec<&[SocketAddr]>, String> {
        let width = usize::from(self.replicas) + 1;
        if !self.nodes.len().is_multiple_of(width) {
            return Err(format!(
                "{} nodes cannot be divided into shards of {width} (a primary and {} replicas): give a multiple of {width}, or another --replicas",
                self.nodes.len(),
                self.replicas
            ));
        }
        let mut sorted = self.nodes.clone();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("{} is given twice", twice[0]));
        }
        Ok(self.nodes.chunks(width).collect())
    }

    /// How many nodes vote: what was asked for, or the largest odd number that the nodes allow, up to seven.
    pub fn voter_count(&self) -> Result<usize, String> {
        let nodes = self.nodes.len();
        match self.voters.map(usize::from) {
            Some(voters) if voters > nodes => Err(format!("{voters} voters, but only {nodes} nodes")),
            Some(voters) => Ok(voters),
            None => Ok((nodes.min(7) - 1) / 2 * 2 + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    fn create(line: &str) -> CreateArgs {
        match parse(line).unwrap().command {
            CliCommand::Cluster(ClusterCommand::Create(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_has_defaults_and_takes_all_options() {
        let CliCommand::Serve(args) = parse("lockgate serve --data d").unwrap().command else { panic!() };
        assert_eq!(
            (args.listen.port(), args.link.port(), args.cores, args.pin, args.spin_us),
            (6379, 16379, None, true, 20)
        );
        assert_eq!(args.ack, Ack::Written);
        assert_eq!((args.min_in_sync, args.node_timeout_ms, args.drift_ppm), (1, 2_000, 10_000));
        let line = "lockgate serve --data d --listen 127.0.0.1:1 --link 127.0.0.1:2 --cores 1 --pin false --spin-us 0 --ack synced \
                    --min-in-sync 2 --node-timeout-ms 500 --drift-ppm 100";
        let CliCommand::Serve(args) = parse(line).unwrap().command else { panic!() };
        assert_eq!(
            (args.listen.port(), args.link.port(), args.cores, args.pin, args.spin_us),
            (1, 2, Some(1), false, 0)
        );
        assert_eq!(args.ack, Ack::Synced);
        assert_eq!((args.min_in_sync, args.node_timeout_ms, args.drift_ppm), (2, 500, 100));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "lockgate",
            "lockgate serve",
            "lockgate serve --data d --cores 0",
            "lockgate serve --data d --listen localhost",
            "lockgate serve --data d --min-in-sync 0",
            "lockgate failover 1",
            "lockgate cluster add-node 2",
            "lockgate cluster add-shard",
            "lockgate cluster replace-node 2",
            "lockgate cluster create",
            "lockgate cluster create 127.0.0.1:1 --voters 2",
            "lockgate demo --seconds 0",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn nodes_are_divided_into_shards() {
        let six = "127.0.0.1:1 127.0.0.1:2 127.0.0.1:3 127.0.0.1:4 127.0.0.1:5 127.0.0.1:6";
        let args = create(&format!("lockgate cluster create {six}"));
        let shards = args.shards().unwrap();
        assert_eq!((shards.len(), shards[1][0].port()), (3, 3));
        assert_eq!(args.voter_count(), Ok(5));
        assert!(
            create(&format!("lockgate cluster create --replicas 3 {six}"))
                .shards()
                .unwrap_err()
                .contains("multiple of 4")
        );
        let twice = create("lockgate cluster create 127.0.0.1:1 127.0.0.1:1");
        assert!(twice.shards().unwrap_err().contains("given twice"));
        assert!(create("lockgate cluster create --voters 3 127.0.0.1:1 127.0.0.1:2").voter_count().is_err());
    }
}
