//! Waiting until this node holds the finals of a freeze, equal and on its disk: the local half of the barrier.

use std::time::Duration;

use lockgate_engine::{Engine, Generation, LogTicket, Slot, SlotStatus, Term, Version};
use lockgate_runtime::mutation;
use lockgate_runtime::sync::Arc;

use super::shared::{FinalsFault, Input, Shared};
use crate::control::{Attempt, JobId};
use crate::job::SlotFinal;

/// How long a node waits for the last frame to arrive. The source gives up earlier; this bounds the waiting task.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits for the finals, syncs them and tells the driver.
pub(crate) async fn sync_finals(
    shared: Arc<Shared>,
    (job, attempt): (JobId, Attempt),
    generation: Generation,
    finals: Vec<SlotFinal>,
) {
    let waited =
        lockgate_runtime::timeout(ARRIVAL_TIMEOUT, hold_finals(&shared, job, generation, &finals)).await;
    let result = waited.unwrap_or_else(|_| {
        let behind =
            finals.iter().filter(|last| !arrived(&shared.engine.slot_status(slot_of(last)), last)).count();
        Err(FinalsFault::Other(format!("{behind} of {} slots lack their last frame", finals.len())))
    });
    if result.is_ok() {
        shared.job_times.note(job, |times| &mut times.synced_ns);
    }
    shared.tell(Input::FinalsSynced { job, attempt, result }).await;
}

async fn hold_finals(
    shared: &Shared,
    job: JobId,
    generation: Generation,
    finals: &[SlotFinal],
) -> Result<(), FinalsFault> {
    let engine = &shared.engine;
    let mut ends: Vec<Option<LogTicket>> = vec![None; engine.cores()];
    let mut generations = Vec::with_capacity(finals.len());
    for last in finals {
        let slot = slot_of(last);
        let status = arrival(engine, slot, generation, last).await;
        let held = (status.version, status.digest);
        if held != (final_version(last), last.digest) && !mutation!("barrier-before-the-last-frame") {
            let why = format!(
                "slot {slot} holds version {} with digest {:016x}, the source froze it at {} with {:016x}",
                status.version,
                status.digest,
                final_version(last),
                last.digest
            );
            return Err(FinalsFault::Mismatch { slot, why });
        }
        generations.push(status.generation);
        let ticket = engine.ticket_at(slot, status.position);
        let end = &mut ends[ticket.core as usize];
        if end.is_none_or(|end| end.position < ticket.position) {
            *end = Some(ticket);
        }
    }
    shared.job_times.note(job, |times| &mut times.held_ns);
    if mutation!("barrier-counts-received-for-synced") {
        return Ok(());
    }
    for ticket in ends.into_iter().flatten() {
        let synced = engine.wait_synced(ticket).await;
        synced.map_err(|error| FinalsFault::Other(format!("the last frame could not be synced: {error}")))?;
    }
    // What was equal before the sync must still be what is held: a slot may have started anew meanwhile.
    for (last, generation) in finals.iter().zip(generations) {
        let slot = slot_of(last);
        if engine.slot_status(slot).generation != generation {
            return Err(FinalsFault::Other(format!("slot {slot} started anew during the barrier")));
        }
    }
    Ok(())
}

/// Waits until the slot has reached its final version in this generation.
async fn arrival(engine: &Engine, slot: Slot, generation: Generation, last: &SlotFinal) -> SlotStatus {
    loop {
        let changed = engine.gate_event(slot);
        let listen = changed.listen();
        let status = engine.slot_status(slot);
        if status.generation.same_major(generation) && arrived(&status, last) {
            return status;
        }
        listen.await;
    }
}

fn arrived(status: &SlotStatus, last: &SlotFinal) -> bool {
    status.version >= final_version(last) || mutation!("barrier-before-the-last-frame")
}

fn final_version(last: &SlotFinal) -> Version {
    Version::new(Term(last.term), last.counter)
}

fn slot_of(last: &SlotFinal) -> Slot {
    Slot::new(last.slot).expect("slot numbers were checked when the message arrived")
}
