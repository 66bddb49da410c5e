//! Followers that have writes which their source never had.

use lockgate_engine::{Slot, Term, Version};
use lockgate_net::link::LinkReceiver;
use lockgate_net::stream::WhyRefused;
use lockgate_runtime::IoBuf;

use super::streams::{
    SOURCE_GENERATION, TERM, Two, next_subscription, ranges_message, slots, tags, with_two,
};
use super::support::{until, within};

/// Keys of a slot that both overwrite and delete what is there, and new ones.
fn write(engine: &lockgate_engine::Engine, slot: Slot, count: usize) {
    let tag = tags().iter().map(|(_, tag)| tag).find(|tag| Slot::of_key(tag.as_bytes()) == slot).unwrap();
    let before = engine.slot_status(slot).version.counter;
    for number in 0..count {
        let _ = engine.keyspace(0).set(format!("{{{tag}}}{number}").as_bytes(), &[number as u8; 20]).unwrap();
    }
    assert_eq!(engine.slot_status(slot).version.counter, before + count as u64);
}

impl Two {
    /// Lets the target own a slot under a term of its own for so many writes.
    fn stray(&self, slot: Slot, term: u64, writes: usize) {
        self.target.own(slot, SOURCE_GENERATION, Term(term)).unwrap();
        write(&self.target, slot, writes);
        self.target.follow(slot, SOURCE_GENERATION).unwrap();
    }

    fn follow(&self, slot: Slot) {
        self.follower.follow(slot, SOURCE_GENERATION, SOURCE_GENERATION);
    }
}

#[test]
fn what_the_source_never_had_is_taken_back_without_a_copy() {
    with_two(256 << 10, |two| async move {
        two.follow_all();
        two.keep_following();
        two.write(40, 2_000).await;
        two.settle().await;
        let copied = two.fed.sent_bytes.get();
        let strays: Vec<Slot> = slots().step_by(2).collect();
        for (number, &slot) in strays.iter().enumerate() {
            two.follower.unfollow(slot);
            two.stray(slot, TERM.0 + 1, 3 + number);
            two.source.own(slot, SOURCE_GENERATION, Term(TERM.0 + 2)).unwrap();
            // Some before the target comes back, some of them with counters that the target has given out as well.
            write(&two.source, slot, number);
            two.follow(slot);
        }
        two.write(2, 100).await;
        two.settle().await;
        let mut truncated = two.followed.truncated.borrow().clone();
        truncated.sort();
        let expected: Vec<(Slot, u64)> =
            strays.iter().enumerate().map(|(number, &slot)| (slot, 3 + number as u64)).collect();
        assert_eq!(truncated, expected);
        let sent = two.fed.sent_bytes.get() - copied;
        assert!(sent < copied / 10, "{sent} bytes after a copy of {copied}");
        two.end().await;
    });
}

#[test]
fn what_is_pledged_is_not_taken_back() {
    with_two(256 << 10, |two| async move {
        let slot = slots().next().unwrap();
        two.follow_all();
        two.keep_following();
        two.write(4, 100).await;
        two.settle().await;
        two.follower.unfollow(slot);
        two.stray(slot, TERM.0 + 1, 3);
        let strayed = two.target.slot_status(slot).version;
        two.followed.pledged.set(Some(slot));
        two.source.own(slot, SOURCE_GENERATION, Term(TERM.0 + 2)).unwrap();
        write(&two.source, slot, 1);
        two.follow(slot);
        while two.followed.refused.borrow().is_empty() {
            lockgate_runtime::yield_now().await;
        }
        assert!(
            matches!(two.followed.refused.borrow()[..], [(of, WhyRefused::Diverged { .. })] if of == slot)
        );
        assert_eq!(two.target.slot_status(slot).version, strayed);
        two.followed.refused.borrow_mut().clear();
        two.followed.pledged.set(None);
        two.follow(slot);
        two.settle().await;
        assert_eq!(*two.followed.truncated.borrow(), [(slot, 3)]);
        two.end().await;
    });
}

