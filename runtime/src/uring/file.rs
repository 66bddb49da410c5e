//! Files by io_uring. Operations go through the ring of the core that calls them, so one file serves all cores.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{Advice, FlockOperation, OFlags, fadvise, fdatasync, flock, fstat};
use rustix::io::pwrite;

use super::cores::cores_of;
use super::disk_threads::Done;
use super::request::{Open, Read, Sync, Write, c_path, count};
use super::ring::Ring;
use crate::buf::IoBuf;
use crate::context;
use crate::executor::Backend;
use crate::file::{OpenOptions, WriteThenSyncError};
use crate::sync::Arc;

/// The permissions of created files.
const MODE: u32 = 0o644;

/// An open file.
#[derive(Debug, Clone)]
pub(crate) struct UringFile {
    fd: Arc<OwnedFd>,
}

/// Does what blocks on a thread of the current core's runtime.
fn on_disk_thread<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> Done<T> {
    cores_of(&context::expect(what).inner).disk.run(work)
}

/// The ring of the current core.
pub(super) fn current_ring(what: &str) -> Rc<Ring> {
    match &context::expect(what).backend {
        Backend::Uring(ring) => ring.clone(),
        Backend::Sim(_) => panic!("{what}: a file of the real disk was used in the simulation"),
    }
}

impl UringFile {
    pub(crate) async fn open(ring: &Rc<Ring>, path: &Path, options: &OpenOptions) -> io::Result<Self> {
        let mut flags = match (options.read, options.write) {
            (_, false) => OFlags::RDONLY,
            (false, true) => OFlags::WRONLY,
            (true, true) => OFlags::RDWR,
        };
        flags |= OFlags::CLOEXEC;
        flags.set(OFlags::CREATE, options.create || options.create_new);
        flags.set(OFlags::EXCL, options.create_new);
        flags.set(OFlags::TRUNC, options.truncate);
        let fd = open(ring, path, flags).await?;
        if options.exclusive_lock {
            flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
        }
        Ok(Self { fd: Arc::new(fd) })
    }

    pub(crate) async fn read_at(&self, mut buf: Vec<u8>, offset: u64) -> (io::Result<usize>, Vec<u8>) {
        let ring = current_ring("File::read_at");
        let mut start = 0;
        while start < buf.len() {
            let request = Read { fd: self.fd.clone(), buf, start, offset: offset + start as u64 };
            let (result, request) = ring.submit(request).await;
            buf = request.buf;
            match result {
                Ok(0) => break,
                Ok(moved) => start += count(moved),
                Err(error) if is_transient(&error) => {}
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(start), buf)
    }

    pub(crate) async fn write_all_at<B: IoBuf>(&self, mut buf: B, offset: u64) -> (io::Result<()>, B) {
        let ring = current_ring("File::write_all_at");
        let len = buf.as_slice().len();
        let mut start = 0;
        while start < len {
            let request = Write { fd: self.fd.clone(), buf, start, offset: offset + start as u64 };
            let (result, request) = ring.submit(request).await;
            buf = request.buf;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
                Ok(moved) => start += count(moved),
                Err(error) if is_transient(&error) => {}
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }

    pub(crate) async fn write_all_at_then_sync(
        &self,
        buf: Vec<u8>,
        offset: u64,
        written: impl FnOnce(Vec<u8>) + Send + 'static,
    ) -> Result<(), WriteThenSyncError> {
        let file = self.clone();
        on_disk_thread("File::write_all_at_then_sync", move || {
            if let Err(error) = file.write_all_at_blocking(&buf, offset) {
                return Err(WriteThenSyncError::Write(error, buf));
            }
            written(buf);
            file.sync_data_blocking().map_err(WriteThenSyncError::Sync)
        })
        .await
    }

    pub(crate) async fn sync_data(&self) -> io::Result<()> {
        let file = self.clone();
        on_disk_thread("File::sync_data", move || file.sync_data_blocking()).await
    }

    /// By system calls of the calling thread.
    pub(crate) fn write_all_at_blocking(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match pwrite(&self.fd, bytes, offset).map_err(io::Error::from) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(moved) => (bytes, offset) = (&bytes[moved..], offset + moved as u64),
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// By a system call of the calling thread. As [`sync`], it is not tried again by itself.
    pub(crate) fn sync_data_blocking(&self) -> io::Result<()> {
        Ok(fdatasync(&self.fd)?)
    }

    /// Gives up clean pages, which does not wait.
    pub(crate) fn forget_cached(&self) -> io::Result<()> {
        Ok(fadvise(&self.fd, 0, None, Advice::DontNeed)?)
    }

    /// Asks for metadata that is in memory already, so it does not wait.
    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(u64::try_from(fstat(&self.fd)?.st_size).unwrap_or(0))
    }
}

/// Opens a descriptor.
pub(super) async fn open(ring: &Rc<Ring>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let request = Open { path: c_path(path)?, flags, mode: MODE, opened: None };
    let (result, request) = ring.submit(request).await;
    result?;
    Ok(request.opened.expect("set by a successful open"))
}

/// Syncs a file's data, or all of a descriptor. Never tried again by itself, whatever the error says.
pub(super) async fn sync(ring: &Rc<Ring>, fd: Arc<OwnedFd>, data_only: bool) -> io::Result<()> {
    ring.submit(Sync { fd, data_only }).await.0.map(|_| ())
}

/// Whether an operation that has done nothing may be tried again.
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}
