//! Leading: a thread that waits for a sync writes and syncs by itself, when the writer has nothing to do.
//!
//! A thread that sleeps until a core has synced pays for three wake-ups (the core, the kernel's worker that syncs for its ring,
//! itself), which take as long as half a sync. One that leads pays for none. Those who come while it syncs wait; who comes
//! next, or the writer, does what they need, all in one.
//!
//! Invariants:
//! - The [`Desk`] is with the writer, or with one thread that leads, or lies in [`Collecting`](super::shared::Collecting) and
//!   nobody writes.
//! - While a thread leads nobody need notify the writer: before the thread leaves the desk it looks, under the lock, whether
//!   there is something to do, and notifies then.
//! - A thread never goes on to the next file: the batch that does not fit is the writer's, and so is whatever it takes to make
//!   room on a full disk.
//! - An error ends the log, as the writer's does. So does the end of a thread that had the desk, for whatever reason.
//!
//! What is not simulated: foreign threads are not, so nobody leads there. What the desk does is the same for both, and the
//! hand-over is modelled (`loom_tests`).

use lockgate_runtime::{Reached, mutation};

use super::desk::Desk;
use super::error::{LogFailed, StopCause};
use super::format::{BATCH_HEADER_BYTES, LogPosition};
use super::outside::BlockingFile;
use super::shared::{Batch, Shared};
use super::space::is_no_space;
use super::writer::GROUP_BYTES;

/// A thread that has the desk.
struct Lead<'a> {
    shared: &'a Shared,
    /// None once it was left.
    desk: Option<Desk>,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        if self.desk.is_some() {
            self.shared.stop(LogFailed::new(StopCause::CoreStopped {
                log: self.shared.name.to_string(),
                position: LogPosition(self.shared.written.get()),
            }));
        }
    }
}

impl Shared {
    /// Writes and syncs what was appended, if the desk is free, on the calling thread, which must not be a core's. It promises
    /// nothing: there may be too much, or the next file may be needed. The writer is to be asked for what is not synced then.
    pub(super) fn lead(&self) {
        let Some((desk, file)) = self.take_desk() else { return };
        let mut lead = Lead { shared: self, desk: Some(desk) };
        match lead.write_and_sync(&file) {
            Ok(reached) => {
                if let Some(desk) = lead.desk.take() {
                    self.leave_desk(desk);
                }
                // After the desk: whoever comes next need not wait until all are awake.
                drop(reached);
            }
            Err(failed) => {
                tracing::error!(error = %failed, "the log stopped");
                self.stop(failed);
                lead.desk = None;
            }
        }
    }
}

impl Lead<'_> {
    fn write_and_sync(&mut self, file: &BlockingFile) -> Result<Reached, LogFailed> {
        let (shared, mut group_bytes) = (self.shared, 0);
        let desk = self.desk.as_mut().expect("it has the desk until it leaves it");
        while group_bytes < GROUP_BYTES
            && let Some(batch) = shared.take_batch_if(|payload_bytes| desk.has_room(payload_bytes))
        {
            let (payload_bytes, frames, start) = (batch.payload_bytes(), batch.frames, batch.start);
            group_bytes += payload_bytes;
            let mut bytes = desk.seal(shared, batch);
            match file.write_all_at(&bytes, desk.offset) {
                Ok(()) => {}
                // Some file systems need space for what is overwritten, too. The writer knows how to wait for it.
                Err(error) if is_no_space(&error) => {
                    bytes.truncate(BATCH_HEADER_BYTES + payload_bytes);
                    shared.put_back(Batch::complete(bytes, frames, start));
                    break;
                }
                Err(error) => return Err(desk.failed(shared, "writing", error)),
            }
            desk.advance(shared, bytes.len() as u64);
            shared.batch_written(payload_bytes, bytes);
        }
        let covered = shared.written.get();
        if covered > shared.synced.get() {
            if !mutation!("unsynced-led-batch") {
                file.sync_data().map_err(|error| desk.failed(shared, "syncing", error))?;
            }
            desk.sync_due_at_ns = None;
        }
        Ok(shared.raise_synced(covered))
    }
}
