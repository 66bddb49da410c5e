//! A data directory's slots in memory, without a change of the directory: what a start would serve, served to nobody.
//!
//! Invariants: the directory stays locked as long as this lives, so that no process begins to use it; nothing in it is
//! written, no file made, removed or renamed. The slots are those of the recovery itself.

use std::path::Path;

use lockgate_runtime::sync::Arc;

use crate::arena::MemoryBudget;
use crate::engine::Engine;
use crate::error::OpenError;
use crate::index::KeyHasher;
use crate::meta::Directory;
use crate::segment::PinnedRange;
use crate::slot::SlotState;
use crate::slots::SlotTable;
use crate::types::RangeHeader;
use crate::watchers::{Gates, Watchers};

/// Slots that no engine has.
pub(crate) struct Loaded {
    pub(crate) directory: Directory,
    pub(crate) slots: SlotTable,
}

impl Loaded {
    /// Recovers a directory into slots of its own. To be awaited on a core.
    pub(crate) async fn recover(path: &Path, memory_bytes_max: u64) -> Result<Loaded, OpenError> {
        let directory = Directory::inspect(path).await?;
        let slots = empty_slots(path, memory_bytes_max)?;
        Engine::builder(path).recover(&lockgate_runtime::current(), &directory, &slots).await?;
        Ok(Loaded { directory, slots })
    }
}

/// Slots that hold nothing, beside any engine's.
pub(crate) fn empty_slots(path: &Path, memory_bytes_max: u64) -> Result<SlotTable, OpenError> {
    let budget = Arc::new(MemoryBudget::new(memory_bytes_max));
    let hasher = KeyHasher::new(lockgate_runtime::random_u64());
    let watchers = Watchers::new(&Arc::new(Gates::new()), 0);
    Engine::builder(path).empty_slots(&budget, &hasher, &[watchers])
}

/// All records of a slot, in the order of versions, in pieces of one range header each.
pub(crate) fn records_of(held: &SlotState) -> Vec<(RangeHeader, PinnedRange)> {
    let links = held.store.chain().links().iter();
    let pinned = links.map(|link| {
        let segment = &link.segment;
        (segment.range(), PinnedRange::new(segment.clone(), 0..segment.published()))
    });
    pinned.filter(|(_, records)| !records.is_empty()).collect()
}
