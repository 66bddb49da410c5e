//! A fenced member takes nothing: from the fence on until the next reign, or until the fence falls, none of its slots gets
//! a later version. What it reports as a candidate is then what it has when it is named (R12).

use std::collections::BTreeMap;

use lockgate_engine::{Generation, Version};

use super::Oracle;
use crate::watch::View;

/// What the hot slots of a machine hold.
type Held = Vec<(Generation, Version)>;

/// See the module.
#[derive(Default)]
pub struct FencedTakesNothing {
    /// By machine: which start and fence of it, and what its slots held then.
    held: BTreeMap<usize, ((u64, u64), Held)>,
}

impl Oracle for FencedTakesNothing {
    fn name(&self) -> &'static str {
        "a fenced member takes nothing"
    }

    fn step(&mut self, view: &View) -> Result<(), String> {
        for machine in view.looked_at.clone() {
            let seen = &view.seen[machine];
            if !seen.is_fenced {
                self.held.remove(&machine);
                continue;
            }
            let held = || {
                view.cluster.with_node(machine, |node, _| {
                    let statuses = view.hot.iter().map(|&slot| node.engine().slot_status(slot));
                    statuses.map(|status| (status.generation, status.version)).collect::<Held>()
                })
            };
            let Some(now) = held() else { continue };
            let fence = (seen.start, seen.fences);
            match self.held.get(&machine) {
                Some((known, before)) if *known == fence => {
                    // A slot that starts anew by the map starts empty.
                    let taken = |(before, now): (&(Generation, Version), &(Generation, Version))| {
                        now.1 > if before.0 == now.0 { before.1 } else { Version::ZERO }
                    };
                    let taken = before.iter().zip(&now).position(taken);
                    if let Some(at) = taken {
                        let (name, slot) = (view.name(machine), view.hot[at]);
                        let (before, now) = (before[at].1, now[at].1);
                        return Err(format!("{name} is fenced, and took slot {slot} from {before} to {now}"));
                    }
                }
                _ => drop(self.held.insert(machine, (fence, now))),
            }
        }
        Ok(())
    }
}
