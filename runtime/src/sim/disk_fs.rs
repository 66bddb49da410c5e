//! Directories of a simulated disk: each operation is an event of the world.

use std::io;
use std::path::Path;

use super::disk::Disk;
use super::node::NodePort;
use super::world::nothing_to_undo;

/// Latencies in nanoseconds, from and to.
const NAME_NS: (u64, u64) = (3_000, 30_000);
const SYNC_DIR_NS: (u64, u64) = (100_000, 1_000_000);

async fn operate<T: Send + 'static>(
    port: &NodePort,
    latency: (u64, u64),
    action: impl FnOnce(&mut Disk) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let node = port.node;
    let (latency_ns, epoch) =
        port.world.with(|state| (state.random.between(latency.0, latency.1), state.disks[node].epoch));
    port.world
        .operate(
            latency_ns,
            move |state| {
                let disk = &mut state.disks[node];
                if disk.epoch != epoch {
                    return Err(io::Error::other("the power of the simulated machine was cut"));
                }
                action(disk)
            },
            nothing_to_undo,
        )
        .await
}

pub(crate) async fn create_dir(port: &NodePort, path: &Path) -> io::Result<()> {
    let path = path.to_path_buf();
    operate(port, NAME_NS, move |disk| disk.create_dir(&path)).await
}

pub(crate) async fn rename(port: &NodePort, from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (from.to_path_buf(), to.to_path_buf());
    operate(port, NAME_NS, move |disk| disk.rename(&from, &to)).await
}

pub(crate) async fn remove_file(port: &NodePort, path: &Path) -> io::Result<()> {
    let path = path.to_path_buf();
    operate(port, NAME_NS, move |disk| disk.remove_file(&path)).await
}

pub(crate) async fn remove_dir_all(port: &NodePort, path: &Path) -> io::Result<()> {
    let path = path.to_path_buf();
    operate(port, NAME_NS, move |disk| disk.remove_dir_all(&path)).await
}

pub(crate) async fn read_dir(port: &NodePort, path: &Path) -> io::Result<Vec<String>> {
    let path = path.to_path_buf();
    operate(port, NAME_NS, move |disk| disk.read_dir(&path)).await
}

pub(crate) async fn sync_dir(port: &NodePort, path: &Path) -> io::Result<()> {
    let path = path.to_path_buf();
    operate(port, SYNC_DIR_NS, move |disk| disk.sync_dir(&path)).await
}

pub(crate) async fn exists(port: &NodePort, path: &Path) -> bool {
    let path = path.to_path_buf();
    operate(port, NAME_NS, move |disk| Ok(disk.exists(&path))).await.unwrap_or(false)
}
