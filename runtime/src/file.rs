//! Files, on the current core's disk: the machine's, or a simulated one.
//!
//! Invariant: a buffer that is handed to an operation belongs to it until the operation is complete, also when the
//! future is dropped before; a write whose future is dropped may still happen.

use std::io;
use std::path::Path;

use crate::Boxed;
use crate::buf::IoBuf;
use crate::context;
use crate::executor::Backend;
use crate::sim::SimFile;
use crate::uring::UringFile;

/// How a file is opened. All false by default; set the fields, or chain the methods of the same names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Reads are allowed.
    pub read: bool,
    /// Writes are allowed.
    pub write: bool,
    /// The file is created when it does not exist.
    pub create: bool,
    /// The file must not exist and is created.
    pub create_new: bool,
    /// The file is emptied.
    pub truncate: bool,
    /// An exclusive lock is taken on the file and held until the last handle is dropped. When somebody else has it,
    /// opening fails with [`io::ErrorKind::WouldBlock`].
    pub exclusive_lock: bool,
    /// Reads come from the disk itself, with what was written and not synced yet, and leave the system's cache as it is:
    /// after a failed sync that may hold as clean what the disk never got. Such a file is read by [`File::read_part_at`].
    /// Where the filesystem cannot do it, opening the file, or the first read, fails with
    /// [`io::ErrorKind::InvalidInput`].
    pub direct: bool,
}

/// What the place in the file, the place in memory, and the length of a direct read must be a multiple of.
pub const DIRECT_ALIGN_BYTES: usize = 4096;

/// The first place in a buffer at or behind `least` at which a direct read may begin. It stays the same as long as the buffer
/// is not moved to other memory.
pub fn direct_start(buf: &[u8], least: usize) -> usize {
    let address = buf.as_ptr().addr() + least;
    least + (address.next_multiple_of(DIRECT_ALIGN_BYTES) - address)
}

impl OpenOptions {
    /// All false.
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`OpenOptions::read`](#structfield.read).
    pub fn read(mut self, yes: bool) -> Self {
        self.read = yes;
        self
    }

    /// See [`OpenOptions::write`](#structfield.write).
    pub fn write(mut self, yes: bool) -> Self {
        self.write = yes;
        self
    }

    /// See [`OpenOptions::create`](#structfield.create).
    pub fn create(mut self, yes: bool) -> Self {
        self.create = yes;
        self
    }

    /// See [`OpenOptions::create_new`](#structfield.create_new).
    pub fn create_new(mut self, yes: bool) -> Self {
        self.create_new = yes;
        self
    }

    /// See [`OpenOptions::truncate`](#structfield.truncate).
    pub fn truncate(mut self, yes: bool) -> Self {
        self.truncate = yes;
        self
    }

    /// See [`OpenOptions::exclusive_lock`](#structfield.exclusive_lock).
    pub fn exclusive_lock(mut self, yes: bool) -> Self {
        self.exclusive_lock = yes;
        self
    }

    /// See [`OpenOptions::direct`](#structfield.direct).
    pub fn direct(mut self, yes: bool) -> Self {
        self.direct = yes;
        self
    }
}

/// An open file. Cheap to clone; the clones share one descriptor, which is closed with the last of them.
#[derive(Debug, Clone)]
pub struct File(Imp);

#[derive(Debug, Clone)]
enum Imp {
    Uring(UringFile),
    Sim(SimFile),
}

impl File {
    /// Opens the file at `path`.
    pub fn open<'a>(path: &'a Path, options: &'a OpenOptions) -> Boxed<'a, io::Result<File>> {
        Box::pin(async move {
            let core = context::expect("File::open");
            match &core.backend {
                Backend::Uring(ring) => Ok(File(Imp::Uring(UringFile::open(ring, path, options).await?))),
                Backend::Sim(port) => Ok(File(Imp::Sim(SimFile::open(port, path, options).await?))),
            }
        })
    }

    /// Reads into the whole of `buf` (its length, not its capacity) from `offset`. Returns fewer bytes only at the
    /// end of the file.
    pub async fn read_at(&self, buf: Vec<u8>, offset: u64) -> (io::Result<usize>, Vec<u8>) {
        self.read_part_at(buf, 0, offset).await
    }

