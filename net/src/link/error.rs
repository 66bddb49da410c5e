//! Why a link could not be made, or is no more.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use super::frame::FrameError;
use super::handshake::Refusal;

/// The other end, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub addr: SocketAddr,
    /// Its node id, once it has said so.
    pub node: Option<u32>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node {
            Some(node) => write!(f, "node {node} at {}", self.addr),
            None => write!(f, "{}", self.addr),
        }
    }
}

/// What ended a link, or kept it from being made. Everybody who waits on a link gets the first reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// No connection.
    #[error("no connection to {peer}: {reason}")]
    Connect {
        /// The other end.
        peer: Peer,
        /// The kind of the I/O error.
        kind: io::ErrorKind,
        /// The I/O error in words.
        reason: String,
    },
    /// The handshake took too long.
    #[error("{peer} did not finish the handshake within {timeout_ms} ms")]
    HandshakeTimeout {
        /// The other end.
        peer: Peer,
        /// The time it had.
        timeout_ms: u64,
    },
    /// The peer's handshake is not one.
    #[error("{peer} does not speak this protocol: {reason}")]
    Handshake {
        /// The other end.
        peer: Peer,
        /// What is wrong with it.
        reason: String,
    },
    /// The peer does not want the link.
    #[error("{peer} refused the link: {refusal}")]
    Refused {
        /// The other end.
        peer: Peer,
        /// Its reason.
        refusal: Refusal,
    },
    /// This node does not want the link.
    #[error("the link with {peer} was refused here: {refusal}")]
    RefusedHere {
        /// The other end.
        peer: Peer,
        /// The reason.
        refusal: Refusal,
    },
    /// Received bytes are damaged, or not a link's.
    #[error("damaged bytes from {peer}: {error}")]
    Frame {
        /// The other end.
        peer: Peer,
        /// What is wrong with them.
        error: FrameError,
    },
    /// A message that the protocol above does not allow.
    #[error("{peer} sent a message of kind {kind} that makes no sense: {reason}")]
    Message {
        /// The other end.
        peer: Peer,
        /// The message's kind.
        kind: u8,
        /// What is wrong with it.
        reason: String,
    },
    /// A message to be sent is too long.
    #[error("a message of {bytes} bytes to {peer} exceeds the limit of {limit}")]
    MessageTooLong {
        /// The other end.
        peer: Peer,
        /// Its length.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The peer closed the link.
    #[error("{peer} closed the link{}", if *.in_message { " in the middle of a message" } else { "" })]
    ClosedByPeer {
        /// The other end.
        peer: Peer,
        /// Whether a message was cut off.
        in_message: bool,
    },
    /// Nothing was heard of the peer for too long.
    #[error("nothing was heard of {peer} for {silence_ms} ms")]
    Silent {
        /// The other end.
        peer: Peer,
        /// For how long.
        silence_ms: u64,
    },
    /// This node closed the link.
    #[error("the link to {peer} was closed here: {reason}")]
    ClosedHere {
        /// The other end.
        peer: Peer,
        /// Why.
        reason: String,
    },
    /// Sending or receiving failed.
    #[error("the link to {peer} failed: {reason}")]
    Io {
        /// The other end.
        peer: Peer,
        /// The kind of the I/O error.
        kind: io::ErrorKind,
        /// The I/O error in words.
        reason: String,
    },
}

impl LinkError {
    pub(super) fn connect(peer: Peer, error: &io::Error) -> Self {
        LinkError::Connect { peer, kind: error.kind(), reason: error.to_string() }
    }

    pub(super) fn io(peer: Peer, error: &io::Error) -> Self {
        LinkError::Io { peer, kind: error.kind(), reason: error.to_string() }
    }
}
