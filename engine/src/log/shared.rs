//! What appenders and the writer share: the batches that are being collected, the watermarks, the final failure.
//!
//! Invariants:
//! - `synced <= written <= appended` (see [`Shared::assert_order`]).
//! - Batches lie in the queue in order of position, without gaps; only the last one still grows.
//! - `outstanding` is what is reserved plus what is appended and not written. It exceeds the bound only by one frame
//!   that was let in alone.
//! - `stopped` is set at most once. Afterwards the queue is empty and stays empty.
//! - No wake-up of the writer is lost: it declares itself idle under the lock, having found nothing to do, and with a
//!   listener made before; whoever then brings work takes the declaration back and notifies, once.
//!
//! The lock is held for the copy of one small frame at most: a large frame is copied into a batch of its own before.

use std::collections::VecDeque;

use lockgate_runtime::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use lockgate_runtime::sync::{Arc, Mutex};
use lockgate_runtime::{Event, Reached, Watermark, give_back_memory};

use super::desk::Desk;
use super::error::{LogError, LogFailed, StopCause};
use super::format::{
    BATCH_HEADER_BYTES, FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, FrameHeader, LogPosition, SECTOR_BYTES,
};
use super::group::LogGroup;
use super::outside::BlockingFile;
use super::space::Space;

/// Payload bytes after which a batch is complete and a new one begins.
pub(super) const BATCH_PAYLOAD_BYTES_TARGET: usize = 1 << 20;
/// Frames larger than this get a batch of their own, copied outside of the lock.
pub(super) const LARGE_FRAME_BYTES: usize = 64 << 10;
/// Buffers of written batches that are kept for new ones.
const FREE_BUFFERS_MAX: usize = 8;
/// What a free buffer keeps of its memory after a burst, in whole pages: small batches never pay for new ones.
const KEPT_BYTES: usize = 64 << 10;
/// Capacity of a collecting batch's buffer: it never grows under the lock.
const BATCH_BUFFER_BYTES: usize = BATCH_HEADER_BYTES + BATCH_PAYLOAD_BYTES_TARGET + SECTOR_BYTES;

const _: () = assert!(LARGE_FRAME_BYTES < BATCH_PAYLOAD_BYTES_TARGET);

/// Frames that will be written and checksummed together.
pub(super) struct Batch {
    /// Room for the batch's header, then frames.
    pub(super) bytes: Vec<u8>,
    /// Number of frames.
    pub(super) frames: u32,
    /// Position of the first frame.
    pub(super) start: u64,
    /// Nothing is added any more.
    complete: bool,
}

impl Batch {
    fn new(mut bytes: Vec<u8>, start: u64) -> Batch {
        bytes.clear();
        bytes.resize(BATCH_HEADER_BYTES, 0);
        Batch { bytes, frames: 0, start, complete: false }
    }

    pub(super) fn payload_bytes(&self) -> usize {
        self.bytes.len() - BATCH_HEADER_BYTES
    }

    fn push(&mut self, header: &[u8; FRAME_HEADER_BYTES], parts: &[&[u8]]) {
        self.bytes.extend_from_slice(header);
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.frames += 1;
    }

    /// Without frames: what seals a chain.
    pub(super) fn empty(start: u64) -> Batch {
        Batch::new(Vec::new(), start)
    }

    /// One that was taken, and could not be written.
    pub(super) fn complete(bytes: Vec<u8>, frames: u32, start: u64) -> Batch {
        Batch { bytes, frames, start, complete: true }
    }

    fn has_room(&self, frame_bytes: usize) -> bool {
        !self.complete && self.payload_bytes() + frame_bytes <= BATCH_PAYLOAD_BYTES_TARGET
    }
}

/// What the writer should do when it has nothing to write.
#[must_use]
pub(super) enum Rest {
    /// Something came in between: go on.
    Work(Desk),
    /// Sleep until notified; whoever brings work will notify. The desk lies where threads find it. `is_filled`: since the last
    /// rest there was more than [`KEPT_BYTES`] in a buffer that is free now, see [`Shared::give_back_spare`].
    Idle { is_filled: bool },
    /// The log is being closed and everything is written.
    Close(Desk),
}

