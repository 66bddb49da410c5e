//! The table of known bugs is the code's: every one of them sits somewhere, and nothing sits anywhere without being in it.

use std::collections::BTreeSet;
use std::path::Path;

use lockgate_sim::mutations::{Caught, MUTATIONS};

/// Collects the names in `mutation!("...")` below a folder.
fn collect(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source file");
            for rest in text.split("mutation!(\"").skip(1) {
                names.extend(rest.split('"').next().map(str::to_owned));
            }
        }
    }
}

#[test]
fn every_known_bug_sits_in_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut in_code = BTreeSet::new();
    for package in ["runtime", "engine", "net", "migrate", "server"] {
        collect(&root.join(package).join("src"), &mut in_code);
    }
    let in_table: BTreeSet<String> = MUTATIONS.iter().map(|mutation| mutation.name.to_owned()).collect();
    assert_eq!(in_code, in_table);
    assert_eq!(MUTATIONS.len(), in_table.len(), "names are unique");
}

/// Those that show within the first seeds of their scenarios: all are shown by `lockgate-sim --mutations`.
#[test]
fn known_bugs_are_caught() {
    // Most take a few; every change of a schedule moves them.
    const QUICK_SEEDS: u64 = 60;
    const QUICK: [&str; 10] = [
        "restarted-primary-serves-at-once",
        "lost-ownership-on-target-bump",
        "barrier-counts-received-for-synced",
        "barrier-before-the-last-frame",
        "barrier-without-the-replicas",
        "commit-after-cancel",
        "cancel-after-commit",
        "serve-before-the-release",
        "reads-at-the-source-after-commit",
        "early-clean-up",
    ];
    for name in QUICK {
        let mutation = MUTATIONS.iter().find(|mutation| mutation.name == name).expect("in the table");
        let Caught::In(scenario) = mutation.caught else { panic!("{name} is caught by a test") };
        assert!(mutation.first_caught(scenario, QUICK_SEEDS).is_some(), "{name} was not caught");
    }
}

#[test]
fn tests_that_catch_known_bugs_exist() {
    for mutation in MUTATIONS {
        if let Caught::Beside(file) = mutation.caught {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
            let text = std::fs::read_to_string(root.join(file)).expect("the test's file");
            let name = format!("\"{}\"", mutation.name);
            assert!(text.contains("#[test]") && text.contains(&name), "{file} does not name {name}");
        }
        if let Caught::ByTest(test) = mutation.caught {
            let tests = [include_str!("rules.rs"), include_str!("compactions.rs")];
            let here = tests.iter().any(|tests| tests.contains(&format!("fn {test}()")));
            assert!(here, "{}: there is no test {test}", mutation.name);
        }
    }
}