    /// As [`File::read_at`], into `buf[from..]`. Of a file that was opened for direct reads, `offset`, the length, and the
    /// address of `buf[from]` (see [`direct_start`]) must be multiples of [`DIRECT_ALIGN_BYTES`].
    pub async fn read_part_at(&self, buf: Vec<u8>, from: usize, offset: u64) -> (io::Result<usize>, Vec<u8>) {
        match &self.0 {
            Imp::Uring(file) => file.read_at(buf, from, offset).await,
            Imp::Sim(file) => file.read_at(buf, from, offset).await,
        }
    }

    /// Writes all of `buf` at `offset`.
    pub async fn write_all_at<B: IoBuf>(&self, buf: B, offset: u64) -> (io::Result<()>, B) {
        match &self.0 {
            Imp::Uring(file) => file.write_all_at(buf, offset).await,
            Imp::Sim(file) => file.write_all_at(buf, offset).await,
        }
    }

    /// As [`File::write_all_at`] and then, when all is written, [`File::sync_data`]. In between `written` is called with the
    /// buffer, on whatever thread: it must not block, nor use what belongs to a core.
    pub async fn write_all_at_then_sync(
        &self,
        buf: Vec<u8>,
        offset: u64,
        written: impl FnOnce(Vec<u8>) + Send + 'static,
    ) -> Result<(), WriteThenSyncError> {
        match &self.0 {
            Imp::Uring(file) => file.write_all_at_then_sync(buf, offset, written).await,
            Imp::Sim(file) => {
                let (result, buf) = file.write_all_at(buf, offset).await;
                if let Err(error) = result {
                    return Err(WriteThenSyncError::Write(error, buf));
                }
                written(buf);
                file.sync_data().await.map_err(WriteThenSyncError::Sync)
            }
        }
    }

    /// Makes the bytes that were written before this call durable (and what is needed to read them again). An error
    /// is final: what was written since the last success may be lost, and must not be written to this file again.
    pub async fn sync_data(&self) -> io::Result<()> {
        match &self.0 {
            Imp::Uring(file) => file.sync_data().await,
            Imp::Sim(file) => file.sync_data().await,
        }
    }

    /// Has the next reads come from the disk itself, except for what was written and not synced yet. After a failed sync
    /// the system's cache may hold as clean what the disk never got.
    pub fn forget_cached(&self) -> io::Result<()> {
        match &self.0 {
            Imp::Uring(file) => file.forget_cached(),
            Imp::Sim(file) => file.forget_cached(),
        }
    }

    /// The file's length.
    pub async fn len(&self) -> io::Result<u64> {
        match &self.0 {
            Imp::Uring(file) => file.len(),
            Imp::Sim(file) => file.len(),
        }
    }

    /// The same file for foreign threads, which may block. `None` if it is a simulated one: foreign threads are no part of
    /// the simulation.
    pub fn blocking(&self) -> Option<BlockingFile> {
        match &self.0 {
            Imp::Uring(file) => Some(BlockingFile(file.clone())),
            Imp::Sim(_) => None,
        }
    }

    /// Whether the file's length is zero.
    pub async fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len().await? == 0)
    }
}

/// Why [`File::write_all_at_then_sync`] failed.
#[derive(Debug)]
pub enum WriteThenSyncError {
    /// It was not all written, and nothing was synced. The buffer is handed back.
    Write(io::Error, Vec<u8>),
    /// It was written, and is perhaps not durable. Final, as for [`File::sync_data`].
    Sync(io::Error),
}

/// A [`File`] as foreign threads use it: every operation blocks until it is done. On a core's thread they panic, as they
/// would stop everything that the core serves.
#[derive(Debug, Clone)]
pub struct BlockingFile(UringFile);

impl BlockingFile {
    /// As [`File::write_all_at`].
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        assert!(!context::is_core_thread(), "a blocking write on a core's thread");
        self.0.write_all_at_blocking(bytes, offset)
    }

    /// As [`File::sync_data`].
    pub fn sync_data(&self) -> io::Result<()> {
        assert!(!context::is_core_thread(), "a blocking sync on a core's thread");
        self.0.sync_data_blocking()
    }
}