#[test]
fn histories_that_parted_several_times_are_followed_back_round_by_round() {
    with_two(256 << 10, |two| async move {
        let slot = slots().next().unwrap();
        two.follow(slot);
        two.keep_following();
        write(&two.source, slot, 10);
        until("a copy", || two.target.slot_status(slot).version.counter == 10).await;
        two.follower.unfollow(slot);
        two.stray(slot, 6, 5);
        two.stray(slot, 8, 4);
        two.stray(slot, 10, 3);
        for term in [7, 9] {
            two.source.own(slot, SOURCE_GENERATION, Term(term)).unwrap();
            write(&two.source, slot, 6);
        }
        two.follow(slot);
        two.follow_all();
        two.settle().await;
        // Up to 9:22, 7:15, 5:10; 9 and 7 take back 10 and 8 as a whole.
        assert_eq!(*two.followed.truncated.borrow(), [(slot, 3), (slot, 4), (slot, 5)]);
        two.end().await;
    });
}

#[test]
fn a_source_that_takes_back_what_it_has_sent_is_followed_on() {
    with_two(256 << 10, |two| async move {
        let slot = slots().next().unwrap();
        two.follow_all();
        two.keep_following();
        write(&two.source, slot, 10);
        two.settle().await;
        two.source.follow(slot, SOURCE_GENERATION).unwrap();
        two.source.truncate(slot, SOURCE_GENERATION, Version::new(TERM, 7)).unwrap();
        two.source.own(slot, SOURCE_GENERATION, Term(TERM.0 + 1)).unwrap();
        write(&two.source, slot, 5);
        // The subscription is over; whoever follows decides when to ask again.
        let gone = (slot, WhyRefused::NotHere);
        until("the end of the subscription", || two.followed.refused.borrow().contains(&gone)).await;
        two.followed.refused.borrow_mut().clear();
        two.follow_all();
        two.settle().await;
        assert_eq!(*two.followed.truncated.borrow(), [(slot, 3)]);
        two.end().await;
    });
}

fn refused(slot: Slot, subscription: u32, common: Version) -> Vec<Box<dyn IoBuf>> {
    let mut bytes = slot.number().to_le_bytes().to_vec();
    bytes.extend_from_slice(&2u16.to_le_bytes());
    bytes.extend_from_slice(&subscription.to_le_bytes());
    for field in [SOURCE_GENERATION.0, common.term.0, common.counter] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    vec![Box::new(bytes)]
}

/// The next Subscribe's number and cursor.
async fn next_cursor(receiver: &mut LinkReceiver) -> (u32, Version) {
    loop {
        let message = within(receiver.recv()).await.unwrap();
        if message.kind == 16 {
            let number = |at: usize| u64::from_le_bytes(message.payload[at..at + 8].try_into().unwrap());
            let subscription = u32::from_le_bytes(message.payload[4..8].try_into().unwrap());
            return (subscription, Version::new(Term(number(24)), number(32)));
        }
    }
}

#[test]
fn a_source_that_refuses_for_ever_is_asked_a_few_times_only() {
    with_two(256 << 10, |two| async move {
        let slot = slots().next().unwrap();
        two.stray(slot, 4, 9);
        let (sender, mut receiver) = two.feed_by_hand(slot).await;
        let mut asked = 0;
        // It goes on as long as something is taken back, and for a few rounds without.
        for back_to in [7, 3, 3, 3, 3, 3] {
            let subscription = next_subscription(&mut receiver).await;
            asked += 1;
            let common = Version::new(Term(4), back_to);
            sender.send(33, refused(slot, subscription, common)).await.unwrap();
        }
        until("the end of it", || two.follower.wants(slot).is_none()).await;
        assert_eq!(asked, 6);
        let common = Version::new(Term(4), 3);
        assert_eq!(*two.followed.refused.borrow(), [(slot, WhyRefused::Diverged { common })]);
        assert_eq!(*two.followed.truncated.borrow(), [(slot, 2), (slot, 4)]);
        assert_eq!(two.target.slot_status(slot).version, common);
        sender.close("the test is over");
        two.source.close().await.unwrap();
        two.target.close().await.unwrap();
    });
}

