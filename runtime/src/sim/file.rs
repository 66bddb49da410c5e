//! Files of a simulated disk: each operation is an event of the world, after a latency drawn from the seed.

use std::fmt;
use std::io;
use std::path::Path;

use super::disk_call::{self, DiskAnswer, DiskCall, Opened, process_is_gone};
use super::node::NodePort;
use super::pages::Data;
use crate::buf::IoBuf;
use crate::file::{DIRECT_ALIGN_BYTES, OpenOptions};
use crate::sync::Arc;

/// An open file of a simulated disk.
#[derive(Clone)]
pub(crate) struct SimFile(Arc<Handle>);

/// Keeps the inode, and its lock.
struct Handle {
    port: NodePort,
    opened: Opened,
    is_readable: bool,
    is_writable: bool,
    is_direct: bool,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("inode", &self.0.opened.inode).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.port.world.with(|state| disk_call::close(state, self.opened));
    }
}

impl SimFile {
    pub(crate) async fn open(port: &NodePort, path: &Path, options: &OpenOptions) -> io::Result<Self> {
        let call = DiskCall::Open { path: path.to_path_buf(), options: *options };
        match disk_call::start(port, call).await? {
            DiskAnswer::Opened(opened) => Ok(Self(Arc::new(Handle {
                port: port.clone(),
                opened,
                is_readable: options.read || !options.write,
                is_writable: options.write,
                is_direct: options.direct,
            }))),
            other => unreachable!("a file was opened, not {other:?}"),
        }
    }

    pub(crate) async fn read_at(
        &self,
        buf: Vec<u8>,
        from: usize,
        offset: u64,
    ) -> (io::Result<usize>, Vec<u8>) {
        if !self.0.is_readable {
            return (Err(io::ErrorKind::PermissionDenied.into()), buf);
        }
        let is_direct = self.0.is_direct;
        let aligned = |number: u64| number.is_multiple_of(DIRECT_ALIGN_BYTES as u64);
        assert!(
            !is_direct || (aligned(offset) && aligned((buf.len() - from) as u64)),
            "a direct read is aligned"
        );
        let call = DiskCall::Read { inode: self.0.opened.inode, buf, from, offset, is_direct };
        match disk_call::start(&self.0.port, call).await {
            Ok(DiskAnswer::Read(result, buf)) => (result, buf),
            Ok(other) => unreachable!("bytes were asked for, not {other:?}"),
            Err(error) => (Err(error), Vec::new()),
        }
    }

    pub(crate) async fn write_all_at<B: IoBuf>(&self, buf: B, offset: u64) -> (io::Result<()>, B) {
        if !self.0.is_writable {
            return (Err(io::ErrorKind::PermissionDenied.into()), buf);
        }
        let call = DiskCall::Write { inode: self.0.opened.inode, data: Data::of(buf.as_slice()), offset };
        (disk_call::start(&self.0.port, call).await.map(drop), buf)
    }

    pub(crate) async fn sync_data(&self) -> io::Result<()> {
        disk_call::start(&self.0.port, DiskCall::Sync { inode: self.0.opened.inode }).await.map(drop)
    }

    pub(crate) fn forget_cached(&self) -> io::Result<()> {
        let Handle { port, opened, .. } = &*self.0;
        port.world.with(|state| {
            let machine = &mut state.machines[opened.node];
            if !machine.runs(opened.process) {
                return Err(process_is_gone());
            }
            machine.disk.forget_cached(opened.inode);
            Ok(())
        })
    }

    pub(crate) fn len(&self) -> io::Result<u64> {
        let Handle { port, opened, .. } = &*self.0;
        port.world.with(|state| {
            let machine = &state.machines[opened.node];
            if machine.runs(opened.process) {
                Ok(machine.disk.len(opened.inode))
            } else {
                Err(process_is_gone())
            }
        })
    }
}
