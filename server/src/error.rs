//! What a subcommand can fail with.

use thiserror::Error;

/// A subcommand failed; the text says what happened and what to do.
#[derive(Debug, Error)]
pub enum CommandError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A data file cannot be used.
    #[error(transparent)]
    Data(#[from] crate::demo::data::DataError),
    /// The disk cannot be used.
    #[error(transparent)]
    Disk(#[from] crate::demo::disk::DiskError),
    /// A node cannot be talked to.
    #[error(transparent)]
    Client(#[from] crate::client::ClientError),
    /// Anything else.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// This build has no such part.
    #[error("{0} is not wired yet")]
    NotWired(&'static str),
}

impl CommandError {
    /// The process' exit code: 2 for usage, as clap has it, 3 for the rest. 1 means that a demo found a violation.
    pub fn exit_code(&self) -> u8 {
        match self {
            CommandError::Usage(_) => 2,
            _ => 3,
        }
    }
}
