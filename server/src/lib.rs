//! The Lockgate server and command-line tool, as a library: the model for other servers built on the engine.
//!
//! [`client`] talks to nodes from outside and [`demo`] runs a whole cluster and verifies it; [`serve`] and [`cluster`]
//! are the other subcommands; [`service`] is what a node's clients may ask; [`formation`] makes clusters, [`operations`]
//! changes them, [`recovery`] begins them anew when they have lost their majority, and [`survey`] sees how they are;
//! [`backup`] makes files of what nodes hold, and brings them back; [`check`] verifies and repairs directories;
//! [`cli`] parses what [`error`] may complain about.

pub mod backup;
pub mod check;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod demo;
pub mod error;
pub mod formation;
pub mod operations;
pub mod recovery;
pub mod serve;
pub mod service;
pub mod survey;

use cli::{Cli, CliCommand};
use error::CommandError;

/// Runs what the command line asks for; the exit code that it ends with.
pub fn run(cli: Cli) -> Result<u8, CommandError> {
    match cli.command {
        CliCommand::Serve(args) => serve::run(&args).map(|()| 0),
        CliCommand::Cluster(command) => cluster::run(&command).map(|()| 0),
        CliCommand::Failover(args) => cluster::failover(&args).map(|()| 0),
        CliCommand::Backup(args) => backup::back_up(&args).map(|()| 0),
        CliCommand::Restore(args) => backup::restore(&args).map(|()| 0),
        CliCommand::Check(args) => check::run(&args),
        CliCommand::Demo(args) => demo::run(&args),
    }
}
