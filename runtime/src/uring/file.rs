//! Files by io_uring. Operations go through the ring of the core that calls them, so one file serves all cores.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{Advice, FlockOperation, OFlags, fadvise, flock, fstat};

use super::request::{Open, Read, Sync, Write, c_path, count};
use super::ring::Ring;
use crate::buf::IoBuf;
use crate::context;
use crate::executor::Backend;
use crate::file::{DIRECT_ALIGN_BYTES, OpenOptions};
use crate::sync::Arc;

/// The permissions of created files.
const MODE: u32 = 0o644;

/// An open file.
#[derive(Debug, Clone)]
pub(crate) struct UringFile {
    fd: Arc<OwnedFd>,
    is_direct: bool,
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
        flags.set(OFlags::DIRECT, options.direct);
        let fd = open(ring, path, flags).await?;
        if options.exclusive_lock {
            flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
        }
        Ok(Self { fd: Arc::new(fd), is_direct: options.direct })
    }

    pub(crate) async fn read_at(
        &self,
        mut buf: Vec<u8>,
        from: usize,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>) {
        let ring = current_ring("File::read_at");
        let is_aligned = |number: usize| number.is_multiple_of(DIRECT_ALIGN_BYTES);
        assert!(
            !self.is_direct || [buf[from..].as_ptr().addr(), buf.len() - from].into_iter().all(is_aligned),
            "a direct read is aligned"
        );
        let mut start = from;
        while start < buf.len() {
            let offset = offset + (start - from) as u64;
            let request = Read { fd: self.fd.clone(), buf, start, offset };
            let (result, request) = ring.submit(request).await;
            buf = request.buf;
            match result {
                Ok(0) => break,
                Ok(moved) => start += count(moved),
                Err(error) if is_transient(&error) => {}
                Err(error) => return (Err(error), buf),
            }
            // Only the end of the file makes that of a direct read, and there is nothing behind it that could be asked for.
            if self.is_direct && !is_aligned(start - from) {
                break;
            }
        }
        (Ok(start - from), buf)
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

    pub(crate) async fn sync_data(&self) -> io::Result<()> {
        let ring = current_ring("File::sync_data");
        sync(&ring, self.fd.clone(), true).await
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
