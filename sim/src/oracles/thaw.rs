//! No unfreeze on a timer: once a vote may be under way, a frozen slot takes writes again only where an applied entry has
//! consumed the attempt.

use lockgate_engine::Gate;
use lockgate_migrate::control::JobState;

use super::Oracle;
use crate::watch::{SlotChange, View};

/// See the module.
pub struct NoThawOnATimer;

impl Oracle for NoThawOnATimer {
    fn name(&self) -> &'static str {
        "no unfreeze on a timer"
    }

    fn slot(&mut self, change: &SlotChange, view: &View) -> Result<(), String> {
        let gates = (change.before.map(|slot| slot.gate), change.after.map(|slot| slot.gate));
        let (Some(Gate::Frozen), Some(Gate::Owned)) = gates else { return Ok(()) };
        let slot = view.hot[change.at];
        let Some(map) = &view.seen[change.machine].map else { return Ok(()) };
        let undecided = map.jobs.values().find(|job| {
            job.state == JobState::Active
                && view.jobs.has_voted(job.id, job.attempt)
                && job.slots.iter().any(|range| range.contains(slot.number()))
        });
        match undecided {
            None => Ok(()),
            Some(job) => Err(format!(
                "{} thawed slot {slot} while the vote on job {} attempt {} is undecided there",
                view.name(change.machine),
                job.id,
                job.attempt
            )),
        }
    }
}
