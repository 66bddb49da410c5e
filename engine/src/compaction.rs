//! One step of a slot's compaction: some neighbouring segments are replaced by one copy of what is still needed of them.
//!
//! That is done for the garbage in them, or because they are many and short: what a segment takes beside its records, and
//! what records leave over of its last line, is a good part of a short one.
//!
//! The order of versions stays as it was, so a chain is read and streamed as before. What may go:
//! - a superseded value, if what superseded it can never be taken back here (R4), and if every stream that is to have no
//!   gaps was sent the value, or will be sent what superseded it before it counts as whole;
//! - a tombstone, under the same condition, if every stream was sent it, and if no superseded value is left before it in
//!   the chain: whoever starts from nothing would be sent the value without its end. It raises the slot's *floor* (R5): a
//!   receiver that stands below the floor has to start anew.
//!
//! Of the writes that can never be taken back the last one always stays, superseded or not. So a slot can be truncated to
//! every version from there on (its *undo floor*), and a receiver always ends at the slot's last version.
//!
//! Invariants: nothing live is dropped; digest, counts and version stay as they are; a segment that anybody else holds is
//! not touched; one step copies at most about [`SEGMENT_BYTES_MAX`], or one range that is longer.

use std::collections::BTreeMap;
use std::ops::Range;

use lockgate_runtime::mutation;

use crate::arena::OutOfMemory;
use crate::chain::{Link, SEGMENT_BYTES_MAX};
use crate::frames::FRAME_STABLE;
use crate::log::Log;
use crate::record::Kind;
use crate::segment::RecordOffset;
use crate::slot::SlotState;
use crate::store::Store;
use crate::types::{Floors, RangeHeader, Version};

/// A slot is compacted when this part of its records is garbage...
const GARBAGE_PERCENT: u64 = 18;
/// ... or this part, when memory is short...
const TIGHT_GARBAGE_PERCENT: u64 = 3;
/// ... and no sooner than there is so much of it.
const GARBAGE_BYTES_MIN: u64 = 256;
/// A recovery is not told for less.
const UNTOLD_BYTES_MIN: u64 = 512;
/// A segment is worth a copy when this part of it is garbage...
const WORTH_DIVISOR: u64 = 8;
/// ... and joins the copy of its neighbour when this part of it is: what is copied too early was copied in vain.
const JOIN_DIVISOR: u64 = 4;
/// Segments of this part of what their chain holds join their neighbours' copies, so that there are not too many of them.
const SMALL_DIVISOR: u64 = 16;
/// A crowd is merged if it is at least so many segments.
const MERGED_MIN: usize = 2;
/// So many segments are looked at in one step without finding anything that may go.
const TRIED_MAX: usize = 8;
/// Writes above the watermark that are looked at for what they supersede. With more of them the compaction waits.
const UNSTABLE_RECORDS_MAX: usize = 16 << 10;

/// What may be discarded of a slot now, by counters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Values that were superseded up to here.
    pub(crate) values_to: u64,
    /// Tombstones up to here.
    pub(crate) tombstones_to: u64,
}

/// What one step did.
pub(crate) struct Compacted {
    pub(crate) moved_records: u64,
    pub(crate) moved_bytes: u64,
    pub(crate) freed_bytes: u64,
    /// The last tombstone that is gone.
    tombstone: Option<Version>,
    /// The last write that can never be taken back.
    undo_floor: Version,
    /// To be dropped without the slot's lock.
    _garbage: Vec<Link>,
}

/// What a step came to.
pub(crate) enum Step {
    /// Something was freed, and there may be more.
    Compacted(Compacted),
    /// What garbage there is has to stay for now.
    Blocked,
    /// There is not enough garbage.
    Clean,
}

/// What a run of links leaves.
#[derive(Default)]
struct Rest {
    parts: Vec<(usize, Range<usize>)>,
    bytes: usize,
    first: u64,
    dead_bytes: u32,
    tombstone_bytes: u32,
    tombstone: Option<Version>,
    moves: Vec<Move>,
}

