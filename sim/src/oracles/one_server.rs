//! At any instant at most one machine serves a slot, gate and lease together, and each that serves it next does so under a
//! higher term.

use std::collections::BTreeMap;

use lockgate_engine::Term;

use super::Oracle;
use crate::watch::{View, serves};

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

    fn server(&mut self, machine: usize, view: &View) -> Result<(), String> {
        if !view.has_lease(machine) {
            return Ok(());
        }
        for (at, slot) in view.hot.iter().enumerate() {
            if !view.slot(machine, at).is_some_and(|slot| serves(slot.gate)) {
                continue;
            }
            let servers = view.servers(at);
            if let [one, other, ..] = servers[..] {
                return Err(format!("{} and {} serve slot {slot}", view.name(one), view.name(other)));
            }
            let term = view.slot(machine, at).map_or(Term(0), |status| status.term);
            let now = (machine, view.seen[machine].start, term);
            let Some(last) = self.last.insert(at, now) else { continue };
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
