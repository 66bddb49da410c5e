//! Directories by io_uring. Listing has no operation in the ring: it is done in place (names are mostly cached).

use std::io;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::OFlags;

use super::file::{open, sync};
use super::request::{MakeDir, Rename, Unlink, c_path};
use super::ring::Ring;
use crate::sync::Arc;

pub(crate) async fn create_dir(ring: &Rc<Ring>, path: &Path) -> io::Result<()> {
    let request = MakeDir { path: c_path(path)? };
    ring.submit(request).await.0.map(|_| ())
}

pub(crate) async fn rename(ring: &Rc<Ring>, from: &Path, to: &Path) -> io::Result<()> {
    let request = Rename { from: c_path(from)?, to: c_path(to)? };
    ring.submit(request).await.0.map(|_| ())
}

pub(crate) async fn remove_file(ring: &Rc<Ring>, path: &Path) -> io::Result<()> {
    unlink(ring, path, false).await
}

async fn unlink(ring: &Rc<Ring>, path: &Path, directory: bool) -> io::Result<()> {
    let request = Unlink { path: c_path(path)?, directory };
    ring.submit(request).await.0.map(|_| ())
}

pub(crate) async fn remove_dir_all(ring: &Rc<Ring>, path: &Path) -> io::Result<()> {
    // Children first: a directory is visited once to list it and once to remove it.
    let mut left = vec![(path.to_path_buf(), false)];
    while let Some((directory, is_listed)) = left.pop() {
        if is_listed {
            unlink(ring, &directory, true).await?;
            continue;
        }
        left.push((directory.clone(), true));
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push((entry.path(), false));
            } else {
                unlink(ring, &entry.path(), false).await?;
            }
        }
    }
    Ok(())
}

pub(crate) async fn read_dir(_ring: &Rc<Ring>, path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        names.push(entry?.file_name().into_string().map_err(|name| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} holds the name {name:?}, which is not UTF-8", path.display()),
            )
        })?);
    }
    names.sort();
    Ok(names)
}

pub(crate) async fn sync_dir(ring: &Rc<Ring>, path: &Path) -> io::Result<()> {
    let fd = open(ring, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC).await?;
    sync(ring, Arc::new(fd), false).await
}

pub(crate) async fn exists(_ring: &Rc<Ring>, path: &Path) -> bool {
    path.exists()
}