/// A live record that gets another place.
struct Move {
    hash: u64,
    from: RecordOffset,
    /// Its byte in the copy.
    to: usize,
    deadline_ms: Option<u64>,
}

impl Rest {
    fn keep(&mut self, link: usize, part: Range<usize>, counter: u64) {
        if self.bytes == 0 {
            self.first = counter;
        }
        self.bytes += part.len();
        match self.parts.last_mut() {
            Some((last, before)) if *last == link && before.end == part.start => before.end = part.end,
            _ => self.parts.push((link, part)),
        }
    }
}

/// The keys that writes above the watermark are about.
struct Unstable {
    /// Sorted.
    hashes: Vec<u64>,
    /// One of them is about more than its key.
    any: bool,
}

impl Unstable {
    fn may_supersede(&self, hash: u64) -> bool {
        self.any || self.hashes.binary_search(&hash).is_ok()
    }
}

impl Store {
    /// Bytes of records that hold no live value.
    pub(crate) fn garbage_bytes(&self) -> u64 {
        self.chain().dead_bytes() + self.chain().tombstone_bytes()
    }

    /// Whether anybody else holds a segment with garbage: it may go once it is let go of.
    fn has_pinned_garbage(&self) -> bool {
        let links = self.chain().links().iter().enumerate();
        links
            .filter(|(_, link)| link.dead_bytes + link.tombstone_bytes > 0)
            .any(|(at, _)| !self.chain().is_unpinned(at))
    }

    fn is_tight(&self) -> bool {
        self.chain().arena().budget().is_tight()
    }

    /// Whether there is enough garbage, `barren_bytes` of which are known to stay.
    fn has_garbage(&self, barren_bytes: u64) -> bool {
        let garbage = self.garbage_bytes();
        let percent = if self.is_tight() { TIGHT_GARBAGE_PERCENT } else { GARBAGE_PERCENT };
        garbage >= barren_bytes + GARBAGE_BYTES_MIN.max(barren_bytes / 8)
            && garbage * 100 >= self.chain().record_bytes() * percent
    }

    /// One step. `last` is the slot's last version.
    fn compact(
        &mut self,
        limits: Limits,
        last: Version,
        barren: Barren,
    ) -> Result<Option<Compacted>, OutOfMemory> {
        let Some((boundary, undo_floor)) = self.last_up_to(limits.values_to, last) else { return Ok(None) };
        let Some(unstable) = self.unstable(limits.values_to, last) else { return Ok(None) };
        let rest_of = |run: Range<usize>| self.rest_of(run, limits, undo_floor.counter, &unstable);
        let of_garbage =
            self.has_garbage(barren.bytes).then(|| self.garbage_run(boundary, rest_of)).flatten();
        let of_crowd = || {
            let run = self.chain().is_crowded(barren.links).then(|| self.crowded_run(boundary)).flatten()?;
            Some((run.clone(), rest_of(run)))
        };
        let Some((run, rest)) = of_garbage.or_else(of_crowd) else { return Ok(None) };
        let before = self.bytes_of(run.clone());
        if run.end == self.chain().links().len() {
            self.chain_mut().seal();
        }
        let sums = (rest.dead_bytes, rest.tombstone_bytes);
        let (copy, garbage) = self.chain_mut().replace(run, rest.first, &rest.parts, sums)?;
        for Move { hash, from, to, deadline_ms } in &rest.moves {
            let copy = copy.as_ref().expect("what is live is copied");
            self.relocate(*hash, *from, copy.first_place().after(*to), *deadline_ms);
        }
        Ok(Some(Compacted {
            moved_records: rest.moves.len() as u64,
            moved_bytes: rest.bytes as u64,
            freed_bytes: (before - rest.bytes) as u64,
            tombstone: rest.tombstone,
            undo_floor,
            _garbage: garbage,
        }))
    }

    /// Bytes of the records in these links.
    fn bytes_of(&self, run: Range<usize>) -> usize {
        self.chain().links()[run].iter().map(|link| link.bytes as usize).sum()
    }

