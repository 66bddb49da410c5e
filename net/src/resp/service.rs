//! What a server built on the listener implements.

use std::net::SocketAddr;

use super::{codec::Request, reply::Reply};

/// What becomes of a connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// It goes on with the next request.
    Continue,
    /// It is closed once the replies gathered so far are sent.
    Close,
}

/// Commands. One value serves all connections of a core; a session is one connection's state.
///
/// The order on a connection is kept: `call` is awaited before the next request is looked at. So a call that parks
/// (on a frozen slot, say) parks its connection and no other.
#[expect(async_fn_in_trait, reason = "services run on one core; their futures are not Send and need not be")]
pub trait Service: 'static {
    /// One connection's state, dropped with the connection.
    type Session: 'static;

    /// A connection was accepted.
    fn open(&self, peer: SocketAddr) -> Self::Session;

    /// Executes one request and appends exactly one reply.
    async fn call(&self, session: &mut Self::Session, request: &Request<'_>, reply: &mut Reply) -> Flow;

    /// Called once before a batch of replies is sent: returns when they may be acknowledged. On an error the whole
    /// batch is replaced by that error (with its code: `ERR ...`) and the connection closes.
    async fn settle(&self, session: &mut Self::Session) -> Result<(), String>;
}
