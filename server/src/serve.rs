//! `lockgate serve`: runs a node until it is told to stop.

use crate::cli::ServeArgs;
use crate::error::CommandError;

/// Runs a node until SIGINT or SIGTERM; then closes its log and returns.
pub fn run(args: &ServeArgs) -> Result<(), CommandError> {
    tracing::debug!(?args, "serve");
    Err(CommandError::NotWired("serve"))
}
