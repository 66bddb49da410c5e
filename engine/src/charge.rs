//! What something beside segments takes of the engine's memory, such as a slot's index.

use lockgate_runtime::sync::Arc;

use crate::arena::{MemoryBudget, OutOfMemory};

/// Bytes that are charged to the budget, and given back with this.
pub(crate) struct Charge {
    budget: Arc<MemoryBudget>,
    bytes: u64,
}

impl Charge {
    /// Nothing yet.
    pub(crate) fn new(budget: &Arc<MemoryBudget>) -> Charge {
        Charge { budget: budget.clone(), bytes: 0 }
    }

    /// What is charged.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// At least so much may be taken from now on. Changes nothing on failure.
    pub(crate) fn raise_to(&mut self, bytes: usize) -> Result<(), OutOfMemory> {
        let more = (bytes as u64).saturating_sub(self.bytes);
        if more > 0 {
            self.budget.charge(more)?;
            self.bytes += more;
        }
        Ok(())
    }

    /// So much was taken. More than was foreseen is charged beyond the bound.
    pub(crate) fn settle(&mut self, bytes: usize) {
        let more = (bytes as u64).saturating_sub(self.bytes);
        if more > 0 {
            self.budget.charge_beyond(more);
            self.bytes += more;
        }
    }

    /// So much is left.
    pub(crate) fn lower_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes as u64);
        if less > 0 {
            self.budget.credit(less);
            self.bytes -= less;
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.lower_to(0);
    }
}