/// Where the log stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Closing,
}

struct Collecting {
    queue: VecDeque<Batch>,
    free: Vec<Vec<u8>>,
    /// One of `free` has had more than [`KEPT_BYTES`] in it.
    is_free_filled: bool,
    appended: u64,
    writer_idle: bool,
    /// While nobody writes.
    desk: Option<Desk>,
    phase: Phase,
    /// The failure of another log that ends this one, too.
    ended_by: Option<LogFailed>,
    stopped: Option<LogFailed>,
}

/// The shared part of one log.
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    unwritten_bytes_max: u64,
    outstanding: AtomicU64,
    appended: AtomicU64,
    pub(super) written: Watermark,
    pub(super) synced: Watermark,
    sync_wanted: AtomicU64,
    /// Set with `Collecting::stopped` or when closing begins: lets `reserve` look without the lock.
    refusing: AtomicBool,
    collecting: Mutex<Collecting>,
    /// Work for the writer.
    pub(super) work: Event,
    pub(super) space: Space,
    group: LogGroup,
}

/// Room in the log for one frame. Dropped unused, the room is given back.
#[must_use = "a reservation holds room in the log until it is used or dropped"]
pub struct Reservation<'a> {
    shared: &'a Shared,
    bytes: u64,
}

impl std::fmt::Debug for Reservation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reservation").field("log", &self.shared.name).field("bytes", &self.bytes).finish()
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.shared.outstanding.fetch_sub(self.bytes, Ordering::AcqRel);
        }
    }
}

impl Shared {
    pub(super) fn new(name: &str, start: u64, unwritten_bytes_max: u64, group: LogGroup) -> Shared {
        Shared {
            name: Arc::from(name),
            unwritten_bytes_max,
            outstanding: AtomicU64::new(0),
            appended: AtomicU64::new(start),
            written: Watermark::new(start),
            synced: Watermark::new(start),
            sync_wanted: AtomicU64::new(start),
            refusing: AtomicBool::new(false),
            collecting: Mutex::new(Collecting {
                queue: VecDeque::new(),
                free: Vec::new(),
                is_free_filled: false,
                appended: start,
                writer_idle: false,
                desk: None,
                phase: Phase::Open,
                ended_by: None,
                stopped: None,
            }),
            work: Event::new(),
            space: Space::new(),
            group,
        }
    }

