//! Directories and whole files, on the current core's disk. All of these panic on a foreign thread.
//!
//! A name is durable only after [`sync_dir`] of its directory; [`write_atomic`] does the whole dance.

use std::io;
use std::path::{Path, PathBuf};

use crate::Boxed;
use crate::context;
use crate::executor::Backend;
use crate::file::{File, OpenOptions};
use crate::mutation;
use crate::sim::disk_fs;
use crate::uring::uring_fs;

/// The largest file that [`read`] takes in.
pub const READ_BYTES_MAX: u64 = 1 << 30;

macro_rules! on_backend {
    ($name:literal, $function:ident($($argument:expr),*)) => {{
        let core = context::expect($name);
        match &core.backend {
            Backend::Uring(ring) => uring_fs::$function(ring, $($argument),*).await,
            Backend::Sim(port) => disk_fs::$function(port, $($argument),*).await,
        }
    }};
}

/// Creates `path` and the directories above it where they do not exist.
pub fn create_dir_all<'a>(path: &'a Path) -> Boxed<'a, io::Result<()>> {
    Box::pin(async move {
        let mut above: Vec<&Path> = path.ancestors().filter(|path| !path.as_os_str().is_empty()).collect();
        above.reverse();
        for path in above {
            if let Err(error) = create_dir(path).await
                && error.kind() != io::ErrorKind::AlreadyExists
            {
                return Err(error);
            }
        }
        Ok(())
    })
}

async fn create_dir(path: &Path) -> io::Result<()> {
    on_backend!("fs::create_dir_all", create_dir(path))
}

/// Renames `from` to `to`, which is replaced if it is a file.
pub fn rename<'a>(from: &'a Path, to: &'a Path) -> Boxed<'a, io::Result<()>> {
    Box::pin(async move { on_backend!("fs::rename", rename(from, to)) })
}

/// Removes a file's name.
pub fn remove_file<'a>(path: &'a Path) -> Boxed<'a, io::Result<()>> {
    Box::pin(async move { on_backend!("fs::remove_file", remove_file(path)) })
}

/// Removes a directory with all that is in it.
pub fn remove_dir_all<'a>(path: &'a Path) -> Boxed<'a, io::Result<()>> {
    Box::pin(async move { on_backend!("fs::remove_dir_all", remove_dir_all(path)) })
}

/// The names in a directory, sorted. Names that are not UTF-8 are an error of kind `InvalidData`.
pub fn read_dir<'a>(path: &'a Path) -> Boxed<'a, io::Result<Vec<String>>> {
    Box::pin(async move { on_backend!("fs::read_dir", read_dir(path)) })
}

/// Makes the names in a directory durable.
pub fn sync_dir<'a>(path: &'a Path) -> Boxed<'a, io::Result<()>> {
    Box::pin(async move { on_backend!("fs::sync_dir", sync_dir(path)) })
}

/// Whether `path` exists. An error of the look-up counts as no.
pub fn exists<'a>(path: &'a Path) -> Boxed<'a, bool> {
    Box::pin(async move { on_backend!("fs::exists", exists(path)) })
}

/// The content of a file, of at most [`READ_BYTES_MAX`] bytes.
pub fn read<'a>(path: &'a Path) -> Boxed<'a, io::Result<Vec<u8>>> {
    Box::pin(async move {
        let file = File::open(path, &OpenOptions { read: true, ..OpenOptions::default() }).await?;
        let len = file.len().await?;
        if len > READ_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!(
                    "{} has {len} bytes, over the limit of {READ_BYTES_MAX} for reading it whole",
                    path.display()
                ),
            ));
        }
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let (result, mut bytes) = file.read_at(vec![0; len], 0).await;
        bytes.truncate(result?);
        Ok(bytes)
    })
}

/// Replaces the content of `path` so that after a crash either the old or the new content is there, whole: writes
/// a file beside it (`<name>.tmp`), syncs it, renames it, and syncs the directory.
pub fn write_atomic<'a>(path: &'a Path, bytes: Vec<u8>) -> Boxed<'a, io::Result<()>> {
    Box::pin(async move { replace(path, bytes, true).await })
}

/// As [`write_atomic`], if `durably`. Otherwise nothing is synced, and a power cut may leave the old content, the new one,
/// a part of it, or neither: what callers do only where a known bug of theirs is on.
pub fn replace<'a>(path: &'a Path, bytes: Vec<u8>, durably: bool) -> Boxed<'a, io::Result<()>> {
    Box::pin(async move {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} has no file name to write to", path.display()),
            ));
        };
        let mut temporary_name = name.to_os_string();
        temporary_name.push(".tmp");
        let temporary: PathBuf = directory.join(temporary_name);
        let options = OpenOptions { write: true, create: true, truncate: true, ..OpenOptions::default() };
        let file = File::open(&temporary, &options).await?;
        file.write_all_at(bytes, 0).await.0?;
        if durably && !mutation!("unsynced-replacement") {
            file.sync_data().await?;
        }
        drop(file);
        rename(&temporary, path).await?;
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        if durably && !mutation!("unsynced-replacement-name") {
            sync_dir(directory).await?;
        }
        Ok(())
    })
}
