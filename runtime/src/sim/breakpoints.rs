//! What is to be done right after a certain poll of a machine: the places at which a test can try a fault one by one.
//!
//! Invariant: nothing here draws or waits, so that a history with breakpoints is the one without them up to the first.

use std::collections::BTreeMap;

/// What is done.
type Act = Box<dyn FnOnce()>;

/// Polls of machines, counted, and what is to be done after which.
#[derive(Default)]
pub(super) struct Breakpoints {
    /// By machine.
    polls: Vec<u64>,
    /// By machine and number of the poll.
    acts: BTreeMap<(usize, u64), Vec<Act>>,
}

impl Breakpoints {
    /// How often a machine was polled.
    pub fn polls(&self, node: usize) -> u64 {
        self.polls.get(node).copied().unwrap_or(0)
    }

    pub fn add(&mut self, node: usize, number: u64, act: Act) {
        self.acts.entry((node, number)).or_default().push(act);
    }

    /// A machine was polled. Returns whether something is to be done after this poll.
    pub fn polled(&mut self, node: usize) -> bool {
        if self.polls.len() <= node {
            self.polls.resize(node + 1, 0);
        }
        self.polls[node] += 1;
        self.acts.contains_key(&(node, self.polls[node]))
    }

    /// Takes what is to be done after the machine's last poll.
    pub fn take_due(&mut self, node: usize) -> Vec<Act> {
        self.acts.remove(&(node, self.polls(node))).unwrap_or_default()
    }
}
