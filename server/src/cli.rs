//! The command line: what can be asked for, and with which defaults. Parses only; the subcommands' modules do the work.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    /// Create a cluster of running nodes, or ask one how it is
    #[command(subcommand)]
    Cluster(ClusterCommand),
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
}

/// What must have happened to a write at the node before it is acknowledged to a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Ack {
    /// It is written to the log's file: it outlives the process, but not a power cut of this machine
    #[default]
    Written,
    /// It is synced to the disk
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
    /// When a write is acknowledged
    #[arg(long, value_enum, default_value_t = Ack::Written)]
    pub ack: Ack,
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
        let line = "lockgate serve --data d --listen 127.0.0.1:1 --link 127.0.0.1:2 --cores 1 --pin false --spin-us 0 --ack synced";
        let CliCommand::Serve(args) = parse(line).unwrap().command else { panic!() };
        assert_eq!(
            (args.listen.port(), args.link.port(), args.cores, args.pin, args.spin_us),
            (1, 2, Some(1), false, 0)
        );
        assert_eq!(args.ack, Ack::Synced);
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "lockgate",
            "lockgate serve",
            "lockgate serve --data d --cores 0",
            "lockgate serve --data d --listen localhost",
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
