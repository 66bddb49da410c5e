//! Slots that this node has called synced for a barrier: evidence of a vote may rest on that word, so what they hold stays.
//!
//! Invariant: a slot is pledged until the attempt is consumed without a commit, or a commit of it was activated. Until then
//! it is neither dropped to be copied anew nor cut back, whatever its source of the moment says: that one has yet to get
//! there itself.

use std::collections::BTreeMap;

use lockgate_engine::Slot;

use crate::control::{Attempt, JobId, JobState};

/// This node's word, slot by slot.
#[derive(Debug, Default)]
pub(crate) struct Pledges {
    slots: BTreeMap<Slot, (JobId, Attempt)>,
}

impl Pledges {
    /// The finals of this attempt are on this node's disk, and its target is about to hear so.
    pub fn pledge(&mut self, job: JobId, attempt: Attempt, slots: impl IntoIterator<Item = Slot>) {
        self.slots.extend(slots.into_iter().map(|slot| (slot, (job, attempt))));
    }

    /// Whether a vote may rest on what the slot holds. What no vote can rest on any more is forgotten. `state` is what the
    /// applied map says of a job.
    pub fn holds<'a>(
        &mut self,
        slot: Slot,
        state: impl FnOnce(JobId) -> Option<(&'a JobState, Attempt)>,
    ) -> bool {
        let Some(&(job, attempt)) = self.slots.get(&slot) else { return false };
        let holds = match state(job) {
            Some((JobState::Active, current)) => current == attempt,
            Some((JobState::Committed { .. } | JobState::Disputed, _)) => true,
            _ => false,
        };
        if !holds {
            self.slots.remove(&slot);
        }
        holds
    }
}

#[cfg(test)]
mod tests {
    use lockgate_engine::Term;

    use super::*;

    #[test]
    fn a_pledge_lasts_until_its_attempt_is_consumed_or_its_commit_activated() {
        let (mut pledges, job, attempt) = (Pledges::default(), JobId(5), Attempt(7));
        let slots = [1, 2].map(|number| Slot::new(number).unwrap());
        pledges.pledge(job, attempt, slots);
        let active = |attempt| move |_| Some((&JobState::Active, attempt));
        assert!(pledges.holds(slots[0], active(attempt)));
        let committed = JobState::Committed { index: 9, term: Term(8) };
        assert!(pledges.holds(slots[0], |_| Some((&committed, attempt))));
        assert!(!pledges.holds(slots[0], |_| Some((&JobState::Activated { index: 10 }, attempt))));
        assert!(!pledges.holds(slots[0], active(attempt)), "forgotten");
        assert!(!pledges.holds(slots[1], active(Attempt(8))), "another attempt");
        assert!(!pledges.holds(slots[1], active(attempt)), "forgotten");
        pledges.pledge(job, attempt, slots);
        assert!(!pledges.holds(slots[1], |_| None), "the map has forgotten the job");
    }
}
