//! A source tells its followers what it has discarded, before it sends them the rest.

use std::sync::Arc;

use lockgate_engine::{Generation, Slot, StableWatermarks, SubscribeError, Term, Version};
use lockgate_net::stream::WhyRefused;
use lockgate_runtime::IoBuf;

use super::streams::{SOURCE_GENERATION, next_subscription, ranges_message, slots, tags, with_two};
use super::support::until;

/// All that is written is acknowledged.
struct AllStable;

impl StableWatermarks for AllStable {
    fn stable(&self, _: Slot, _: Generation) -> Option<Version> {
        Some(Version::new(Term(u64::MAX), u64::MAX))
    }
}

/// A Floors message of one slot, by hand.
fn floors_message(slot: Slot, subscription: u32, floor: Version) -> Vec<Box<dyn IoBuf>> {
    let numbers = [floor.term.0, floor.counter].map(u64::to_le_bytes).concat();
    let bytes = [&slot.number().to_le_bytes()[..], &[0; 2], &subscription.to_le_bytes(), &numbers].concat();
    vec![Box::new(bytes)]
}

#[test]
fn a_follower_has_its_sources_floor_before_the_first_range() {
    with_two(256 << 10, |two| async move {
        let (_, tag) = &tags()[0];
        let slot = Slot::of_key(tag.as_bytes());
        let keys = two.source.keyspace(0);
        let key = |number: usize| format!("{{{tag}}}{number}");
        let _ = keys.set(key(0).as_bytes(), b"deleted soon").unwrap();
        let before = two.source.slot_status(slot).version;
        let _ = keys.delete(key(0).as_bytes()).unwrap();
        let floor = two.source.slot_status(slot).version;
        (0..20).for_each(|_| drop(keys.set(key(1).as_bytes(), &[1; 100]).unwrap()));
        two.source.set_stable_watermarks(Arc::new(AllStable));
        until("a compaction", || two.source.compaction_stats().steps > 0).await;
        two.follow_all();
        two.keep_following();
        until("the first range", || two.target.slot_status(slot).version > Version::ZERO).await;
        two.settle().await;
        for engine in [&two.source, &two.target] {
            let refused = engine.stream().subscribe(slot, SOURCE_GENERATION, before);
            let expected = Err(SubscribeError::BelowFloor { slot, cursor: before, floor });
            assert_eq!(refused, expected);
        }
        // Who goes on from a cursor has what was deleted since, and its floor stays.
        let _ = keys.delete(key(1).as_bytes()).unwrap();
        two.cut_links();
        two.settle().await;
        two.target.stream().subscribe(slot, SOURCE_GENERATION, floor).unwrap();
        two.end().await;
    });
}

#[test]
fn a_floor_for_an_earlier_subscription_or_a_slot_that_is_gone_changes_nothing() {
    with_two(256 << 10, |two| async move {
        let slot = slots().next().unwrap();
        two.write(2, 100).await;
        let stream = two.source.stream();
        stream.subscribe(slot, SOURCE_GENERATION, Version::ZERO).unwrap();
        let (first, second) = (stream.next_range(1).unwrap(), stream.next_range(1).unwrap());
        let (sender, mut receiver) = two.feed_by_hand(slot).await;
        let earlier = next_subscription(&mut receiver).await;
        two.follower.unfollow(slot);
        two.follower.follow(slot, SOURCE_GENERATION, SOURCE_GENERATION);
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
