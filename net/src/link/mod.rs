//! Links between nodes: ordered, checked messages over TCP between two nodes that told each other who they are.
//!
//! A message has a kind and a payload of up to [`MESSAGE_BYTES_MAX`]; it travels in frames of up to
//! [`FRAME_BYTES_MAX`]. What this module does not know: what the messages mean (except for [`stream`]'s), who may join
//! which cluster (the caller's handshake decision), when to reconnect.

mod accept;
mod error;
mod frame;
mod handshake;
mod keepalive;
#[expect(clippy::module_inception, reason = "the file holds the type `Link`")]
mod link;
mod part;
mod receiver;
mod sender;
pub mod stream;

pub use accept::{HANDSHAKES_MAX, accept_links};
pub use error::{LinkError, Peer};
pub use frame::{
    FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameDecoder, FrameEncoder, FrameError, MESSAGE_BYTES_MAX, Message,
    Step,
};
pub use handshake::{FORMAT, HELLO_BYTES, Hello, KIND_USER_MIN, Purpose, Refusal, RefusalReason};
pub use keepalive::{PING_INTERVAL, SILENCE_MAX};
pub use link::{HANDSHAKE_TIMEOUT, Link};
pub use receiver::LinkReceiver;
pub use sender::{LinkSender, SEND_QUEUE_BYTES_MAX};
