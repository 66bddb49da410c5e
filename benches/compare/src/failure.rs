//! What can go wrong here: something failed while something was being done.

use std::error::Error;
use std::fmt;

/// Why a measurement could not be taken.
#[derive(Debug)]
pub struct Failure {
    doing: String,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    /// A failure that no other error stands behind.
    #[cold]
    pub fn new(what: impl Into<String>) -> Failure {
        Failure { doing: what.into(), cause: None }
    }

    /// A failure while doing something.
    #[cold]
    pub fn during(doing: impl Into<String>, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
        Failure { doing: doing.into(), cause: Some(cause.into()) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)?;
        let mut cause = self.cause.as_deref().map(|cause| cause as &dyn Error);
        while let Some(one) = cause {
            write!(f, ": {one}")?;
            // Some errors say what is behind them themselves.
            cause = one.source().filter(|behind| !one.to_string().contains(&behind.to_string()));
        }
        Ok(())
    }
}

impl Error for Failure {}

/// Says what was being done when something failed.
pub trait During<T> {
    /// The failure, with what was being done.
    fn during(self, doing: &str) -> Result<T, Failure>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> During<T> for Result<T, E> {
    fn during(self, doing: &str) -> Result<T, Failure> {
        self.map_err(|cause| Failure::during(doing, cause))
    }
}
