//! Small typed errors. Each says what happened, to what, and what to do.

use std::io;

use thiserror::Error;

/// Why a runtime could not be started.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// A runtime needs at least one core, and there is a limit to their number.
    #[error("a runtime of {cores} cores was asked for; ask for 1 to {max}")]
    Cores {
        /// The count that was asked for.
        cores: usize,
        /// The most that is supported.
        max: usize,
    },
    /// The kernel or the container forbids io_uring.
    #[error(
        "io_uring_setup for core {core} was refused ({source}): io_uring is forbidden here. Allow the io_uring_* \
         system calls in the container's seccomp profile, and set `sysctl kernel.io_uring_disabled=0`"
    )]
    RingForbidden {
        /// The core whose ring could not be made.
        core: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel has no io_uring, or one that is too old.
    #[error(
        "io_uring_setup for core {core} is not supported by this kernel ({source}): use Linux 6.1 or later, \
         with CONFIG_IO_URING"
    )]
    RingUnsupported {
        /// The core whose ring could not be made.
        core: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The ring could not be made for another reason.
    #[error(
        "io_uring_setup for core {core} failed ({source}): check the limits on open files, memory and locked memory \
         (ulimit -n, ulimit -l, the cgroup's memory limit)"
    )]
    Ring {
        /// The core whose ring could not be made.
        core: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The thread of a core could not be started, or what it needs besides the ring.
    #[error(
        "the thread of core {core} could not be started ({source}): check the limits on threads and open files"
    )]
    Thread {
        /// The core.
        core: usize,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A call that blocks its thread was made on a core's thread, where it would stop the whole core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a blocking wait was called on a core's thread, which it would stop: await the future instead")]
pub struct OnCoreThread;

/// What was waited for has failed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("what was waited for has failed and will not come: look at the failure of its source")]
pub struct Failed;

/// A timeout has passed before the future was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the deadline has passed")]
pub struct Elapsed;

/// Why a blocking wait returned without what it waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WaitError {
    /// See [`OnCoreThread`].
    #[error(transparent)]
    OnCoreThread(#[from] OnCoreThread),
    /// See [`Failed`].
    #[error(transparent)]
    Failed(#[from] Failed),
}
