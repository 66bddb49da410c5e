//! The shape of the whole workspace, checked on its sources: imports go down only, locks and atomics come from one place,
//! `unsafe` stays in few files, and files stay readable.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The crates from the lowest layer up: folder, and the name that code imports it by.
const LAYERS: [(&str, &str); 8] = [
    ("runtime", "lockgate_runtime"),
    ("engine", "lockgate_engine"),
    ("net", "lockgate_net"),
    ("migrate", "lockgate_migrate"),
    ("server", "lockgate"),
    ("sim", "lockgate_sim"),
    ("benches", "lockgate_benches"),
    // Below the folder of the benches, so what is asked of their sources is asked of its sources too.
    ("benches/compare", "lockgate_compare"),
];

/// Beside each other: the later one may not name the earlier one either.
const BESIDE: [(&str, (&str, &str)); 6] = [
    ("benches", ("sim", "lockgate_sim")),
    // It compares engines, and nothing above them.
    ("benches/compare", ("net", "lockgate_net")),
    ("benches/compare", ("migrate", "lockgate_migrate")),
    ("benches/compare", ("server", "lockgate")),
    ("benches/compare", ("sim", "lockgate_sim")),
    ("benches/compare", ("benches", "lockgate_benches")),
];

/// Inside a crate, from the lowest module up: a module may name only those before it.
const MODULE_ORDERS: [(&str, &[&str]); 3] = [
    // These two are side by side: neither may name the other.
    ("net", &["link", "resp"]),
    ("net", &["resp", "link"]),
    ("migrate", &["control", "replica", "job", "office", "node"]),
];

/// Files that may contain `unsafe`. Each states its access rule at its top.
const UNSAFE_FILES: [&str; 10] = [
    "benches/compare/src/subjects/lmdb.rs",
    "engine/src/arena.rs",
    "engine/src/bytes.rs",
    "engine/src/index/table.rs",
    "engine/src/lazy_table.rs",
    "engine/src/segment.rs",
    "net/src/link/part.rs",
    "runtime/src/buf.rs",
    "runtime/src/uring/request.rs",
    "runtime/src/uring/ring.rs",
];

/// The only files that may name where locks and atomics really come from.
const SYNC_FILES: &str = "runtime/src/sync";

/// What nobody else may name: locks and atomics that loom cannot replace.
const FOREIGN_SYNC: [&str; 8] = [
    "std::sync::atomic",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::sync::Condvar",
    "std::sync::{",
    "core::sync::atomic",
    "parking_lot::",
    "loom::",
];

/// What a node must take from the runtime, so that it is the same code in the simulation.
const FOREIGN_WORLD: [&str; 7] = [
    "std::fs::",
    "std::net::Tcp",
    "std::net::Udp",
    "Instant::now",
    "SystemTime::now",
    "thread::sleep",
    "thread::spawn",
];

/// Calls that make something durable, as they are written where they are made.
const SYNC_CALLS: [&str; 6] = [
    ".sync_data()",
    ".write_all_at_then_sync(",
    " sync_dir(directory)",
    "fs::sync_dir(",
    "fs::write_atomic(",
    "fs::replace(",
];

/// What of these must be called as it is written above: under another name it would not be counted.
const COUNTED_BY_NAME: [&str; 2] = ["sync_dir", "write_atomic"];

/// Sync calls that have no known bug of their own: the file, how many, and why.
const NAMELESS_SYNCS: [(&str, usize, &str); 3] = [
    (
        "engine/src/log/files.rs",
        1,
        "zeros are synced in pieces, for the pace of commits: nothing rests on it",
    ),
    ("engine/src/log/writer.rs", 1, "a part of the known bug retry-after-failed-sync"),
    ("server/src/demo/disk.rs", 1, "it measures what a sync costs"),
];

const FILE_LINES_MAX: usize = 600;

