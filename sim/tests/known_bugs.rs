//! The table of known bugs is the code's: every one of them sits somewhere, and nothing sits anywhere without being in it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use lockgate_migrate::control::{
    ClusterMap, Entry, EntryBody, Genesis, GenesisShard, Incarnation, Name, NodeId, NodeInfo, Origin, Refusal,
    ShardId, SlotRange,
};
use lockgate_sim::mutations::{Caught, MUTATIONS, with};

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
        assert!(mutation.first_caught(scenario, 8).is_some(), "{name} was not caught within 8 seeds");
    }
}

#[test]
fn tests_that_catch_known_bugs_are_here() {
    for mutation in MUTATIONS {
        if let Caught::ByTest(test) = mutation.caught {
            let here = include_str!("known_bugs.rs").contains(&format!("fn {test}()"));
            assert!(here, "{}: there is no test {test}", mutation.name);
        }
    }
}

/// No operation of a run makes a node the replica of another shard: the entry is tried itself (R13).
#[test]
fn a_node_serves_one_shard() {
    let incarnation = |node: u32| Incarnation { node: NodeId(node), directory: [node as u8; 16], boot: 1 };
    let node = |number: u32| NodeInfo {
        name: Name([number as u8; 20]),
        link: SocketAddr::from(([127, 0, 0, 1], 7_000 + number as u16)),
        listen: SocketAddr::from(([127, 0, 0, 1], 6_000 + number as u16)),
        incarnation: incarnation(number),
        voter: true,
    };
    let shard = |number: u32| GenesisShard {
        shard: ShardId(number),
        primary: incarnation(2 * number - 1),
        replicas: vec![incarnation(2 * number)],
        slots: vec![SlotRange::new(number as u16 * 10, number as u16 * 10 + 9)],
    };
    let genesis = Genesis {
        cluster: [7; 16],
        shards: (1..=2).map(shard).collect(),
        nodes: (1..=4).map(node).collect(),
    };
    let body = EntryBody::SetReplicas { shard: ShardId(1), replicas: vec![NodeId(2), NodeId(4)] };
    let entry = Entry { origin: Origin { node: NodeId(1), boot: 1, seq: 1 }, at_ms: 1, body };
    let apply = |bug| {
        let mut map = ClusterMap::genesis(genesis.clone()).expect("a sound genesis");
        let outcome = with(bug, || map.apply(2, &entry));
        (outcome, map.validate().is_ok())
    };
    let (outcome, is_valid) = apply(None);
    let refusal = outcome.into_result().expect_err("it is refused");
    assert_eq!(refusal, Refusal::NodeInShard { node: NodeId(4), shard: ShardId(2) });
    assert!(is_valid);
    let (outcome, is_valid) = apply(Some("a-node-in-two-shards"));
    assert!(outcome.into_result().is_ok() && !is_valid, "the oracle that looks at maps would see it");
}