    /// Links from which something may go, and what stays of them.
    fn garbage_run(
        &self,
        boundary: usize,
        rest_of: impl Fn(Range<usize>) -> Rest,
    ) -> Option<(Range<usize>, Rest)> {
        let mut tried = Vec::new();
        while tried.len() <= TRIED_MAX {
            let run = self.choose(boundary, &tried)?;
            let rest = rest_of(run.clone());
            if rest.bytes < self.bytes_of(run.clone()) {
                return Some((run, rest));
            }
            tried.extend(run);
        }
        None
    }

    /// The latest links, without the one that is written, as far back as none is much longer than all behind it together:
    /// so each record is merged only a few times while its slot grows. `None`: these are too few.
    fn crowded_run(&self, boundary: usize) -> Option<Range<usize>> {
        let links = self.chain().links();
        let end = (boundary + 1).min(links.len() - 1);
        let range = links[..end].last()?.segment.range();
        let (mut start, mut total) = (end, 0);
        for (at, link) in links[..end].iter().enumerate().rev() {
            let bytes = u64::from(link.bytes);
            let is_long = total > 0 && bytes > 2 * total;
            if is_long || total + bytes > self.chain().merged_bytes_max() || link.segment.range() != range {
                break;
            }
            if !self.chain().is_unpinned(at) {
                break;
            }
            (start, total) = (at, total + bytes);
        }
        (end - start >= MERGED_MIN).then_some(start..end)
    }

    /// The last record up to a counter: its link, and its version.
    fn last_up_to(&self, counter: u64, last: Version) -> Option<(usize, Version)> {
        let links = self.chain().links();
        let link = links.partition_point(|link| link.first <= counter).checked_sub(1)?;
        if counter >= last.counter {
            return Some((link, last));
        }
        let segment = &links[link].segment;
        let up_to = segment.records().take_while(|(_, record)| segment.version_of(record).counter <= counter);
        let (_, record) = up_to.last()?;
        Some((link, segment.version_of(&record)))
    }

    /// The links that are worth it most, up to that one, without those from which nothing may go.
    fn choose(&self, boundary: usize, tried: &[usize]) -> Option<Range<usize>> {
        let (links, is_tight) = (self.chain().links(), self.is_tight());
        let mut best: Option<(u64, u64, usize)> = None;
        let mut first = None;
        let mut is_clean = true;
        for (at, link) in links[..=boundary].iter().enumerate() {
            let bytes = u64::from(link.bytes);
            let garbage =
                u64::from(link.dead_bytes) + if is_clean { u64::from(link.tombstone_bytes) } else { 0 };
            is_clean &= link.dead_bytes == 0;
            // What is still being written is left alone until much of it is garbage, or while it is a small part.
            let is_ripe = is_tight
                || at + 1 < links.len()
                || garbage * 2 >= bytes
                || bytes * 4 >= self.chain().record_bytes();
            let is_first = first.is_none();
            let is_best = best.is_none_or(|(most, of, _)| garbage * of > most * bytes);
            if garbage == 0 || !is_ripe || !(is_first || is_best) || tried.contains(&at) {
                continue;
            }
            // Last, as it takes a look into the segment.
            if !self.chain().is_unpinned(at) {
                continue;
            }
            first = first.or(Some(at));
            if is_best {
                best = Some((garbage, bytes, at));
            }
        }
        let (garbage, bytes, at) = best?;
        // Where garbage is spread thinly, the oldest goes first: behind it tombstones can go, too.
        let at = if garbage * WORTH_DIVISOR >= bytes { at } else { first? };
        Some(self.extend(at, boundary))
    }

