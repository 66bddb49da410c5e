//! What a search has still to try, and in which order.
//!
//! At first the newest comes first: for a history that has an order, that nearly walks along one. A history that has none
//! must be searched to the end, and then the order of time is better: at every stage, what used the fewest may steps is
//! there before what it covers. So an agenda that took long is *broadened*, once.

use std::collections::BTreeMap;

use super::seen::Configuration;

/// A configuration at a stage, with what is to be tried from it.
#[derive(Debug)]
pub(super) struct Node {
    pub stage: usize,
    pub configuration: Configuration,
    pub next: Next,
}

/// What is to be tried from a configuration.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    /// To pass the stage, and must steps.
    Direct,
    /// Silent steps.
    Silent,
    /// After a silent step: more of them, and must steps that they may have helped.
    Link,
}

/// The nodes that are still to be tried.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    /// By stage and may steps used, both 0 before the agenda is broad; then by age.
    nodes: BTreeMap<(usize, usize, usize), Node>,
    pushed: usize,
    broad: bool,
}

impl Agenda {
    pub fn push(&mut self, node: Node) {
        let key = if self.broad { key(&node, self.pushed) } else { (0, 0, self.pushed) };
        self.pushed += 1;
        self.nodes.insert(key, node);
    }

    pub fn pop(&mut self) -> Option<Node> {
        let (_, node) = if self.broad { self.nodes.pop_first()? } else { self.nodes.pop_last()? };
        Some(node)
    }

    pub fn is_broad(&self) -> bool {
        self.broad
    }

    /// From now on, in the order of time.
    pub fn broaden(&mut self) {
        self.broad = true;
        let nodes = std::mem::take(&mut self.nodes);
        self.nodes = nodes.into_iter().map(|((.., age), node)| (key(&node, age), node)).collect();
    }
}

fn key(node: &Node, age: usize) -> (usize, usize, usize) {
    (node.stage, node.configuration.used.len(), age)
}
