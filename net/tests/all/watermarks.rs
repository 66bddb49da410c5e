//! What followers are told of the source's acknowledgements.

use lockgate_engine::{Slot, Version};

use super::streams::{Two, slots, with_two};
use super::support::until;

impl Two {
    fn acknowledge(&self, slot: Slot, version: Version) {
        self.fed.watermarks.borrow_mut().insert(slot, version);
        self.fed.advanced.notify_all();
    }

    async fn told(&self, slot: Slot, version: Version) {
        until("a watermark", || self.follower.watermark(slot) == version).await;
    }
}

#[test]
fn a_follower_is_told_what_the_source_has_acknowledged() {
    with_two(256 << 10, |two| async move {
        let (one, other) = (slots().next().unwrap(), slots().nth(1).unwrap());
        two.follow_all();
        two.keep_following();
        two.write(20, 500).await;
        two.settle().await;
        let first = two.source.slot_status(one).version;
        two.write(20, 500).await;
        two.settle().await;
        assert_eq!(two.follower.watermark(one), Version::ZERO, "nothing was acknowledged");
        // It is another follower that the source waits for: this one has acknowledged all that it has.
        let last = two.source.slot_status(one).version;
        let early = Version::new(last.term, (first.counter + last.counter) / 2);
        two.acknowledge(one, early);
        two.told(one, early).await;
        two.acknowledge(one, last);
        two.told(one, last).await;
        assert_eq!(two.follower.watermark(other), Version::ZERO);
        // All slots at once, while records go on.
        two.write(20, 500).await;
        for slot in slots() {
            two.fed.watermarks.borrow_mut().insert(slot, two.source.slot_status(slot).version);
        }
        two.settle().await;
        two.fed.advanced.notify_all();
        for slot in slots() {
            two.told(slot, two.source.slot_status(slot).version).await;
        }
        // On a new link it is told anew, without news.
        two.cut_links();
        until("a new link", || two.followed.disconnected.get() > 0).await;
        for slot in slots() {
            two.told(slot, two.source.slot_status(slot).version).await;
        }
        // What a new subscription's slot had at its beginning may have come with gaps below: no watermark speaks of them.
        two.fed.watermarks.borrow_mut().insert(one, early);
        until("the new link", || two.is_linked()).await;
        two.cut_links();
        let last = two.source.slot_status(other).version;
        // The other's watermark is told on the new link, where nothing was said of this one.
        let both = || two.follower.watermark(one) == Version::ZERO && two.follower.watermark(other) == last;
        until("the other's watermark", both).await;
        two.acknowledge(one, two.source.slot_status(one).version);
        two.told(one, two.source.slot_status(one).version).await;
        two.follower.unfollow(one);
        assert_eq!(two.follower.watermark(one), Version::ZERO);
        two.end().await;
    });
}
