//! No slot stays frozen for ever: once faults have healed, none is.

use lockgate_engine::Gate;

use super::Oracle;
use crate::watch::View;

/// See the module.
pub struct NotFrozenForEver;

impl Oracle for NotFrozenForEver {
    fn name(&self) -> &'static str {
        "no slot frozen for ever"
    }

    fn healed(&mut self, view: &View) -> Result<(), String> {
        for machine in 0..view.seen.len() {
            for (at, slot) in view.hot.iter().enumerate() {
                if view.slot(machine, at).is_some_and(|status| status.gate == Gate::Frozen) {
                    return Err(format!("{} still has slot {slot} frozen", view.name(machine)));
                }
            }
        }
        Ok(())
    }
}
