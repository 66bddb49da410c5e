//! The io_uring backend: one thread, one ring and one executor per core.
//!
//! `ring` owns the ring and the slots of the operations in flight, `request` says what each operation owns and how its
//! submission looks (these two hold all `unsafe` of the backend), `cores` starts and joins the threads, `event_loop`
//! is what each of them runs, `disk_threads` are where files are synced; `file`, `uring_fs` and `net` are safe code above `ring`.

mod cores;
mod disk_threads;
mod event_loop;
mod file;
mod net;
mod request;
mod ring;
pub(crate) mod uring_fs;

pub(crate) use self::cores::{UringCores, start};
pub(crate) use self::file::UringFile;
pub(crate) use self::net::{UringListener, UringStream};
pub(crate) use self::ring::Ring;
