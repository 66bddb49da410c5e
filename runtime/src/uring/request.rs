//! What each operation owns while it is in flight, and how its submission entry looks.
//!
//! Access rule: a request lives in a box of its own from before [`Request::entry`] until the completion. So an entry
//! may point into the request itself and into heap memory that it owns. Every request owns its descriptor, too (a
//! shared handle), so that a number is not closed and given to another file before the kernel has looked at it.
//! [`Request::completed`] is called once, with the count that the kernel gave for exactly this entry.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use io_uring::{opcode, squeue, types};
use rustix::fs::OFlags;
use rustix::net::addr::{SocketAddrArg, SocketAddrStorage};

use crate::buf::IoBuf;
use crate::executor::{Bell, CoreShared};
use crate::sync::Arc;

/// The most bytes of one read, write, send or receive (the kernel's own limit is a little higher).
const BYTES_MAX: usize = 1 << 30;
/// The most pieces of one vectored send (IOV_MAX).
const PIECES_MAX: usize = 1024;

/// What is done when the future of an operation is dropped before the completion.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OnDrop {
    /// Let it complete: it does not take long.
    Leave,
    /// Cancel it: it may never complete by itself.
    Cancel,
    /// Cancel it; if it succeeds all the same, its result is a descriptor to close.
    CancelAndClose,
}

/// An operation and all that it owns.
///
/// # Safety
///
/// The entry must refer only to memory that the request owns at a stable place while it is boxed, and that is neither
/// dropped nor accessed before `completed`; to descriptors that it owns; and to constants.
pub(crate) unsafe trait Request: 'static {
    /// What a drop of the future does.
    const ON_DROP: OnDrop;

    /// The submission entry.
    fn entry(&mut self) -> squeue::Entry;

    /// The operation has succeeded with this result.
    ///
    /// # Safety
    ///
    /// Called at most once, with what the kernel gave for this request's entry, and only when nobody else takes over
    /// what the result stands for.
    unsafe fn completed(&mut self, _result: u32) {}
}

fn descriptor(fd: &OwnedFd) -> types::Fd {
    types::Fd(fd.as_raw_fd())
}

fn bounded(len: usize) -> u32 {
    u32::try_from(len.min(BYTES_MAX)).expect("the bound fits")
}

/// A count from the kernel as a size.
pub(crate) fn count(count: u32) -> usize {
    usize::try_from(count).expect("usize holds 32 bits")
}

/// A path for the kernel.
pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{} contains a zero byte", path.display()))
    })
}

/// Reads into `buf[start..]`, from `offset`.
pub(crate) struct Read {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) buf: Vec<u8>,
    pub(crate) start: usize,
    pub(crate) offset: u64,
}

// SAFETY: points to the initialised bytes of `buf`, which is not touched in flight.
unsafe impl Request for Read {
    const ON_DROP: OnDrop = OnDrop::Leave;

    fn entry(&mut self) -> squeue::Entry {
        let into = &mut self.buf[self.start..];
        opcode::Read::new(descriptor(&self.fd), into.as_mut_ptr(), bounded(into.len()))
            .offset(self.offset)
            .build()
    }
}

/// Writes `buf[start..]` at `offset`.
pub(crate) struct Write<B> {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) buf: B,
    pub(crate) start: usize,
    pub(crate) offset: u64,
}

// SAFETY: points to the bytes of an IoBuf, which stay where they are while it is owned.
unsafe impl<B: IoBuf> Request for Write<B> {
    const ON_DROP: OnDrop = OnDrop::Leave;

    fn entry(&mut self) -> squeue::Entry {
        let from = &self.buf.as_slice()[self.start..];
        opcode::Write::new(descriptor(&self.fd), from.as_ptr(), bounded(from.len()))
            .offset(self.offset)
            .build()
    }
}

/// Syncs a file's data, or a directory.
pub(crate) struct Sync {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) data_only: bool,
}

// SAFETY: refers to no memory.
unsafe impl Request for Sync {
    const ON_DROP: OnDrop = OnDrop::Leave;

    fn entry(&mut self) -> squeue::Entry {
        let flags = if self.data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
        opcode::Fsync::new(descriptor(&self.fd)).flags(flags).build()
    }
}

