//! Where benches keep their files: in the folder that cargo builds in, which is on a disk and not under version control.

use std::fs;
use std::path::{Path, PathBuf};

use crate::table::Table;

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

/// Prints a bench's table, and keeps it beside its picture. What is not whole takes no whole one's place, nor does a short
/// round a measurement's.
pub fn publish(bench: &str, table: &Table, picture: &str) {
    if table.is_empty() {
        return;
    }
    println!("\n{bench}\n{}", table.text());
    if !table.is_whole() {
        println!("not kept: some of its benchmarks were left out");
        return;
    }
    let folder = folder();
    let name = if crate::is_measurement() { bench.to_owned() } else { format!("{bench}-smoke") };
    for (extension, text) in [("txt", table.text().as_str()), ("svg", picture)] {
        let path = folder.join(format!("{name}.{extension}"));
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        println!("{}", path.display());
    }
}
