//! What the writer, and a thread in its place, use from outside: files, the clock, and how a thread waits.
//!
//! These are the runtime's. A model of interleavings has neither cores nor a disk: there a file only notes what is done
//! to it, time passes when somebody waits for it, and loom parks the thread. So the hand-over of the desk is the same
//! source in both worlds, as with `lockgate_runtime::sync`.

#[cfg(not(all(test, loom)))]
pub(super) use lockgate_runtime::{BlockingFile, File, block_on_foreign, fs::remove_file, now_ns, timeout};

#[cfg(all(test, loom))]
pub(super) use super::loom_tests::outside::{
    BlockingFile, File, block_on_foreign, now_ns, remove_file, timeout,
};
