//! What can go wrong between a client and a node, and what a node's error reply asks the client to do.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lockgate_engine::Slot;
use lockgate_runtime::sync::Arc;
use thiserror::Error;

/// An operation on a node failed.
#[derive(Clone, Debug, Error)]
pub enum ClientError {
    /// No connection; nothing was sent.
    #[error("{addr}: cannot connect: {source}")]
    Connect {
        /// The node.
        addr: SocketAddr,
        /// What the system said.
        source: Arc<std::io::Error>,
    },
    /// The connection broke.
    #[error("{addr}: cannot {what}: {source}")]
    Io {
        /// The node.
        addr: SocketAddr,
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: Arc<std::io::Error>,
    },
    /// The node closed the connection before it answered.
    #[error("{addr}: closed the connection before it answered")]
    Closed {
        /// The node.
        addr: SocketAddr,
    },
    /// The node did not answer, or did not take the command, in time.
    #[error("{addr}: no {what} within {} ms", after.as_millis())]
    Timeout {
        /// The node.
        addr: SocketAddr,
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The node sent something that is not the reply to what it was asked.
    #[error("{addr}: not a proper reply: {problem}")]
    Protocol {
        /// The node.
        addr: SocketAddr,
        /// What is wrong with it.
        problem: String,
    },
    /// The node answered with an error.
    #[error("{addr}: {error}")]
    Server {
        /// The node.
        addr: SocketAddr,
        /// What it said.
        error: ServerError,
    },
    /// There is no node to ask.
    #[error("no node's address is known; give at least one")]
    NoNodes,
}

impl ClientError {
    /// Sorts an I/O error: a timeout, an end, or something else.
    pub(super) fn from_io(
        addr: SocketAddr,
        what: &'static str,
        after: Duration,
        source: std::io::Error,
    ) -> ClientError {
        use std::io::ErrorKind::{ConnectionReset, InvalidData, TimedOut, UnexpectedEof, WouldBlock};
        match source.kind() {
            TimedOut | WouldBlock => ClientError::Timeout { addr, what, after },
            UnexpectedEof | ConnectionReset => ClientError::Closed { addr },
            InvalidData => ClientError::Protocol { addr, problem: source.to_string() },
            _ => ClientError::Io { addr, what, source: Arc::new(source) },
        }
    }
}

/// An error reply, as the node sent it (without the leading `-`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    text: String,
}

/// What an error reply means to a client of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The slot is elsewhere, from now on.
    Moved {
        /// The slot.
        slot: Slot,
        /// Its owner.
        owner: SocketAddr,
    },
    /// This once, ask there, after ASKING.
    Ask {
        /// The slot.
        slot: Slot,
        /// Whom to ask.
        at: SocketAddr,
    },
    /// Not now; the same command may do soon.
    TryAgain,
    /// Nobody serves the slot now.
    ClusterDown,
    /// The command was refused, and took no effect.
    Refused,
    /// Anything else: the node does not say whether the command took effect.
    Other,
}

/// Codes of errors that are given instead of executing a command.
const REFUSING_CODES: &[&str] = &[
    "ERR",
    "CROSSSLOT",
    "OOM",
    "WRONGTYPE",
    "NOAUTH",
    "NOPERM",
    "READONLY",
    "LOADING",
    "MASTERDOWN",
    "NOREPLICAS",
    "MISCONF",
    "NOPROTO",
];

impl ServerError {
    /// An error with this text.
    pub fn new(text: impl Into<String>) -> ServerError {
        ServerError { text: text.into() }
    }

    /// The whole text, code first.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The first word.
    pub fn code(&self) -> &str {
        self.text.split(' ').next().unwrap_or_default()
    }

    /// What it means. A redirect may leave out the host: it is then the one of `from`, who sent it.
    pub fn kind(&self, from: SocketAddr) -> ErrorKind {
        match self.code() {
            "MOVED" => match self.redirect(from) {
                Some((slot, owner)) => ErrorKind::Moved { slot, owner },
                None => ErrorKind::Other,
            },
            "ASK" => match self.redirect(from) {
                Some((slot, at)) => ErrorKind::Ask { slot, at },
                None => ErrorKind::Other,
            },
            "TRYAGAIN" => ErrorKind::TryAgain,
            "CLUSTERDOWN" => ErrorKind::ClusterDown,
            code if REFUSING_CODES.contains(&code) => ErrorKind::Refused,
            _ => ErrorKind::Other,
        }
    }

    /// The slot and the address of `MOVED <slot> <host>:<port>`.
    fn redirect(&self, from: SocketAddr) -> Option<(Slot, SocketAddr)> {
        let mut words = self.text.split(' ').skip(1);
        let slot = Slot::new(words.next()?.parse().ok()?)?;
        let (host, port) = words.next()?.rsplit_once(':')?;
        let port = port.parse().ok()?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let ip: IpAddr = if host.is_empty() { from.ip() } else { host.parse().ok()? };
        Some((slot, SocketAddr::new(ip, port)))
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> ErrorKind {
        ServerError::new(text).kind("127.0.0.7:1".parse().unwrap())
    }

    #[test]
    fn redirects_are_parsed() {
        let moved =
            |owner: &str| ErrorKind::Moved { slot: Slot::new(3999).unwrap(), owner: owner.parse().unwrap() };
        assert_eq!(kind("MOVED 3999 127.0.0.1:6381"), moved("127.0.0.1:6381"));
        assert_eq!(kind("MOVED 3999 :6381"), moved("127.0.0.7:6381"));
        assert_eq!(kind("MOVED 3999 ::1:6381"), moved("[::1]:6381"));
        assert_eq!(kind("MOVED 3999 [::1]:6381"), moved("[::1]:6381"));
        let ask = ErrorKind::Ask { slot: Slot::new(0).unwrap(), at: "127.0.0.1:2".parse().unwrap() };
        assert_eq!(kind("ASK 0 127.0.0.1:2"), ask);
    }

    #[test]
    fn what_is_not_understood_is_not_taken_for_a_refusal() {
        for text in
            ["MOVED", "MOVED 16384 127.0.0.1:1", "MOVED 1 host:1", "MOVED 1 127.0.0.1:99999", "IOERR x", ""]
        {
            assert_eq!(kind(text), ErrorKind::Other, "{text}");
        }
        assert_eq!(kind("TRYAGAIN later"), ErrorKind::TryAgain);
        assert_eq!(kind("CLUSTERDOWN Hash slot not served"), ErrorKind::ClusterDown);
        assert_eq!(kind("ERR unknown command"), ErrorKind::Refused);
        assert_eq!(kind("CROSSSLOT Keys in request"), ErrorKind::Refused);
    }
}