#[test]
fn a_slot_that_cannot_be_truncated_is_refused() {
    with_two(256 << 10, |two| async move {
        let slot = slots().next().unwrap();
        two.stray(slot, 4, 9);
        let (sender, mut receiver) = two.feed_by_hand(slot).await;
        let subscription = next_subscription(&mut receiver).await;
        two.target.own(slot, SOURCE_GENERATION, Term(6)).unwrap();
        sender.send(33, refused(slot, subscription, Version::ZERO)).await.unwrap();
        until("a refusal", || two.follower.wants(slot).is_none()).await;
        let common = Version::ZERO;
        assert_eq!(*two.followed.refused.borrow(), [(slot, WhyRefused::Diverged { common })]);
        assert_eq!(two.target.slot_status(slot).keys, 9, "what is served is left alone");
        sender.close("the test is over");
        two.source.close().await.unwrap();
        two.target.close().await.unwrap();
    });
}

#[test]
fn a_range_that_does_not_fit_leads_to_a_new_subscription_from_the_cursor() {
    with_two(256 << 10, |two| async move {
        let slot = slots().next().unwrap();
        write(&two.source, slot, 6);
        two.source.own(slot, SOURCE_GENERATION, Term(7)).unwrap();
        write(&two.source, slot, 6);
        let stream = two.source.stream();
        let ranges_from = |cursor| {
            stream.subscribe(slot, SOURCE_GENERATION, cursor).unwrap();
            std::iter::from_fn(|| stream.next_range(64 << 10)).collect::<Vec<_>>()
        };
        let (sender, mut receiver) = two.feed_by_hand(slot).await;
        let (subscription, _) = next_cursor(&mut receiver).await;
        let ranges = ranges_from(Version::ZERO);
        assert_eq!(ranges.len(), 2);
        sender.send(32, ranges_message(1, subscription, &ranges[0])).await.unwrap();
        until("the first range", || two.target.slot_status(slot).version == Version::new(TERM, 6)).await;
        // A source that changes its term in the middle of a stream, where the target has gone its own way.
        two.stray(slot, 6, 2);
        sender.send(32, ranges_message(2, subscription, &ranges[1])).await.unwrap();
        let (anew, cursor) = next_cursor(&mut receiver).await;
        assert_eq!(cursor, Version::new(Term(6), 8));
        // What was under way for the earlier subscription is not applied any more, nor is it a second reason.
        sender.send(32, ranges_message(3, subscription, &ranges[1])).await.unwrap();
        sender.send(33, refused(slot, anew, Version::new(TERM, 6))).await.unwrap();
        let (again, cursor) = next_cursor(&mut receiver).await;
        assert_eq!((again > anew, cursor), (true, Version::new(TERM, 6)));
        // Nor is a range of a term that is over here, whatever comes of it: the source says from where it goes on.
        two.stray(slot, 9, 1);
        sender.send(32, ranges_message(4, again, &ranges[1])).await.unwrap();
        let (once_more, cursor) = next_cursor(&mut receiver).await;
        assert_eq!(cursor, Version::new(Term(9), 7));
        sender.send(33, refused(slot, once_more, Version::new(Term(7), 7))).await.unwrap();
        let (last, cursor) = next_cursor(&mut receiver).await;
        assert_eq!(cursor, Version::new(TERM, 6));
        for (number, range) in ranges_from(cursor).iter().enumerate() {
            sender.send(32, ranges_message(5 + number as u64, last, range)).await.unwrap();
        }
        until("all of it", || two.target.slot_status(slot).version == Version::new(Term(7), 12)).await;
        let (ours, theirs) = (two.source.slot_status(slot), two.target.slot_status(slot));
        assert_eq!((ours.digest, ours.keys), (theirs.digest, theirs.keys));
        assert!(two.followed.refused.borrow().is_empty());
        sender.close("the test is over");
        two.source.close().await.unwrap();
        two.target.close().await.unwrap();
    });
}
