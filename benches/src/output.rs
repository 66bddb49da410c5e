//! Where benches keep their files: in the folder that cargo builds in, which is on a disk and not under version control.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder for results, made if it is not there.
pub fn folder() -> PathBuf {
    let built_in = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = built_in.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
    let folder = target.join("lockgate-bench");
    fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    folder
}

/// A folder for data directories on the same disk, removed when it is dropped.
pub fn data_folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("data-").tempdir_in(folder()).expect("the folder can be written")
}

/// Prints a bench's table, and keeps it beside its picture. A short round takes no measurement's place.
pub fn publish(bench: &str, table: &str, picture: &str) {
    println!("\n{bench}\n{table}");
    let folder = folder();
    let name = if crate::is_measurement() { bench.to_owned() } else { format!("{bench}-smoke") };
    for (extension, text) in [("txt", table), ("svg", picture)] {
        let path = folder.join(format!("{name}.{extension}"));
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        println!("{}", path.display());
    }
}