/// Opens a file.
pub(crate) struct Open {
    pub(crate) path: CString,
    pub(crate) flags: OFlags,
    pub(crate) mode: u32,
    /// The descriptor, once it is open.
    pub(crate) opened: Option<OwnedFd>,
}

// SAFETY: points to the path, which the request owns.
unsafe impl Request for Open {
    const ON_DROP: OnDrop = OnDrop::CancelAndClose;

    fn entry(&mut self) -> squeue::Entry {
        opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), self.path.as_ptr())
            .flags(self.flags.bits().cast_signed())
            .mode(self.mode)
            .build()
    }

    unsafe fn completed(&mut self, result: u32) {
        // SAFETY: the result of an open is a new descriptor, and the caller leaves it to this request.
        self.opened = Some(unsafe { OwnedFd::from_raw_fd(result.cast_signed()) });
    }
}

/// Renames a file.
pub(crate) struct Rename {
    pub(crate) from: CString,
    pub(crate) to: CString,
}

// SAFETY: points to the paths, which the request owns.
unsafe impl Request for Rename {
    const ON_DROP: OnDrop = OnDrop::Leave;

    fn entry(&mut self) -> squeue::Entry {
        let here = types::Fd(libc::AT_FDCWD);
        opcode::RenameAt::new(here, self.from.as_ptr(), here, self.to.as_ptr()).build()
    }
}

/// Removes a file or an empty directory.
pub(crate) struct Unlink {
    pub(crate) path: CString,
    pub(crate) directory: bool,
}

// SAFETY: points to the path, which the request owns.
unsafe impl Request for Unlink {
    const ON_DROP: OnDrop = OnDrop::Leave;

    fn entry(&mut self) -> squeue::Entry {
        let flags = if self.directory { libc::AT_REMOVEDIR } else { 0 };
        opcode::UnlinkAt::new(types::Fd(libc::AT_FDCWD), self.path.as_ptr()).flags(flags).build()
    }
}

/// Creates a directory.
pub(crate) struct MakeDir {
    pub(crate) path: CString,
}

// SAFETY: points to the path, which the request owns.
unsafe impl Request for MakeDir {
    const ON_DROP: OnDrop = OnDrop::Leave;

    fn entry(&mut self) -> squeue::Entry {
        opcode::MkDirAt::new(types::Fd(libc::AT_FDCWD), self.path.as_ptr()).mode(0o755).build()
    }
}

/// Accepts a connection.
pub(crate) struct Accept {
    pub(crate) fd: Arc<OwnedFd>,
    /// The new connection, once there is one.
    pub(crate) accepted: Option<OwnedFd>,
}

// SAFETY: refers to no memory (the peer's address is asked for later).
unsafe impl Request for Accept {
    const ON_DROP: OnDrop = OnDrop::CancelAndClose;

    fn entry(&mut self) -> squeue::Entry {
        let (address, len) = (std::ptr::null_mut(), std::ptr::null_mut());
        opcode::Accept::new(descriptor(&self.fd), address, len).flags(libc::SOCK_CLOEXEC).build()
    }

    unsafe fn completed(&mut self, result: u32) {
        // SAFETY: the result of an accept is a new descriptor, and the caller leaves it to this request.
        self.accepted = Some(unsafe { OwnedFd::from_raw_fd(result.cast_signed()) });
    }
}

/// Connects a socket.
pub(crate) struct Connect {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) address: rustix::net::SocketAddrAny,
}

// SAFETY: points to the address inside of the boxed request.
unsafe impl Request for Connect {
    const ON_DROP: OnDrop = OnDrop::Cancel;

    fn entry(&mut self) -> squeue::Entry {
        let address: *const SocketAddrStorage = self.address.as_ptr();
        opcode::Connect::new(descriptor(&self.fd), address.cast(), self.address.addr_len()).build()
    }
}

/// Encodes an address for the kernel.
pub(crate) fn encode_address(address: std::net::SocketAddr) -> rustix::net::SocketAddrAny {
    address.as_any()
}

/// Receives into the spare capacity of `buf`, behind its `start` bytes.
pub(crate) struct Recv {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) buf: Vec<u8>,
    pub(crate) start: usize,
}

// SAFETY: points to the spare capacity of `buf`, which is not touched in flight.
unsafe impl Request for Recv {
    const ON_DROP: OnDrop = OnDrop::Cancel;

