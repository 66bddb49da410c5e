//! Directories of a simulated disk: each operation is an event of the world.

use std::io;
use std::path::Path;

use super::disk_call::{DiskAnswer, DiskCall, start};
use super::node::NodePort;

pub(crate) async fn create_dir(port: &NodePort, path: &Path) -> io::Result<()> {
    start(port, DiskCall::CreateDir(path.into())).await.map(drop)
}

pub(crate) async fn rename(port: &NodePort, from: &Path, to: &Path) -> io::Result<()> {
    start(port, DiskCall::Rename(from.into(), to.into())).await.map(drop)
}

pub(crate) async fn remove_file(port: &NodePort, path: &Path) -> io::Result<()> {
    start(port, DiskCall::RemoveFile(path.into())).await.map(drop)
}

pub(crate) async fn remove_dir_all(port: &NodePort, path: &Path) -> io::Result<()> {
    start(port, DiskCall::RemoveDirAll(path.into())).await.map(drop)
}

pub(crate) async fn read_dir(port: &NodePort, path: &Path) -> io::Result<Vec<String>> {
    match start(port, DiskCall::ReadDir(path.into())).await? {
        DiskAnswer::Names(names) => Ok(names),
        other => unreachable!("the names of a directory were asked for, not {other:?}"),
    }
}

pub(crate) async fn sync_dir(port: &NodePort, path: &Path) -> io::Result<()> {
    start(port, DiskCall::SyncDir(path.into())).await.map(drop)
}

pub(crate) async fn exists(port: &NodePort, path: &Path) -> bool {
    matches!(start(port, DiskCall::Exists(path.into())).await, Ok(DiskAnswer::Exists(true)))
}
