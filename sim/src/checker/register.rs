//! The key as a register, and what an operation needs of it and does to it.
//!
//! A register is absent, or present with a value and a deadline. Every operation, with its reply, comes down to a *need*
//! (the states in which it can have had that reply) and a *change*. A present register whose deadline window is open may
//! turn absent by itself; that is a step of the search, not of this file, which knows no time.

use super::history::{Call, Condition, Expiry, Operation, Outcome, Reply};

/// When a value expires: at some moment from `opens_ns` to `closes_ns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Deadline {
    pub opens_ns: u64,
    pub closes_ns: u64,
}

impl Deadline {
    /// No deadline.
    pub const NEVER: Deadline = Deadline { opens_ns: u64::MAX, closes_ns: u64::MAX };
    /// May expire at any time, or never.
    pub const ANY_TIME: Deadline = Deadline { opens_ns: 0, closes_ns: u64::MAX };

    fn of(expiry: Option<Expiry>) -> Deadline {
        expiry.map_or(Deadline::NEVER, |expiry| Deadline {
            opens_ns: expiry.not_before_ns,
            closes_ns: expiry.not_after_ns,
        })
    }

    /// Whether whatever a value with the other deadline can go through, a value with this one can too.
    pub fn includes(self, other: Deadline) -> bool {
        self.opens_ns <= other.opens_ns && self.closes_ns >= other.closes_ns
    }
}

/// The state of the key. `value` is `None` if nothing that is still to come tells the value apart from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Register {
    Absent,
    Present { value: Option<u64>, deadline: Deadline },
}

/// The states in which an operation can have had its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    Anything,
    Absent,
    Present,
    /// Present with this value.
    Equal(u64),
    /// Absent, or present with another value.
    Unequal(u64),
    /// The reply does not fit the call.
    Never,
}

/// What an operation does to the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    Nothing,
    Remove,
    /// `None` as in `Register::Present`.
    Write(Option<u64>, Deadline),
    /// Keeps the value. Only after `Need::Present`.
    Retime(Deadline),
}

impl Register {
    pub fn meets(self, need: Need) -> bool {
        match (need, self) {
            (Need::Anything, _) => true,
            (Need::Absent, register) => register == Register::Absent,
            (Need::Present, register) => register != Register::Absent,
            (Need::Equal(wanted), register) => register.value() == Some(wanted),
            (Need::Unequal(unwanted), register) => register.value() != Some(unwanted),
            (Need::Never, _) => false,
        }
    }

    pub fn after(self, change: Change) -> Register {
        match (change, self) {
            (Change::Nothing, register) => register,
            (Change::Remove, _) | (Change::Retime(_), Register::Absent) => Register::Absent,
            (Change::Write(value, deadline), _) => Register::Present { value, deadline },
            (Change::Retime(deadline), Register::Present { value, .. }) => {
                Register::Present { value, deadline }
            }
        }
    }

    /// The value, if one is there that can still be told apart.
    pub fn value(self) -> Option<u64> {
        match self {
            Register::Absent => None,
            Register::Present { value, .. } => value,
        }
    }
}

impl Change {
    pub fn deadline(self) -> Option<Deadline> {
        match self {
            Change::Nothing | Change::Remove => None,
            Change::Write(_, deadline) | Change::Retime(deadline) => Some(deadline),
        }
    }

    pub fn written(self) -> Option<u64> {
        match self {
            Change::Write(value, _) => value,
            _ => None,
        }
    }
}

/// What the operation needs and does. `None` if it surely did nothing and nobody was told anything by it.
pub(super) fn meaning(operation: &Operation) -> Option<(Need, Change)> {
    match operation.outcome {
        Outcome::Refused { .. } => None,
        Outcome::Unknown => effect(operation.call),
        Outcome::Returned { reply, .. } => Some(answered(operation.call, reply)),
    }
}

/// What a call needs in order to change something, and the change. `None` if it never changes anything.
fn effect(call: Call) -> Option<(Need, Change)> {
    Some(match call {
        Call::Get => return None,
        Call::Delete => (Need::Present, Change::Remove),
        Call::Expire { expiry } => (Need::Present, Change::Retime(Deadline::of(Some(expiry)))),
        Call::Set { value, expiry, condition } => {
            let need = match condition {
                Condition::Always => Need::Anything,
                Condition::IfAbsent => Need::Absent,
                Condition::IfPresent => Need::Present,
                Condition::IfEqual(expected) => Need::Equal(expected),
            };
            (need, Change::Write(Some(value), Deadline::of(expiry)))
        }
    })
}

fn answered(call: Call, reply: Reply) -> (Need, Change) {
    match (call, reply) {
        (Call::Get, Reply::Value(Some(value))) => (Need::Equal(value), Change::Nothing),
        (Call::Get, Reply::Value(None)) => (Need::Absent, Change::Nothing),
        (Call::Set { .. }, Reply::Set(true))
        | (Call::Delete, Reply::Deleted(true))
        | (Call::Expire { .. }, Reply::Expiring(true)) => {
            effect(call).unwrap_or((Need::Never, Change::Nothing))
        }
        (Call::Set { condition, .. }, Reply::Set(false)) => {
            let need = match condition {
                Condition::Always => Need::Never,
                Condition::IfAbsent => Need::Present,
                Condition::IfPresent => Need::Absent,
                Condition::IfEqual(expected) => Need::Unequal(expected),
            };
            (need, Change::Nothing)
        }
        (Call::Delete, Reply::Deleted(false)) | (Call::Expire { .. }, Reply::Expiring(false)) => {
            (Need::Absent, Change::Nothing)
        }
        _ => (Need::Never, Change::Nothing),
    }
}
