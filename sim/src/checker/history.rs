//! What clients saw of one key: the operations, when they were outstanding, and how they ended.
//!
//! Times are ideal time, that of the simulation and of no node's clock, in nanoseconds. They are below `u64::MAX`, which
//! stands for "never". What a client saw says nothing about when an operation took effect; that is for the checker.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One operation of one client on the key.
///
/// Operations of one client are listed in the order in which the client issued them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Who issued it.
    pub client: u32,
    /// What was asked.
    pub call: Call,
    /// When it was asked, in nanoseconds.
    pub invoked_ns: u64,
    /// How it ended, as far as the client knows.
    pub outcome: Outcome,
}

/// What an operation asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Reads the value: `GET`.
    Get,
    /// Writes a value, and the deadline with it: `SET` with or without `NX`, `XX`, `IFEQ`, `PXAT`.
    Set {
        /// What to write. A checker can say most if no two operations write the same value.
        value: u64,
        /// When the value is to expire. `None` takes away a deadline that was there.
        expiry: Option<Expiry>,
        /// When to write at all.
        condition: Condition,
    },
    /// Removes the key: `DEL`.
    Delete,
    /// Gives the value that is there another deadline: `PEXPIREAT`.
    Expire {
        /// The deadline.
        expiry: Expiry,
    },
}

/// When a `Call::Set` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// Always.
    Always,
    /// Only if the key is absent: `NX`.
    IfAbsent,
    /// Only if the key is present: `XX`.
    IfPresent,
    /// Only if the key has this value, compare-and-set: `IFEQ`.
    IfEqual(u64),
}

/// A deadline on a clock that is not exact: in ideal time, when may the owner's clock reach it?
///
/// The value may turn absent by itself at any moment from `not_before_ns` to `not_after_ns`, and is absent afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiry {
    /// The first moment at which the value may be gone, in nanoseconds.
    pub not_before_ns: u64,
    /// The last moment at which the value may still be seen, in nanoseconds; `u64::MAX` if there is none.
    pub not_after_ns: u64,
}

/// How an operation ended, as far as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It took effect once, between its invocation and its reply.
    Returned {
        /// When the reply arrived, in nanoseconds.
        at_ns: u64,
        /// The reply.
        reply: Reply,
    },
    /// It never takes effect.
    Refused {
        /// When the refusal arrived, in nanoseconds.
        at_ns: u64,
    },
    /// It takes effect once, at any time from its invocation on, or never.
    Unknown,
}

/// What a returned operation was told. Each call has one kind of reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To `Call::Get`: the value, or nothing.
    Value(Option<u64>),
    /// To `Call::Set`: whether it wrote. Without a condition it always does.
    Set(bool),
    /// To `Call::Delete`: whether there was something to remove.
    Deleted(bool),
    /// To `Call::Expire`: whether there was a value to give the deadline to.
    Expiring(bool),
}

impl Operation {
    /// When the client was told something, in nanoseconds; `None` if the outcome is unknown.
    pub fn ended_ns(&self) -> Option<u64> {
        match self.outcome {
            Outcome::Returned { at_ns, .. } | Outcome::Refused { at_ns } => Some(at_ns),
            Outcome::Unknown => None,
        }
    }

    /// The deadline that the operation asks for.
    pub fn expiry(&self) -> Option<Expiry> {
        match self.call {
            Call::Set { expiry, .. } => expiry,
            Call::Expire { expiry } => Some(expiry),
            Call::Get | Call::Delete => None,
        }
    }

    /// Stops at a history that no client can have recorded, since its verdict would mean nothing.
    pub(super) fn assert_recordable(&self) {
        let ended_ns = self.ended_ns().unwrap_or(self.invoked_ns);
        assert!(self.invoked_ns <= ended_ns, "an operation ended before it was invoked: {self}");
        assert!(ended_ns < u64::MAX, "u64::MAX means never, and is no time: {self}");
        if let Some(expiry) = self.expiry() {
            assert!(expiry.not_before_ns <= expiry.not_after_ns, "a deadline ends before it begins: {self}");
        }
    }
}

/// A time in milliseconds, with the microseconds behind the point.
pub(super) struct Millis(pub u64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1_000_000, self.0 / 1_000 % 1_000)
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.not_after_ns {
            u64::MAX => write!(f, "{} ms or later", Millis(self.not_before_ns)),
            not_after_ns => write!(f, "{}..{} ms", Millis(self.not_before_ns), Millis(not_after_ns)),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Call::Get => write!(f, "GET"),
            Call::Delete => write!(f, "DEL"),
            Call::Expire { expiry } => write!(f, "PEXPIREAT {expiry}"),
            Call::Set { value, expiry, condition } => {
                write!(f, "SET {value}")?;
                match condition {
                    Condition::Always => {}
                    Condition::IfAbsent => write!(f, " NX")?,
                    Condition::IfPresent => write!(f, " XX")?,
                    Condition::IfEqual(expected) => write!(f, " IFEQ {expected}")?,
                }
                expiry.map_or(Ok(()), |expiry| write!(f, " PXAT {expiry}"))
            }
        }
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Value(Some(value)) => write!(f, "{value}"),
            Reply::Value(None) => write!(f, "nothing"),
            Reply::Set(true) => write!(f, "set"),
            Reply::Set(false) => write!(f, "not set"),
            Reply::Deleted(true) => write!(f, "deleted"),
            Reply::Deleted(false) => write!(f, "nothing to delete"),
            Reply::Expiring(true) => write!(f, "will expire"),
            Reply::Expiring(false) => write!(f, "nothing to expire"),
        }
    }
}

/// `12.000..14.500 ms  client 3  SET 7 -> set`
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (client, call, invoked) = (self.client, self.call, Millis(self.invoked_ns));
        match self.outcome {
            Outcome::Returned { at_ns, reply } => {
                write!(f, "{invoked}..{} ms  client {client}  {call} -> {reply}", Millis(at_ns))
            }
            Outcome::Refused { at_ns } => {
                write!(f, "{invoked}..{} ms  client {client}  {call} -> refused", Millis(at_ns))
            }
            Outcome::Unknown => write!(f, "{invoked}.. ms  client {client}  {call} -> unknown"),
        }
    }
}