    /// Neighbours that are worth it, or small, as far as one segment can take all of it.
    fn extend(&self, at: usize, boundary: usize) -> Range<usize> {
        let links = self.chain().links();
        let rest = |at: usize| {
            let link = &links[at];
            u64::from(link.bytes) - u64::from(link.dead_bytes)
        };
        let small = (self.chain().segment_bytes() / SMALL_DIVISOR).min(SEGMENT_BYTES_MAX / 2);
        let range = links[at].segment.range();
        let mut total = rest(at);
        let mut joins = |next: usize| {
            let link = &links[next];
            let bytes = u64::from(link.bytes);
            let fits = total + rest(next) <= SEGMENT_BYTES_MAX
                && (u64::from(link.dead_bytes) * JOIN_DIVISOR >= bytes || bytes <= small)
                && link.segment.range() == range
                && self.chain().is_unpinned(next);
            if fits {
                total += rest(next);
            }
            fits
        };
        let (mut start, mut end) = (at, at + 1);
        while start > 0 && joins(start - 1) {
            start -= 1;
        }
        while end <= boundary && end + 1 < links.len() && joins(end) {
            end += 1;
        }
        start..end
    }

    /// The keys of all records above a counter. `None`: there are too many.
    fn unstable(&self, counter: u64, last: Version) -> Option<Unstable> {
        let mut unstable = Unstable { hashes: Vec::new(), any: false };
        if counter >= last.counter {
            return Some(unstable);
        }
        let (first, mut from) = self.chain().find_after(counter);
        for link in &self.chain().links()[first..] {
            for (_, record) in link.segment.records().filter(|(at, _)| *at >= from) {
                unstable.any |= !matches!(record.kind, Kind::Put | Kind::Delete);
                unstable.hashes.push(self.hash(&record));
                if unstable.hashes.len() > UNSTABLE_RECORDS_MAX {
                    return None;
                }
            }
            from = 0;
        }
        unstable.hashes.sort_unstable();
        Some(unstable)
    }

    /// Of the keys that have writes above the watermark, the last write in this run that is not above it: what would be live
    /// if those were taken back, as far as the run tells.
    fn last_stable(&self, run: Range<usize>, to: u64, unstable: &Unstable) -> BTreeMap<(u8, &[u8]), u64> {
        let mut last = BTreeMap::new();
        if unstable.hashes.is_empty() {
            return last;
        }
        for link in &self.chain().links()[run] {
            for (_, record) in link.segment.records() {
                let counter = link.segment.version_of(&record).counter;
                if counter <= to && unstable.may_supersede(self.hash(&record)) {
                    last.insert((record.keyspace, record.key), counter);
                }
            }
        }
        last
    }

    fn rest_of(&self, run: Range<usize>, limits: Limits, undo_floor: u64, unstable: &Unstable) -> Rest {
        let links = self.chain().links();
        let mut rest = Rest::default();
        let last_stable = self.last_stable(run.clone(), limits.values_to, unstable);
        let mut is_clean = links[..run.start].iter().all(|link| link.dead_bytes == 0);
        for at in run {
            let segment = &links[at].segment;
            for (byte, record) in segment.records() {
                let (version, bytes) = (segment.version_of(&record), record.encoded_bytes());
                let counter = version.counter;
                let stays = if record.kind == Kind::Put {
                    let (hash, from) = (self.hash(&record), segment.first_place().after(byte));
                    let is_live = self.is_live(hash, from);
                    let stays = is_live
                        || counter >= undo_floor
                        || counter > limits.values_to
                        || unstable.any
                        || last_stable.get(&(record.keyspace, record.key)) == Some(&counter);
                    if is_live {
                        let deadline_ms = record.deadline_ms;
                        rest.moves.push(Move { hash, from, to: rest.bytes, deadline_ms });
                    } else if stays {
                        rest.dead_bytes += bytes as u32;
                        is_clean = false;
                    }
                    stays
                } else {
                    let stays = counter >= undo_floor || counter > limits.tombstones_to || !is_clean;
                    if stays {
                        rest.tombstone_bytes += bytes as u32;
                    } else {
                        rest.tombstone = Some(version);
                    }
                    stays
                };
                if stays {
                    rest.keep(at, byte..byte + bytes, counter);
                }
            }
        }
        rest
    }
}

impl SlotState {
    /// Whether a compaction is worth a try.
    pub(crate) fn wants_compaction(&self) -> bool {
        let barren = self.barren();
        self.store.has_garbage(barren.bytes) || self.store.chain().is_crowded(barren.links)
    }

