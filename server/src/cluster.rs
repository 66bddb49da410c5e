//! `lockgate cluster`: forms a cluster, and asks how it is.

use crate::cli::{CreateArgs, StatusArgs};
use crate::error::CommandError;

/// Forms a cluster of running, empty nodes; returns when all of them have applied it.
pub fn create(args: &CreateArgs) -> Result<(), CommandError> {
    let shards = args.shards().map_err(CommandError::Usage)?;
    let voters = args.voter_count().map_err(CommandError::Usage)?;
    tracing::debug!(?shards, voters, "create");
    Err(CommandError::NotWired("cluster create"))
}

/// Prints a cluster's nodes, shards and jobs.
pub fn status(args: &StatusArgs) -> Result<(), CommandError> {
    tracing::debug!(?args, "status");
    Err(CommandError::NotWired("cluster status"))
}
