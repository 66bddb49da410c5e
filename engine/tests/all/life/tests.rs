//! Lives of random bytes.

use std::collections::BTreeSet;
use std::mem::discriminant;

use lockgate_runtime::mutations::activate;
use proptest::prelude::*;

use super::live;
use super::steps::{Step, decode};

/// So many bytes that look random, always the same.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..count).map(next).collect()
}

#[test]
fn a_long_life_has_everything_and_is_always_the_same() {
    let bytes = noise(1, 20_000);
    let kinds: BTreeSet<String> =
        decode(&bytes).iter().map(|step| format!("{:?}", discriminant(step))).collect();
    assert_eq!(kinds.len(), 23, "every kind of step");
    let life = live(1, &bytes);
    assert!(
        life.steps > 4_000 && life.reopened == 5 && life.checkpoints > 10 && life.ended > 100,
        "{life:?}"
    );
    assert!(life.compaction.steps > 100 && life.compaction.moved_records > 100, "{life:?}");
    assert_eq!(live(1, &bytes), life);
}

#[test]
fn known_bugs_are_found() {
    for bug in ["expiry-not-logged", "tombstone-dropped"] {
        activate(Some(bug));
        let life = std::panic::catch_unwind(|| live(1, &noise(1, 5_000)));
        activate(None);
        assert!(life.is_err(), "{bug} was not found");
    }
}

#[test]
fn any_bytes_are_steps() {
    assert!(decode(&[]).is_empty());
    for byte in 0..=u8::MAX {
        assert_eq!(decode(&[byte]).len(), 1, "what is missing is zero");
    }
    assert!(matches!(decode(&[255])[..], [Step::Reopen(1)]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn an_engine_is_a_map(seed in any::<u64>(), bytes in proptest::collection::vec(any::<u8>(), 0..3_000)) {
        live(seed, &bytes);
    }
}