    fn entry(&mut self) -> squeue::Entry {
        debug_assert_eq!(self.start, self.buf.len());
        let into = self.buf.spare_capacity_mut();
        opcode::Recv::new(descriptor(&self.fd), into.as_mut_ptr().cast(), bounded(into.len())).build()
    }

    unsafe fn completed(&mut self, result: u32) {
        // SAFETY: the kernel has written `count` bytes into the spare capacity behind `start`, and it was told how
        // much room there is.
        unsafe { self.buf.set_len(self.start + count(result)) };
    }
}

/// Sends `buf[start..]`.
pub(crate) struct Send<B> {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) buf: B,
    pub(crate) start: usize,
}

// SAFETY: points to the bytes of an IoBuf, which stay where they are while it is owned.
unsafe impl<B: IoBuf> Request for Send<B> {
    const ON_DROP: OnDrop = OnDrop::Cancel;

    fn entry(&mut self) -> squeue::Entry {
        let from = &self.buf.as_slice()[self.start..];
        opcode::Send::new(descriptor(&self.fd), from.as_ptr(), bounded(from.len()))
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build()
    }
}

/// Sends several buffers, from byte `start` of buffer `first` on.
pub(crate) struct SendVectored {
    fd: Arc<OwnedFd>,
    bufs: Vec<Box<dyn IoBuf>>,
    first: usize,
    start: usize,
    pieces: Vec<libc::iovec>,
    message: libc::msghdr,
}

impl SendVectored {
    pub(crate) fn new(fd: Arc<OwnedFd>, bufs: Vec<Box<dyn IoBuf>>) -> Self {
        // SAFETY: msghdr is plain data for which zeros are valid: no name, no control data, no pieces.
        let message = unsafe { std::mem::zeroed() };
        let pieces = Vec::with_capacity(bufs.len().min(PIECES_MAX));
        let mut request = Self { fd, bufs, first: 0, start: 0, pieces, message };
        request.advance(0);
        request
    }

    /// Goes on behind `count` sent bytes and whatever empty buffers follow.
    pub(crate) fn advance(&mut self, count: usize) {
        self.start += count;
        while let Some(buf) = self.bufs.get(self.first) {
            let len = buf.as_slice().len();
            if self.start < len {
                return;
            }
            self.start -= len;
            self.first += 1;
        }
        debug_assert_eq!(self.start, 0, "no more was sent than there was");
    }

    pub(crate) fn is_done(&self) -> bool {
        self.first == self.bufs.len()
    }
}

// SAFETY: the message header points to the pieces and these to the buffers, all owned by the boxed request; they are
// rebuilt only here, before the operation starts.
unsafe impl Request for SendVectored {
    const ON_DROP: OnDrop = OnDrop::Cancel;

    fn entry(&mut self) -> squeue::Entry {
        self.pieces.clear();
        let (mut start, mut room) = (self.start, BYTES_MAX);
        for buf in &self.bufs[self.first..] {
            if self.pieces.len() == PIECES_MAX || room == 0 {
                break;
            }
            let bytes = &buf.as_slice()[start..];
            start = 0;
            let len = bytes.len().min(room);
            room -= len;
            let base = bytes.as_ptr().cast_mut().cast();
            self.pieces.push(libc::iovec { iov_base: base, iov_len: len });
        }
        self.message.msg_iov = self.pieces.as_mut_ptr();
        self.message.msg_iovlen = self.pieces.len() as _;
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL).cast_unsigned();
        opcode::SendMsg::new(descriptor(&self.fd), &raw const self.message).flags(flags).build()
    }
}

/// Reads the counter of a core's bell.
pub(crate) struct RingBell {
    pub(crate) core: Arc<CoreShared>,
    pub(crate) counter: u64,
}

// SAFETY: points to the counter inside of the boxed request; the core owns the bell's descriptor.
unsafe impl Request for RingBell {
    const ON_DROP: OnDrop = OnDrop::Cancel;

    fn entry(&mut self) -> squeue::Entry {
        let Bell::EventFd(fd) = &self.core.bell else {
            unreachable!("cores with a ring have a bell that rings")
        };
        let counter = (&raw mut self.counter).cast();
        opcode::Read::new(descriptor(fd), counter, 8).build()
    }
}
