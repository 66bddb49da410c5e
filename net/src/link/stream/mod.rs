//! Slot streams over bulk links: records travel from one engine's segments to another engine, and acknowledgements back.
//!
//! The [`Follower`] (the receiver) asks for slots from the cursors that it has; the [`Feeder`] (the source) sends what
//! lies after them, snapshot and tail alike. What this module does not know: why a slot is followed (a replica, an
//! import), who owns it, when to reconnect.

mod feeder;
mod follower;
mod message;
mod syncs;
mod window;

pub use feeder::{FeedObserver, Feeder, RANGE_BYTES};
pub use follower::{FollowObserver, Follower};
pub use message::WhyRefused;
pub use window::{FEED_WINDOW_BYTES, UNSYNCED_MESSAGES_MAX};