    /// Room for a frame of data.
    pub(super) fn reserve(&self, payload_bytes: usize) -> Result<Reservation<'_>, LogError> {
        if self.space.is_short() && !self.is_refusing() && payload_bytes <= FRAME_PAYLOAD_BYTES_MAX {
            let bytes = (FRAME_HEADER_BYTES + payload_bytes) as u64;
            let outstanding = self.outstanding.load(Ordering::Acquire);
            if self.space.refuse(outstanding, bytes) {
                return Err(LogError::DiskFull {
                    log: self.name.clone(),
                    requested_bytes: bytes,
                    room_bytes: self.space.data_room_bytes().saturating_sub(outstanding),
                });
            }
        }
        self.reserve_control(payload_bytes)
    }

    /// Room for a frame, whether the disk is full or not.
    pub(super) fn reserve_control(&self, payload_bytes: usize) -> Result<Reservation<'_>, LogError> {
        if payload_bytes > FRAME_PAYLOAD_BYTES_MAX {
            return Err(LogError::FrameTooLong {
                log: self.name.clone(),
                payload_bytes,
                limit_bytes: FRAME_PAYLOAD_BYTES_MAX,
            });
        }
        if self.is_refusing() {
            return Err(self.refusal().into());
        }
        let bytes = (FRAME_HEADER_BYTES + payload_bytes) as u64;
        let admitted = self.outstanding.fetch_update(Ordering::AcqRel, Ordering::Acquire, |outstanding| {
            let after = outstanding + bytes;
            (outstanding == 0 || after <= self.unwritten_bytes_max).then_some(after)
        });
        match admitted {
            Ok(_) => Ok(Reservation { shared: self, bytes }),
            Err(unwritten_bytes) => Err(LogError::Behind {
                log: self.name.clone(),
                unwritten_bytes,
                requested_bytes: bytes,
                bound_bytes: self.unwritten_bytes_max,
            }),
        }
    }

    /// Appends one frame. The reservation must be of this log, for at least as many bytes.
    pub(super) fn append(
        &self,
        mut reservation: Reservation<'_>,
        frame: FrameHeader,
        parts: &[&[u8]],
    ) -> Result<LogPosition, LogFailed> {
        assert!(
            std::ptr::eq(reservation.shared, self),
            "log {}: the reservation is another log's",
            self.name
        );
        let payload_bytes = parts.iter().map(|part| part.len()).sum::<usize>();
        let frame_bytes = FRAME_HEADER_BYTES + payload_bytes;
        let unused = reservation.bytes.checked_sub(frame_bytes as u64).unwrap_or_else(|| {
            panic!(
                "log {}: a frame of {frame_bytes} bytes exceeds its reservation of {}",
                self.name, reservation.bytes
            )
        });
        let header = frame.encode(payload_bytes);
        let alone = (frame_bytes > LARGE_FRAME_BYTES).then(|| {
            let room = (BATCH_HEADER_BYTES + frame_bytes).next_multiple_of(SECTOR_BYTES);
            let mut batch = Batch::new(Vec::with_capacity(room), 0);
            batch.push(&header, parts);
            batch.complete = true;
            batch
        });
        let (end, wake) = {
            let mut collecting = self.collecting.lock();
            if collecting.stopped.is_some() || collecting.phase != Phase::Open {
                return Err(self.refusal_of(&collecting));
            }
            match alone {
                Some(batch) => collecting.push_batch(batch),
                None => collecting.push_frame(&header, parts, frame_bytes),
            }
            collecting.appended += frame_bytes as u64;
            self.appended.store(collecting.appended, Ordering::Release);
            (collecting.appended, std::mem::take(&mut collecting.writer_idle))
        };
        // The frame's bytes now stay outstanding until they are written; only the unused rest is given back.
        reservation.bytes = unused;
        drop(reservation);
        if wake {
            self.work.notify_all();
        }
        Ok(LogPosition(end))
    }

    pub(super) fn appended(&self) -> LogPosition {
        LogPosition(self.appended.load(Ordering::Acquire))
    }

    /// Asks for a sync up to `position`. Asking twice costs nothing.
    pub(super) fn request_sync(&self, position: LogPosition) {
        if self.synced.get() >= position.0
            || self.sync_wanted.fetch_max(position.0, Ordering::AcqRel) >= position.0
        {
            return;
        }
        self.wake_writer(|_| ());
    }

    /// Stops new frames; the writer will write and sync what is there, and end.
    pub(super) fn begin_close(&self) {
        self.refusing.store(true, Ordering::Release);
        self.wake_writer(|collecting| collecting.phase = Phase::Closing);
        // A close does not wait for a disk to have space.
        self.space.changed.notify_all();
    }

    /// Whether nothing is taken any more: the log is being closed, or has ended.
    pub(super) fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Acquire)
    }

    /// Another log has failed: as [`Shared::begin_close`], and that failure is the answer from now on.
    pub(super) fn end_with(&self, first: LogFailed) {
        self.refusing.store(true, Ordering::Release);
        self.wake_writer(|collecting| {
            collecting.ended_by.get_or_insert(first);
            collecting.phase = Phase::Closing;
        });
        self.space.changed.notify_all();
    }

    /// Ends the log. Only the first cause counts, of this log and those that it fails with; it is returned.
    pub(super) fn stop(&self, cause: LogFailed) -> LogFailed {
        if matches!(cause.cause(), StopCause::Io { .. }) {
            self.group.fail(&cause);
        }
        let (cause, desk) = {
            let mut collecting = self.collecting.lock();
            collecting.queue.clear();
            collecting.free.clear();
            let cause = collecting.ended_by.clone().unwrap_or(cause);
            (collecting.stopped.get_or_insert(cause).clone(), collecting.desk.take())
        };
        // Closes the file.
        drop(desk);
        self.refusing.store(true, Ordering::Release);
        self.written.fail();
        self.synced.fail();
        self.work.notify_all();
        self.space.changed.notify_all();
        cause
    }

    /// The cause that ended the log, once it ended.
    pub(super) fn stopped(&self) -> Option<LogFailed> {
        self.collecting.lock().stopped.clone()
    }

    /// What ended the log, or is about to, other than a close.
    pub(super) fn failure(&self) -> Option<LogFailed> {
        let collecting = self.collecting.lock();
        let cause = collecting.ended_by.as_ref().or(collecting.stopped.as_ref());
        cause.filter(|cause| !cause.is_closed()).cloned()
    }

    /// Why the log takes nothing: its final cause, or that it is being closed.
    pub(super) fn refusal(&self) -> LogFailed {
        self.refusal_of(&self.collecting.lock())
    }

    fn refusal_of(&self, collecting: &Collecting) -> LogFailed {
        let cause = collecting.ended_by.as_ref().or(collecting.stopped.as_ref());
        cause.cloned().unwrap_or_else(|| {
            LogFailed::new(StopCause::Closed {
                log: self.name.to_string(),
                position: LogPosition(collecting.appended),
            })
        })
    }

    fn wake_writer(&self, change: impl FnOnce(&mut Collecting)) {
        let wake = {
            let mut collecting = self.collecting.lock();
            change(&mut collecting);
            std::mem::take(&mut collecting.writer_idle)
        };
        if wake {
            self.work.notify_all();
        }
    }

    /// The oldest batch, for writing. It does not grow any more. True: it is the last one, and somebody waits for a sync.
    pub(super) fn take_batch(&self) -> Option<(Batch, bool)> {
        let mut collecting = self.collecting.lock();
        let batch = collecting.queue.pop_front()?;
        let is_wanted = self.sync_wanted.load(Ordering::Acquire) > self.synced.get();
        Some((batch, is_wanted && collecting.queue.is_empty()))
    }

    /// The oldest batch, if the writer of the moment can write so many bytes.
    pub(super) fn take_batch_if(&self, can_write: impl FnOnce(usize) -> bool) -> Option<Batch> {
        self.collecting.lock().queue.pop_front_if(|first| can_write(first.payload_bytes()))
    }

    /// The batch that was taken last is to be written by another one.
    pub(super) fn put_back(&self, batch: Batch) {
        let mut collecting = self.collecting.lock();
        if collecting.stopped.is_none() {
            collecting.queue.push_front(batch);
        }
    }

    /// Notes a batch as written, and takes its buffer back.
    pub(super) fn batch_written(&self, payload_bytes: usize, buffer: Vec<u8>) {
        // Room first: who awaited the position finds it.
        let before = self.outstanding.fetch_sub(payload_bytes as u64, Ordering::AcqRel);
        assert!(before >= payload_bytes as u64, "log {}: more written than was outstanding", self.name);
        self.written.advance_to(self.written.get() + payload_bytes as u64);
        self.assert_order();
        if buffer.capacity() == BATCH_BUFFER_BYTES {
            let mut collecting = self.collecting.lock();
            if collecting.free.len() < FREE_BUFFERS_MAX {
                collecting.is_free_filled |= buffer.len() > KEPT_BYTES;
                collecting.free.push(buffer);
            }
        }
    }

    /// Notes that a sync, begun when `written` stood at `position`, has ended well. Who waited for it is woken when what is
    /// returned is dropped.
    pub(super) fn raise_synced(&self, position: u64) -> Reached {
        let reached = self.synced.raise_to(position);
        self.assert_order();
        reached
    }

    /// True when somebody waits for a sync of what is written.
    pub(super) fn sync_is_wanted(&self) -> bool {
        self.sync_wanted.load(Ordering::Acquire).min(self.written.get()) > self.synced.get()
    }

    /// The writer has nothing to do: under the lock, finds out whether that is so, and declares it idle.
    pub(super) fn rest(&self, desk: Desk) -> Rest {
        let mut collecting = self.collecting.lock();
        if self.has_work(&collecting) {
            return Rest::Work(desk);
        }
        if collecting.phase == Phase::Closing {
            return Rest::Close(desk);
        }
        collecting.desk = Some(desk);
        collecting.writer_idle = true;
        Rest::Idle { is_filled: std::mem::take(&mut collecting.is_free_filled) }
    }

    /// Gives the memory of free buffers back to the system. Who appends meanwhile takes new ones.
    pub(super) fn give_back_spare(&self) {
        let mut spare = std::mem::take(&mut self.collecting.lock().free);
        spare.iter_mut().for_each(|buffer| give_back_memory(buffer, KEPT_BYTES));
        let mut collecting = self.collecting.lock();
        if collecting.stopped.is_none() {
            let room = FREE_BUFFERS_MAX.saturating_sub(collecting.free.len());
            collecting.free.extend(spare.drain(..room.min(spare.len())));
        }
    }

    fn has_work(&self, collecting: &Collecting) -> bool {
        !collecting.queue.is_empty() || collecting.stopped.is_some() || self.sync_is_wanted()
    }

    /// The writer is awake again (it may have been a timer that woke it). `None` while a thread leads, which will notify it
    /// if it leaves anything to do; otherwise whoever brings work does, as always.
    pub(super) fn resume(&self) -> Option<Desk> {
        let mut collecting = self.collecting.lock();
        collecting.writer_idle = false;
        collecting.desk.take()
    }

    /// The desk for a thread that leads, if nobody has it and a thread can use it.
    pub(super) fn take_desk(&self) -> Option<(Desk, BlockingFile)> {
        let mut collecting = self.collecting.lock();
        if collecting.stopped.is_some() {
            return None;
        }
        let file = collecting.desk.as_ref()?.file.file.blocking()?;
        collecting.writer_idle = false;
        collecting.desk.take().map(|desk| (desk, file))
    }

    /// The thread has led. Wakes the writer if there is something for it to do, or else declares it idle.
    pub(super) fn leave_desk(&self, desk: Desk) {
        let has_work = {
            let mut collecting = self.collecting.lock();
            if collecting.stopped.is_some() {
                // Nobody takes it any more.
                return;
            }
            collecting.desk = Some(desk);
            let has_work = self.has_work(&collecting) || collecting.phase == Phase::Closing;
            collecting.writer_idle = !has_work;
            has_work
        };
        if has_work {
            self.work.notify_all();
        }
    }

    /// `synced <= written <= appended`. Each only grows, so reading them in this order is enough from any thread.
    pub(super) fn assert_order(&self) {
        let synced = self.synced.get();
        let written = self.written.get();
        let appended = self.appended.load(Ordering::Acquire);
        assert!(
            synced <= written && written <= appended,
            "log {}: synced {synced} <= written {written} <= appended {appended} does not hold",
            self.name
        );
    }

    /// How many free buffers have the memory of what filled them.
    #[cfg(test)]
    pub(super) fn filled_spare(&self) -> usize {
        self.collecting.lock().free.iter().filter(|buffer| buffer.len() > KEPT_BYTES).count()
    }

    #[cfg(test)]
    pub(super) fn outstanding(&self) -> u64 {
        self.outstanding.load(Ordering::Acquire)
    }
}

impl Collecting {
    fn push_batch(&mut self, mut batch: Batch) {
        batch.start = self.appended;
        self.queue.push_back(batch);
    }

    fn push_frame(&mut self, header: &[u8; FRAME_HEADER_BYTES], parts: &[&[u8]], frame_bytes: usize) {
        if !self.queue.back().is_some_and(|batch| batch.has_room(frame_bytes)) {
            let buffer = self.free.pop().unwrap_or_else(|| Vec::with_capacity(BATCH_BUFFER_BYTES));
            self.queue.push_back(Batch::new(buffer, self.appended));
        }
        if let Some(batch) = self.queue.back_mut() {
            batch.push(header, parts);
        }
    }
}
