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
    /// The node cannot start, or had to stop.
    #[error("{0}")]
    Serve(String),
    /// A cluster could not be made, or not be asked.
    #[error("{0}")]
    Cluster(String),
    /// A backup could not be made, or not be brought back.
    #[error("{0}")]
    Backup(String),
    /// Whether a directory is damaged could not be found out.
    #[error("{0}")]
    Check(String),
    /// The demo was stopped before it had come to a result.
    #[error("interrupted: everything was torn down, nothing was verified")]
    Interrupted,
    /// The demo could not go on.
    #[error("{0}")]
    Demo(String),
}

impl CommandError {
    pub(crate) fn serve(error: impl std::error::Error) -> CommandError {
        CommandError::Serve(error.to_string())
    }

    pub(crate) fn backup(error: impl std::error::Error) -> CommandError {
        CommandError::Backup(error.to_string())
    }

    pub(crate) fn cluster(error: impl std::error::Error) -> CommandError {
        CommandError::Cluster(error.to_string())
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> CommandError {
        let what = what.into();
        move |source| CommandError::Io { what, source }
    }

    /// The process' exit code: 2 for usage, as clap has it, and for what could not be checked, 3 for the rest. 1 means that a
    /// demo found a violation, or a check damage.
    pub fn exit_code(&self) -> u8 {
        match self {
            CommandError::Usage(_) | CommandError::Check(_) => 2,
            _ => 3,
        }
    }
}
