//! At any instant at most one machine serves a slot, and each that serves it next does so under a higher term.

use std::collections::BTreeMap;

use lockgate_engine::Term;

use super::Oracle;
use crate::watch::{SlotChange, View, serves};

/// See the module.
#[derive(Default)]
pub struct OneServer {
    /// Who served a slot last: machine, start, term.
    last: BTreeMap<usize, (usize, u64, Term)>,
}

impl Oracle for OneServer {
    fn name(&self) -> &'static str {
        "one server"
    }

    fn slot(&mut self, change: &SlotChange, view: &View) -> Result<(), String> {
        let Some(after) = change.after.filter(|after| serves(after.gate)) else { return Ok(()) };
        let slot = view.hot[change.at];
        let others: Vec<_> = view.servers(change.at).into_iter().filter(|&m| m != change.machine).collect();
        if let Some(&other) = others.first() {
            let (here, there) = (view.name(change.machine), view.name(other));
            return Err(format!(
                "{here} serves slot {slot} under term {} while {there} serves it too",
                after.term
            ));
        }
        let now = (change.machine, view.seen[change.machine].start, after.term);
        if let Some(last) = self.last.insert(change.at, now) {
            let is_same = (last.0, last.1) == (now.0, now.1);
            if now.2 < last.2 || (now.2 == last.2 && !is_same) {
                let (here, there) = (view.name(now.0), view.name(last.0));
                return Err(format!(
                    "{here} serves slot {slot} under term {}, after {there} has served it under term {}",
                    now.2, last.2
                ));
            }
        }
        Ok(())
    }
}
