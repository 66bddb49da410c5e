//! What stands for the runtime in a model: files that note what is done to them, a clock, and loom's way to wait.
//!
//! A file is the witness of whoever has the desk. It panics when two use it at once, and when somebody goes on in it
//! without knowing where the last one has stopped: its end is a relaxed atomic, so only the hand-over orders it.

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::poll;
use lockgate_runtime::sync::Arc;
use lockgate_runtime::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use lockgate_runtime::{Elapsed, IoBuf, OnCoreThread, OpenOptions, WriteThenSyncError};

use crate::log::format::FILE_HEADER_BYTES;

thread_local! {
    // All threads of a model are one to the system. Only the writer asks for these.
    static NOW_NS: Cell<u64> = const { Cell::new(0) };
    static TIMEOUTS: Cell<u32> = const { Cell::new(0) };
}

/// Begins with so many timeouts that pass at once. All others never pass.
pub(in crate::log) fn begin(timeouts: u32) {
    NOW_NS.set(0);
    TIMEOUTS.set(timeouts);
}

pub(in crate::log) fn now_ns() -> u64 {
    NOW_NS.get()
}

pub(in crate::log) async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = Box::pin(future);
    let Some(left) = TIMEOUTS.get().checked_sub(1) else { return Ok(future.await) };
    if let std::task::Poll::Ready(output) = poll!(&mut future) {
        return Ok(output);
    }
    TIMEOUTS.set(left);
    NOW_NS.set(NOW_NS.get() + duration.as_nanos() as u64);
    Err(Elapsed)
}

/// Nothing has a name.
pub(in crate::log) async fn remove_file(_: &Path) -> io::Result<()> {
    Ok(())
}

pub(in crate::log) fn block_on_foreign<F: Future>(future: F) -> Result<F::Output, OnCoreThread> {
    Ok(loom::future::block_on(future))
}

/// Who has used a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum By {
    Writer,
    Thread,
}

/// What became of a file.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) bytes: Vec<u8>,
    /// So many of the bytes are on the disk.
    pub(super) synced_bytes: usize,
    /// The syncs that did anything.
    pub(super) syncs: Vec<By>,
}

struct Witness {
    is_used: AtomicBool,
    /// Where the next batch goes.
    end: AtomicU64,
    refuses_to_sync: bool,
    notes: std::sync::Mutex<Notes>,
}

#[derive(Clone)]
pub(in crate::log) struct File(Arc<Witness>);

#[derive(Clone)]
pub(in crate::log) struct BlockingFile(File);

impl File {
    pub(super) fn new(refuses_to_sync: bool) -> File {
        File(Arc::new(Witness {
            is_used: AtomicBool::new(false),
            end: AtomicU64::new(FILE_HEADER_BYTES as u64),
            refuses_to_sync,
            notes: std::sync::Mutex::default(),
        }))
    }

    pub(super) fn notes<T>(&self, look: impl FnOnce(&mut Notes) -> T) -> T {
        look(&mut self.0.notes.lock().expect("no panic has poisoned it"))
    }

    /// Others may come in between, at each atomic of the model. They must not.
    fn alone<T>(&self, does: impl FnOnce() -> T) -> T {
        assert!(!self.0.is_used.swap(true, Ordering::Relaxed), "two are at the desk");
        let done = does();
        self.0.is_used.store(false, Ordering::Relaxed);
        done
    }

    fn write(&self, bytes: &[u8], offset: u64) {
        self.alone(|| {
            assert_eq!(self.0.end.load(Ordering::Relaxed), offset, "the desk knows where the file ends");
            self.notes(|notes| notes.bytes.extend_from_slice(bytes));
            self.0.end.store(offset + bytes.len() as u64, Ordering::Relaxed);
        });
    }

    fn sync(&self, by: By) -> io::Result<()> {
        self.alone(|| {
            let covered = self.notes(|notes| notes.bytes.len());
            // It takes a while, and covers what was there when it began.
            self.0.end.load(Ordering::Relaxed);
            if self.0.refuses_to_sync {
                return Err(io::Error::other("this disk does not sync"));
            }
            self.notes(|notes| {
                if covered > notes.synced_bytes {
                    notes.synced_bytes = covered;
                    notes.syncs.push(by);
                }
            });
            Ok(())
        })
    }

    pub(in crate::log) async fn open(path: &Path, _: &OpenOptions) -> io::Result<File> {
        panic!("a model opens no file: {}", path.display());
    }

    pub(in crate::log) async fn len(&self) -> io::Result<u64> {
        Ok(self.0.end.load(Ordering::Relaxed))
    }

    pub(in crate::log) async fn write_all_at<B: IoBuf>(&self, buf: B, offset: u64) -> (io::Result<()>, B) {
        self.write(buf.as_slice(), offset);
        (Ok(()), buf)
    }

    pub(in crate::log) async fn write_all_at_then_sync(
        &self,
        buf: Vec<u8>,
        offset: u64,
        written: impl FnOnce(Vec<u8>),
    ) -> Result<(), WriteThenSyncError> {
        self.write(&buf, offset);
        written(buf);
        self.sync(By::Writer).map_err(WriteThenSyncError::Sync)
    }

    pub(in crate::log) async fn sync_data(&self) -> io::Result<()> {
        self.sync(By::Writer)
    }

    pub(in crate::log) fn blocking(&self) -> Option<BlockingFile> {
        Some(BlockingFile(self.clone()))
    }
}

impl BlockingFile {
    pub(in crate::log) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write(bytes, offset);
        Ok(())
    }

    pub(in crate::log) fn sync_data(&self) -> io::Result<()> {
        self.0.sync(By::Thread)
    }
}
