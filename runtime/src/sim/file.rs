//! Files of a simulated disk: each operation is an event of the world, after a latency drawn from the seed.

use std::fmt;
use std::io;
use std::path::Path;

use super::node::NodePort;
use super::world::{Operation, State, nothing_to_undo};
use crate::buf::IoBuf;
use crate::file::OpenOptions;
use crate::sync::Arc;

/// Latencies in nanoseconds, from and to.
const OPEN_NS: (u64, u64) = (5_000, 40_000);
const READ_NS: (u64, u64) = (5_000, 30_000);
const WRITE_NS: (u64, u64) = (5_000, 20_000);
const SYNC_NS: (u64, u64) = (100_000, 1_000_000);
/// What moving bytes takes beside that: 4 bytes a nanosecond.
const BYTES_PER_NS: u64 = 4;

/// An open file of a simulated disk.
#[derive(Clone)]
pub(crate) struct SimFile(Arc<Handle>);

/// Keeps the inode, and its lock.
struct Handle {
    port: NodePort,
    inode: u64,
    epoch: u64,
    is_readable: bool,
    is_writable: bool,
    has_lock: bool,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("inode", &self.0.inode).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.port.world.with(|state| {
            close(state, self.port.node, self.epoch, self.inode, self.has_lock);
        });
    }
}

fn close(state: &mut State, node: usize, epoch: u64, inode: u64, has_lock: bool) {
    let disk = &mut state.disks[node];
    if disk.epoch == epoch {
        if has_lock {
            disk.unlock(inode);
        }
        disk.remove_user(inode);
    }
}

/// What a node gets from a disk whose power was cut.
fn power_was_cut() -> io::Error {
    io::Error::other("the power of the simulated machine was cut")
}

fn between(state: &mut State, (from, to): (u64, u64), bytes: usize) -> u64 {
    state.random.between(from, to) + bytes as u64 / BYTES_PER_NS
}

impl SimFile {
    pub(crate) async fn open(port: &NodePort, path: &Path, options: &OpenOptions) -> io::Result<Self> {
        let (node, path, options) = (port.node, path.to_path_buf(), *options);
        let (latency_ns, epoch) =
            port.world.with(|state| (between(state, OPEN_NS, 0), state.disks[node].epoch));
        let opening = port.world.operate(
            latency_ns,
            move |state| {
                if state.disks[node].epoch != epoch {
                    return Err(power_was_cut());
                }
                let inode = state.disks[node].open(&path, &options)?;
                Ok((node, epoch, inode, options.exclusive_lock))
            },
            |state, result| {
                if let Ok((node, epoch, inode, has_lock)) = result {
                    close(state, node, epoch, inode, has_lock);
                }
            },
        );
        let (_, epoch, inode, has_lock) = opening.await?;
        Ok(Self(Arc::new(Handle {
            port: port.clone(),
            inode,
            epoch,
            is_readable: options.read || !options.write,
            is_writable: options.write,
            has_lock,
        })))
    }

    /// Starts an operation on the inode, which it keeps meanwhile.
    fn operate<T: Send + 'static>(
        &self,
        latency: (u64, u64),
        bytes: usize,
        action: impl FnOnce(&mut super::disk::Disk, u64) -> T + Send + 'static,
    ) -> Operation<io::Result<T>> {
        let Handle { port, inode, epoch, .. } = &*self.0;
        let (node, inode, epoch) = (port.node, *inode, *epoch);
        let latency_ns = port.world.with(|state| {
            let disk = &mut state.disks[node];
            if disk.epoch == epoch {
                disk.add_user(inode);
            }
            between(state, latency, bytes)
        });
        port.world.operate(
            latency_ns,
            move |state| {
                let disk = &mut state.disks[node];
                if disk.epoch != epoch {
                    return Err(power_was_cut());
                }
                let value = action(disk, inode);
                disk.remove_user(inode);
                Ok(value)
            },
            nothing_to_undo,
        )
    }

    pub(crate) async fn read_at(&self, mut buf: Vec<u8>, offset: u64) -> (io::Result<usize>, Vec<u8>) {
        if !self.0.is_readable {
            return (Err(io::ErrorKind::PermissionDenied.into()), buf);
        }
        let len = buf.len();
        let result = self
            .operate(READ_NS, len, move |disk, inode| {
                let mut bytes = vec![0; len];
                let count = disk.read(inode, &mut bytes, offset);
                bytes.truncate(count);
                bytes
            })
            .await;
        match result {
            Ok(bytes) => {
                buf[..bytes.len()].copy_from_slice(&bytes);
                (Ok(bytes.len()), buf)
            }
            Err(error) => (Err(error), buf),
        }
    }

    pub(crate) async fn write_all_at<B: IoBuf>(&self, buf: B, offset: u64) -> (io::Result<()>, B) {
        if !self.0.is_writable {
            return (Err(io::ErrorKind::PermissionDenied.into()), buf);
        }
        let bytes = buf.as_slice().to_vec();
        let result =
            self.operate(WRITE_NS, bytes.len(), move |disk, inode| disk.write(inode, &bytes, offset)).await;
        (result, buf)
    }

    pub(crate) async fn sync_data(&self) -> io::Result<()> {
        let Handle { port, inode, epoch, .. } = &*self.0;
        let point = port.world.with(|state| {
            let disk = &mut state.disks[port.node];
            (disk.epoch == *epoch).then(|| disk.begin_sync(*inode))
        });
        let point = point.ok_or_else(power_was_cut)?;
        self.operate(SYNC_NS, 0, move |disk, inode| disk.finish_sync(inode, point)).await
    }

    pub(crate) fn len(&self) -> io::Result<u64> {
        let Handle { port, inode, epoch, .. } = &*self.0;
        port.world.with(|state| {
            let disk = &state.disks[port.node];
            if disk.epoch == *epoch { Ok(disk.len(*inode)) } else { Err(power_was_cut()) }
        })
    }
}
