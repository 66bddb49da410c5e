//! A source tells its followers what it has discarded, before it sends them the rest.

use std::sync::Arc;

use lockgate_engine::{
    Engine, Floors, Gate, Generation, RangeHeader, Slot, SlotError, StableWatermarks, SubscribeError, Term,
    Version,
};
use lockgate_net::link::{Link, Purpose};
use lockgate_net::stream::WhyRefused;
use lockgate_runtime::IoBuf;

use super::streams::{
    Anew, SOURCE_GENERATION, Two, next_subscription, ranges_message, slots, subscribe_entry, tags, with_two,
};
use super::support::{PATIENCE, hello, until, within};

/// All that is written is acknowledged.
struct AllStable;

impl StableWatermarks for AllStable {
    fn stable(&self, _: Slot, _: Generation) -> Option<Version> {
        Some(Version::new(Term(u64::MAX), u64::MAX))
    }
}

/// A Floors message of one slot, by hand: both floors are this version.
fn floors_message(slot: Slot, subscription: u32, floor: Version) -> Vec<Box<dyn IoBuf>> {
    let numbers = [floor.term.0, floor.counter, floor.term.0, floor.counter].map(u64::to_le_bytes).concat();
    let bytes = [&slot.number().to_le_bytes()[..], &[0; 2], &subscription.to_le_bytes(), &numbers].concat();
    vec![Box::new(bytes)]
}

/// What the source of [`with_a_floor`] has discarded, and the write before the deletion.
struct Discarding {
    slot: Slot,
    tag: &'static str,
    before: Version,
    floor: Version,
    undo_floor: Version,
}

impl Discarding {
    fn key(&self, number: usize) -> Vec<u8> {
        format!("{{{}}}{number}", self.tag).into_bytes()
    }

    fn refuses_who_is_below(&self, engine: &Engine) {
        let &Discarding { slot, before: cursor, floor, .. } = self;
        let refused = engine.stream().subscribe(slot, SOURCE_GENERATION, cursor);
        assert_eq!(refused, Err(SubscribeError::BelowFloor { slot, cursor, floor }));
    }
}

/// Has the source discard a deletion and what was overwritten behind it.
async fn with_a_floor(two: &Two) -> Discarding {
    let (_, tag) = &tags()[0];
    let slot = Slot::of_key(tag.as_bytes());
    let (keys, version) = (two.source.keyspace(0), || two.source.slot_status(slot).version);
    let key = |number: usize| format!("{{{tag}}}{number}");
    let _ = keys.set(key(9).as_bytes(), b"stays").unwrap();
    let _ = keys.set(key(0).as_bytes(), b"deleted soon").unwrap();
    let before = version();
    let _ = keys.delete(key(0).as_bytes()).unwrap();
    let floor = version();
    (0..20).for_each(|_| drop(keys.set(key(1).as_bytes(), &[1; 100]).unwrap()));
    let undo_floor = version();
    two.source.set_stable_watermarks(Arc::new(AllStable));
    until("a compaction", || two.source.compaction_stats().steps > 0).await;
    Discarding { slot, tag, before, floor, undo_floor }
}

#[test]
fn a_follower_knows_what_its_source_has_discarded() {
    with_two(256 << 10, |two| async move {
        let discarding = with_a_floor(&two).await;
        two.follow_all();
        two.keep_following();
        until("the first range", || two.target.slot_status(discarding.slot).version > Version::ZERO).await;
        two.settle().await;
        discarding.refuses_who_is_below(&two.source);
        discarding.refuses_who_is_below(&two.target);
        let refused = two.target.truncate(discarding.slot, SOURCE_GENERATION, discarding.floor);
        assert!(
            matches!(refused, Err(SlotError::BelowFloor { floor, .. }) if floor == discarding.undo_floor)
        );
        // Who goes on from a cursor has what was deleted since.
        two.cut_links();
        let _ = two.source.keyspace(0).delete(&discarding.key(1)).unwrap();
        two.settle().await;
        discarding.refuses_who_is_below(&two.target);
        two.target.stream().subscribe(discarding.slot, SOURCE_GENERATION, discarding.floor).unwrap();
        two.end().await;
    });
}

