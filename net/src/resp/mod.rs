//! RESP: what clients speak. A codec, a reply builder, and a listener that runs a [`Service`].
//!
//! A custom server implements commands (a [`Service`]), not sockets. What this module does not know: keys, slots,
//! the engine, the cluster.

mod codec;
mod connection;
mod inline;
mod limits;
mod listener;
mod reply;
mod service;

pub use codec::{
    ARGS_MAX, BULK_BYTES_MAX, LINE_BYTES_MAX, Parser, Progress, ProtocolError, REQUEST_BYTES_MAX, Request,
};
pub use connection::{INPUT_BYTES_SMALL, REPLY_BYTES_PER_SEND};
pub use limits::{CONNECTIONS_MAX, LARGE_INPUT_BYTES_MAX, Limits};
pub use listener::{STOP_GRACE, serve};
pub use reply::{REPLY_COPY_BYTES_MAX, Reply};
pub use service::{Flow, Service};