/// A source file: its path in the workspace, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The text without comments, and without the module of unit tests at its end.
    fn code(&self) -> String {
        // A module of tests in a file of its own may be named at the top: what follows is code.
        let is_inline = |at: &usize| {
            self.text[*at..]
                .lines()
                .nth(1)
                .is_some_and(|line| line.starts_with("mod ") && line.ends_with('{'))
        };
        let inline = self.text.match_indices("#[cfg(test)]\n").map(|(at, _)| at).find(is_inline);
        let code = &self.text[..inline.unwrap_or(self.text.len())];
        let lines = code.lines().map(|line| match line.find("//") {
            // Not within a string or an address, as far as a quote before it tells.
            Some(at) if !line[..at].contains('"') => &line[..at],
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn is_test(&self) -> bool {
        ["/tests", "_tests.rs", "_tests/", "test_"].iter().any(|part| self.path.contains(part))
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace").to_path_buf()
}

/// All files below `folder` (a path in the workspace) with this extension.
fn files(folder: &str, extension: &str) -> Vec<Source> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("the folder can be read").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if name.ends_with(extension) {
                let text = fs::read_to_string(&path).expect("a source is text");
                let path = path.strip_prefix(&root).expect("it is below the root").display().to_string();
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn sources() -> Vec<Source> {
    let sources: Vec<_> = LAYERS.iter().flat_map(|(folder, _)| files(folder, ".rs")).collect();
    assert!(sources.len() > LAYERS.len(), "the sources were not found");
    sources
}

fn report(problems: &[String]) {
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Whether `text` names `word` with no letter, digit or underscore on either side.
fn names(text: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(part_of_name) && !text[at + word.len()..].starts_with(part_of_name)
    })
}

#[test]
fn crates_import_only_what_is_below_them() {
    let mut problems = Vec::new();
    for (level, (folder, _)) in LAYERS.iter().enumerate() {
        let manifest =
            fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("every layer has a manifest");
        let dependencies = manifest.split_once("dependencies]").map_or("", |(_, rest)| rest);
        let beside = BESIDE.iter().filter(|(later, _)| later == folder).map(|(_, earlier)| earlier);
        let foreign: Vec<_> = LAYERS[level + 1..].iter().chain(beside).collect();
        for (other, name) in &foreign {
            if names(&dependencies.replace('-', "_"), name) {
                problems.push(format!(
                    "{folder}/Cargo.toml depends on {name}, but {other}/ is not below {folder}/"
                ));
            }
        }
        for source in files(folder, ".rs") {
            let code = source.code();
            for (other, name) in &foreign {
                if code.contains(&format!(" {name}::")) || code.contains(&format!("({name}::")) {
                    problems
                        .push(format!("{} names {name}, but {other}/ is not below {folder}/", source.path));
                }
            }
        }
    }
    report(&problems);
}

#[test]
fn modules_import_only_what_is_below_them() {
    let mut problems = Vec::new();
    for (folder, order) in MODULE_ORDERS {
        for (level, module) in order.iter().enumerate() {
            let mut sources = files(&format!("{folder}/src/{module}"), ".rs");
            sources.extend(files(&format!("{folder}/src"), &format!("/{module}.rs")));
            for source in sources.iter().filter(|source| !source.is_test()) {
                let code = source.code();
                for above in &order[level + 1..] {
                    let path = format!("crate::{above}");
                    if names(&code, &path) || names_in_group(&code, above) {
                        problems.push(format!("{} names {path}, which is above {module}", source.path));
                    }
                }
            }
        }
    }
    report(&problems);
}

/// Whether the code has a `use crate::{..., module::...}`.
fn names_in_group(code: &str, module: &str) -> bool {
    let groups = code.split("use crate::{").skip(1).filter_map(|rest| rest.split(';').next());
    groups.into_iter().any(|group| names(group, module))
}

#[test]
fn locks_and_atomics_come_from_the_runtime() {
    let mut problems = Vec::new();
    for source in sources() {
        // Loom's models run on loom, and count their own runs with what loom does not see.
        let excepted = [SYNC_FILES, "server/tests/all/structure.rs"];
        if source.path.contains("/loom_tests") || excepted.iter().any(|start| source.path.starts_with(start))
        {
            continue;
        }
        let code = source.code();
        for foreign in FOREIGN_SYNC.iter().filter(|foreign| code.contains(**foreign)) {
            problems.push(format!("{} names {foreign}; use lockgate_runtime::sync", source.path));
        }
    }
    report(&problems);
}

#[test]
fn nodes_reach_the_world_only_through_the_runtime() {
    let mut problems = Vec::new();
    for folder in ["engine", "net", "migrate"] {
        for source in files(&format!("{folder}/src"), ".rs").iter().filter(|source| !source.is_test()) {
            let code = source.code();
            for foreign in FOREIGN_WORLD.iter().filter(|foreign| code.contains(**foreign)) {
                problems
                    .push(format!("{} names {foreign}; the runtime has it for both backends", source.path));
            }
        }
    }
    report(&problems);
}

/// What comes after `start` up to the next quote, for each time that it is in `text`.
fn quoted_after<'a>(text: &'a str, start: &'a str) -> Vec<&'a str> {
    text.split(start).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

#[test]
fn every_sync_has_a_known_bug_by_name() {
    let mut problems = Vec::new();
    let mut known = BTreeSet::new();
    let mut nameless: Vec<_> = NAMELESS_SYNCS.iter().collect();
    let docs = fs::read_to_string(root().join("docs/durability.md")).expect("it is there");
    let of_nodes = ["engine", "net", "migrate", "server"].map(|folder| format!("{folder}/src"));
    let mut sources: Vec<_> = of_nodes.iter().flat_map(|folder| files(folder, ".rs")).collect();
    sources
        .extend(files("runtime/src", ".rs").into_iter().filter(|source| source.path == "runtime/src/fs.rs"));
    for source in sources.iter().filter(|source| !source.is_test()) {
        let code = source.code();
        let calls: usize = SYNC_CALLS.iter().map(|call| code.matches(call).count()).sum();
        let names = quoted_after(&code, "mutation!(\"unsynced-");
        let excepted = nameless.iter().position(|(file, ..)| *file == source.path);
        let excepted = excepted.map_or(0, |at| nameless.remove(at).1);
        if source.path != "runtime/src/fs.rs" {
            for name in COUNTED_BY_NAME {
                let uncounted = code.matches(name).count() - code.matches(&format!("fs::{name}(")).count();
                if uncounted > 0 {
                    problems.push(format!("{} names {name} otherwise than as fs::{name}(...)", source.path));
                }
            }
        }
        if calls != names.len() + excepted {
            problems.push(format!(
                "{} makes {calls} calls that sync, and {} of them have a known bug by name (mutation!(\"unsynced-...\"))",
                source.path,
                names.len() + excepted
            ));
        }
        for name in names {
            if !docs.contains(&format!("`unsynced-{name}`")) {
                problems.push(format!("docs/durability.md does not say what unsynced-{name} is"));
            }
            if !known.insert(name.to_owned()) {
                problems.push(format!("unsynced-{name} is not the name of one call alone"));
            }
        }
    }
    problems
        .extend(nameless.iter().map(|(file, ..)| format!("{file} has no sync call: take it off the list")));
    // As many as there are in the table: a call that goes takes its row with it.
    let rows = docs.lines().filter(|line| line.starts_with("| `unsynced-")).count();
    if rows != known.len() {
        problems.push(format!("docs/durability.md has {rows} rows of syncs, and there are {}", known.len()));
    }
    report(&problems);
    assert!(known.len() >= 14, "the calls are not found any more: {known:?}");
}

#[test]
fn unsafe_code_stays_in_few_files() {
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    for source in sources() {
        if !["unsafe {", "unsafe impl", "unsafe fn", "unsafe trait", "unsafe extern"]
            .iter()
            .any(|word| source.path != "server/tests/all/structure.rs" && source.text.contains(word))
        {
            continue;
        }
        if !UNSAFE_FILES.contains(&source.path.as_str()) {
            problems.push(format!("{} has unsafe code, but is not one of the files that may", source.path));
        }
        used.insert(source.path);
    }
    for file in UNSAFE_FILES.iter().filter(|file| !used.contains(**file)) {
        problems.push(format!("{file} may have unsafe code, but has none: take it off the list"));
    }
    report(&problems);
}

#[test]
fn files_are_short_and_begin_with_what_they_are() {
    let mut problems = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX {
            problems.push(format!("{} has {lines} lines; at most {FILE_LINES_MAX}", source.path));
        }
        if !source.text.starts_with("//!") {
            problems.push(format!("{} does not begin with what it is (//!)", source.path));
        }
    }
    report(&problems);
}

#[test]
fn nothing_names_a_place_on_somebodys_machine() {
    // Put together here, so that this file does not name them.
    let places = ["work", "tmp", "home", "root", "farm", "Users"].map(|folder| format!("/{folder}/"));
    let mut texts = sources();
    for extension in [".md", ".toml", ".rs"] {
        for folder in ["docs", "benches", "sim", "fuzz"] {
            texts.extend(files(folder, extension));
        }
    }
    for name in ["README.md", "CHANGELOG.md", "Cargo.toml", "deny.toml", ".ci/run"] {
        let text = fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        texts.push(Source { path: name.into(), text });
    }
    let mut problems = Vec::new();
    for source in &texts {
        for place in &places {
            let named = source.text.match_indices(place.as_str());
            // A path that begins there; not one that merely goes through a folder of that name.
            let absolute = |at: usize| {
                !source.text[..at].ends_with(|c: char| c.is_alphanumeric() || "_-./)}".contains(c))
            };
            if named.into_iter().any(|(at, _)| absolute(at)) {
                problems.push(format!("{} names {place}", source.path));
            }
        }
    }
    report(&problems);
}

#[test]
fn the_readme_and_the_checks_run_the_same_tests() {
    let read = |name: &str| fs::read_to_string(root().join(name)).expect("it is there");
    assert!(read("README.md").contains("    cargo test --workspace\n"));
    assert!(read("README.md").contains("    cargo run --release -- demo "));
    assert!(read(".ci/run").lines().any(|line| line == "step \"test\" cargo test --workspace"));
}