    /// What is known to be there to stay.
    fn barren(&self) -> Barren {
        let CompactionState { barren, barren_when_tight, .. } = self.compaction;
        let is_sure = barren_when_tight || !self.store.is_tight();
        Barren { bytes: if is_sure { barren.bytes } else { 0 }, ..barren }
    }

    /// One step, given up to where writes are never taken back.
    pub(crate) fn compact(&mut self, stable: u64, log: Option<&Log>) -> Result<Step, OutOfMemory> {
        if !self.wants_compaction() {
            return Ok(Step::Clean);
        }
        let last = self.version();
        let stable =
            if mutation!("compacted-above-the-watermark") { last.counter } else { stable.min(last.counter) };
        let limits = self.limits(stable);
        let barren = self.barren();
        let mut compacted = self.store.compact(limits, last, barren)?;
        if compacted.is_none() && limits.tombstones_to >= last.counter && !self.store.has_pinned_garbage() {
            // A pin may have ended between the two looks. Nobody can have taken one, so now it is sure.
            compacted = self.store.compact(limits, last, barren)?;
            if compacted.is_none() {
                // Nothing holds it back: it is there to stay.
                self.compaction.barren =
                    Barren { bytes: self.store.garbage_bytes(), links: self.store.chain().links().len() };
                self.compaction.barren_when_tight = self.store.is_tight();
                return Ok(Step::Clean);
            }
        }
        let Some(compacted) = compacted else { return Ok(Step::Blocked) };
        self.compaction.barren = Barren::default();
        let (undo_floor, tombstone) = (compacted.undo_floor, compacted.tombstone.unwrap_or_default());
        debug_assert!(undo_floor <= last && tombstone <= undo_floor);
        let floor = if mutation!("floor-not-raised") { Version::ZERO } else { tombstone };
        self.raise_floors(Floors { floor, undo_floor });
        if let Some(log) = log {
            self.log_stable(compacted.undo_floor, compacted.freed_bytes, log);
        }
        Ok(Step::Compacted(compacted))
    }

    /// As many steps as there are to do, in a slot of which nobody has anything: while the log is replayed.
    pub(crate) fn compact_replayed(&mut self) -> Result<(), OutOfMemory> {
        let stable = self.compaction.replayed_stable;
        while stable > 0 && matches!(self.compact(stable, None)?, Step::Compacted(_)) {}
        Ok(())
    }

    /// Tells a later recovery how far it may compact. Seldom, measured by what the slot holds: so much more a recovery needs.
    /// Nothing else is lost if the log takes nothing now.
    fn log_stable(&mut self, to: Version, freed_bytes: u64, log: &Log) {
        self.compaction.untold_bytes += freed_bytes;
        if self.compaction.untold_bytes < UNTOLD_BYTES_MIN.max(self.store.chain().record_bytes() / 4) {
            return;
        }
        let range = RangeHeader { term: to.term, base: to.counter };
        let generation = self.generation();
        let logged = log
            .reserve_control(0)
            .map(|reservation| self.log_note(FRAME_STABLE, generation, range, log, reservation));
        if matches!(logged, Ok(Ok(_))) {
            self.compaction.untold_bytes = 0;
        }
    }
}

/// What was there to stay when a slot was last looked at.
#[derive(Clone, Copy, Default)]
struct Barren {
    /// Garbage.
    bytes: u64,
    /// Segments.
    links: usize,
}

/// What a slot knows of its compaction.
#[derive(Default)]
pub(crate) struct CompactionState {
    barren: Barren,
    /// It was looked at with the eyes of who is short of memory.
    barren_when_tight: bool,
    /// What was freed since a later recovery was told how far it may go.
    untold_bytes: u64,
    /// What this recovery was told.
    pub(crate) replayed_stable: u64,
    /// The compactor knows that there is something to do.
    pub(crate) is_marked: bool,
}

impl CompactionState {
    /// The slot holds nothing now.
    pub(crate) fn begin_anew(&mut self) {
        *self = CompactionState { is_marked: self.is_marked, ..CompactionState::default() };
    }
}
