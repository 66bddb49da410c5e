//! A chain alone: places, versions, and the bound on its memory.

use super::*;
use crate::arena::MemoryBudget;
use crate::record::{NewRecord, encode};

fn chain(max_bytes: u64) -> (Chain, Arc<MemoryBudget>) {
    let budget = Arc::new(MemoryBudget::new(max_bytes));
    (Chain::new(Arc::new(Arena::reserve(budget.clone()).unwrap())), budget)
}

fn put(chain: &mut Chain, range: RangeHeader, delta: u32, value: &[u8]) -> Result<RecordOffset, OutOfMemory> {
    let new = NewRecord { delta, ..NewRecord::put(0, b"k", value, None) };
    let bytes = new.encoded_bytes();
    chain.reserve(range, bytes)?;
    let appended = chain.append(range.base + u64::from(delta), bytes, |out| {
        encode(out, &new);
        Ok::<_, OutOfMemory>(())
    })?;
    Ok(appended.0)
}

const FIRST: RangeHeader = RangeHeader { term: Term(1), base: 0 };

#[test]
fn records_are_found_by_place_and_by_version_over_segments_and_ranges() {
    let (mut chain, budget) = chain(1 << 24);
    let mut places = Vec::new();
    for delta in 1..=500 {
        places.push((
            Version::new(Term(1), u64::from(delta)),
            put(&mut chain, FIRST, delta, &[delta as u8; 50]).unwrap(),
        ));
    }
    let second = RangeHeader { term: Term(7), base: 500 };
    for delta in (1..=500).step_by(2) {
        let version = Version::new(Term(7), 500 + u64::from(delta));
        places.push((version, put(&mut chain, second, delta, &[delta as u8; 70]).unwrap()));
    }
    assert!(chain.links().len() > 10, "segments are sized to their slot");
    assert!(chain.segment_bytes() < (500 * 68 + 250 * 88) * 5 / 4);
    assert_eq!(chain.segment_bytes(), budget.used_bytes());
    for (version, place) in &places {
        assert_eq!(chain.version_at(*place), *version);
        assert_eq!(chain.link_by_counter(*place), chain.link_of(*place));
        let record = chain.record_at(*place);
        assert_eq!(&chain.pin(*place, 17..18)[..], &record.value[..1]);
        let (link, at) = chain.find_after(version.counter - 1);
        assert_eq!(chain.links()[link].segment.record_at(at), record);
    }
    let (link, at) = chain.find_after(501);
    assert_eq!(
        chain.links()[link].segment.version_of(&chain.links()[link].segment.record_at(at)).counter,
        503
    );
    let (link, at) = chain.find_after(10_000);
    assert_eq!((link + 1, at), (chain.links().len(), chain.links()[link].segment.published()));
}

#[test]
fn a_pin_outlives_its_chain_and_then_frees() {
    let (mut chain, budget) = chain(1 << 20);
    let place = put(&mut chain, FIRST, 1, b"value").unwrap();
    let pin = chain.pin(place, 17..22);
    drop(chain);
    assert_eq!(&pin[..], b"value");
    assert!(budget.used_bytes() > 0);
    drop(pin);
    assert_eq!(budget.used_bytes(), 0);
}

#[test]
fn close_to_the_bound_segments_become_snug_and_then_writes_are_refused() {
    let (mut chain, budget) = chain(2048);
    let mut written = 0;
    let refused = loop {
        match put(&mut chain, FIRST, written + 1, &[1; 150]) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.max_bytes, 2048);
    assert!((9..=12).contains(&written), "{written} records of 168 bytes fitted into 2,048 bytes");
    assert!(budget.used_bytes() <= 2048);
    assert_eq!(chain.find_after(u64::from(written) - 1).0 + 1, chain.links().len());
}

#[test]
fn a_segment_that_was_never_written_leaves_no_trace() {
    let (mut chain, budget) = chain(1 << 20);
    chain.reserve(FIRST, 100).unwrap();
    chain.reserve(RangeHeader { term: Term(2), base: 5 }, 100).unwrap();
    assert_eq!((chain.links().len(), chain.ranges.len()), (0, 0));
    chain.reserve(FIRST, 100).unwrap();
    put(&mut chain, FIRST, 3, b"x").unwrap();
    assert_eq!((chain.links().len(), chain.links()[0].first), (1, 3));
    assert_eq!(chain.segment_bytes(), budget.used_bytes());
}
