//! The configurations that a search came across at one stage, without those that another one makes needless.
//!
//! A configuration *covers* another if whatever the other can go through, it can too, in as many steps: the register has
//! the same value, with a deadline that allows no less; of the pending steps the same are done, except that a free one may
//! stand for one that is done or not; and no more may steps are used.

use std::collections::{BTreeMap, BTreeSet};

use super::register::{Deadline, Register};

/// Configurations with the same value and steps done that are compared one by one; beyond, only equal ones are found.
/// It bounds the time of a comparison. Missing that one covers another costs time later, and is no error.
const COMPARED_MAX: usize = 64;

/// Where a search is within a stage.
#[derive(Clone, Debug)]
pub(super) struct Configuration {
    pub register: Register,
    /// The pending steps that are in the order, one bit each.
    pub done: u128,
    /// The pending steps that are not done and need not be: if nobody takes them they were covered, see `search`.
    pub free: u128,
    /// The classes of the may steps that are in the order, ascending, once for each member that is.
    pub used: Vec<u16>,
}

/// The register without its deadline: absent, or present with a value, which may be none that can be told apart.
pub(super) type Holding = Option<Option<u64>>;

/// What is compared between configurations with the same value, and the same steps done of those that are never free.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rest {
    deadline: Deadline,
    done: u128,
    free: u128,
    used: Vec<u16>,
}

#[derive(Debug, Default)]
struct Shelf {
    compared: Vec<Rest>,
    others: BTreeSet<Rest>,
}

/// The configurations seen at one stage.
#[derive(Debug)]
pub(super) struct Seen {
    blind: u128,
    shelves: BTreeMap<(Holding, u128), Shelf>,
}

impl Seen {
    /// Nothing yet, at a stage where `blind` are the pending steps that may be free.
    pub fn new(blind: u128) -> Seen {
        Seen { blind, shelves: BTreeMap::new() }
    }

    /// Adds a configuration; `false` if one that was added before covers it.
    pub fn add(&mut self, configuration: &Configuration) -> bool {
        let (key, rest) = self.split(configuration);
        let shelf = self.shelves.entry(key).or_default();
        if shelf.covers(&rest) {
            return false;
        }
        shelf.compared.retain(|other| !rest.covers(other));
        if shelf.compared.len() < COMPARED_MAX {
            shelf.compared.push(rest);
            return true;
        }
        shelf.others.insert(rest);
        true
    }

    /// Whether one that was added covers the configuration.
    pub fn cover(&self, configuration: &Configuration) -> bool {
        let (key, rest) = self.split(configuration);
        self.shelves.get(&key).is_some_and(|shelf| shelf.covers(&rest))
    }

    fn split(&self, configuration: &Configuration) -> ((Holding, u128), Rest) {
        let &Configuration { register, done, free, ref used } = configuration;
        let (holding, deadline) = match register {
            Register::Absent => (None, Deadline::NEVER),
            Register::Present { value, deadline } => (Some(value), deadline),
        };
        let rest = Rest { deadline, done: done & self.blind, free, used: used.clone() };
        ((holding, done & !self.blind), rest)
    }

    /// What the register held in them: absent, or present with a value, which may be none that can be told apart.
    pub fn held(&self) -> BTreeSet<Holding> {
        self.shelves.keys().map(|(holding, _)| *holding).collect()
    }
}

impl Shelf {
    fn covers(&self, rest: &Rest) -> bool {
        self.compared.iter().any(|other| other.covers(rest)) || self.others.contains(rest)
    }
}

impl Rest {
    fn covers(&self, other: &Rest) -> bool {
        let differ = (self.done ^ other.done) | (self.free ^ other.free);
        self.deadline.includes(other.deadline) && differ & !self.free == 0 && is_part(&self.used, &other.used)
    }
}

/// Whether the ascending `part` is contained in the ascending `whole`, as often as it repeats.
fn is_part(part: &[u16], whole: &[u16]) -> bool {
    let mut whole = whole.iter();
    part.iter().all(|wanted| whole.any(|found| found == wanted))
}
