//! The executor of local futures that both backends share: a run queue, a cross-thread inject queue, and timers.

mod core;
mod task;
mod timers;

pub(crate) use self::core::{Backend, Bell, Core, CoreShared, Inject};
pub(crate) use self::task::LocalFuture;
pub use self::task::TaskHandle;
pub(crate) use self::timers::{TimerKey, Timers};