#[test]
fn a_feeder_says_it_before_the_first_range() {
    with_two(256 << 10, |two| async move {
        let Discarding { slot, floor, undo_floor, .. } = with_a_floor(&two).await;
        let link = Link::connect(two.addr, hello(2, Purpose::Bulk), PATIENCE).await.unwrap();
        let (sender, mut receiver, _) = link;
        sender.send(16, vec![Box::new(subscribe_entry(slot, 5))]).await.unwrap();
        let told = within(receiver.recv()).await.unwrap();
        let numbers = [floor.term.0, floor.counter, undo_floor.term.0, undo_floor.counter]
            .map(u64::to_le_bytes)
            .concat();
        assert_eq!((told.kind, &told.payload[8..]), (35, &numbers[..]));
        assert_eq!(told.payload[4..8], 5u32.to_le_bytes());
        assert_eq!(within(receiver.recv()).await.unwrap().kind, 32);
        sender.close("the test is over");
        two.source.close().await.unwrap();
        two.target.close().await.unwrap();
    });
}

#[test]
fn what_is_said_of_an_earlier_subscription_or_of_a_slot_that_is_gone_changes_nothing() {
    with_two(256 << 10, |two| async move {
        let slot = slots().next().unwrap();
        let Anew { first, second, sender, mut receiver, earlier } = two.followed_anew(slot).await;
        let later = next_subscription(&mut receiver).await;
        sender.send(35, floors_message(slot, earlier, second.last)).await.unwrap();
        sender.send(32, ranges_message(1, later, &first)).await.unwrap();
        sender.send(32, ranges_message(2, later, &second)).await.unwrap();
        until("both writes", || two.target.slot_status(slot).version == second.last).await;
        two.target.stream().subscribe(slot, SOURCE_GENERATION, first.last).unwrap();
        // The slot goes away here while its source still feeds it.
        two.target.drop_slot(slot, SOURCE_GENERATION).unwrap();
        sender.send(35, floors_message(slot, later, second.last)).await.unwrap();
        until("a refusal", || !two.followed.refused.borrow().is_empty()).await;
        assert!(matches!(two.followed.refused.borrow()[..], [(of, WhyRefused::Broken(_))] if of == slot));
        sender.close("the test is over");
        two.source.close().await.unwrap();
        two.target.close().await.unwrap();
    });
}

#[test]
fn a_follower_with_gaps_is_refused_where_nothing_fills_them() {
    with_two(256 << 10, |two| async move {
        let slot = slots().next().unwrap();
        two.write(3, 100).await;
        let stream = two.source.stream();
        stream.subscribe(slot, SOURCE_GENERATION, Version::ZERO).unwrap();
        let first = stream.next_range(1).unwrap();
        let last = two.source.slot_status(slot).version;
        // What another source had at a version that this one never came to.
        let undo_floor = Version::new(last.term, last.counter + 1);
        let floors = Floors { undo_floor, ..Floors::default() };
        two.target.raise_floors(slot, SOURCE_GENERATION, floors).unwrap();
        let header = RangeHeader { term: first.term, base: first.base };
        two.target.apply(slot, SOURCE_GENERATION, &header, &first.bytes).unwrap();
        two.follow_all();
        two.keep_following();
        until("a refusal", || !two.followed.refused.borrow().is_empty()).await;
        assert_eq!(two.followed.refused.take(), [(slot, WhyRefused::Gaps)]);
        assert_eq!(two.target.slot_status(slot).version, first.last);
        // It starts anew.
        let anew = SOURCE_GENERATION.next_minor();
        two.target.open_slot(slot, anew, Gate::Follower).unwrap();
        two.follower.follow(slot, anew, SOURCE_GENERATION);
        two.settle().await;
        two.end().await;
    });
}
