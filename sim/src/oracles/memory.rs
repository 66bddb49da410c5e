//! Nothing grows without bound: maps remember a bounded number of jobs, and a machine at rest has a bounded number of
//! tasks, whatever it has been through.

use lockgate_migrate::control::JOBS_KEPT;

use super::Oracle;
use crate::watch::View;

/// Tasks of a machine at rest: some for each core, and for each link with a peer, which has a few tasks at either end.
fn tasks_max(machines: usize, cores: usize) -> usize {
    const PER_CORE: usize = 24;
    const PER_PEER: usize = 16;
    cores * PER_CORE + machines * PER_PEER
}

/// See the module.
pub struct BoundedMemory;

impl Oracle for BoundedMemory {
    fn name(&self) -> &'static str {
        "bounded memory"
    }

    fn healed(&mut self, view: &View) -> Result<(), String> {
        for (machine, seen) in view.seen.iter().enumerate() {
            let name = view.name(machine);
            if let Some(map) = &seen.map
                && map.jobs.values().filter(|job| job.state.is_finished()).count() > JOBS_KEPT
            {
                return Err(format!("{name} remembers {} jobs", map.jobs.len()));
            }
            let shape = &view.cluster.shape;
            let (tasks, most) = (view.cluster.control.tasks(name), tasks_max(shape.machines(), shape.cores));
            if tasks > most {
                return Err(format!("{name} has {tasks} tasks at rest, more than {most}"));
            }
        }
        Ok(())
    }
}
