//! The checker on histories that are known to be good or bad, on small ones against a checker by brute force, and on long
//! ones of a simulated register.
//!
//! In small histories one nanosecond is the unit of time.

mod agreement;
mod brute;
mod known;
mod known_bad;
mod large;
mod minimised;
mod reports;
mod simulated;

use super::search::{Found, search};
use super::timetable::Timetable;
use super::{Call, Condition, Expiry, Operation, Outcome, Reply};

/// The search's verdict without the direct checks before it.
pub(super) fn is_linearizable_by_search(history: &[Operation]) -> bool {
    match search(&Timetable::new(history, None), 1_000_000) {
        Found::Order => true,
        Found::NoOrder(_) => false,
        Found::GaveUp { configurations } => panic!("undecided after {configurations} configurations"),
    }
}

/// Who did something, when, and whether the client was told.
#[derive(Clone, Copy)]
struct Who {
    client: u32,
    invoked_ns: u64,
    end: End,
}

#[derive(Clone, Copy)]
enum End {
    Returned(u64),
    Refused(u64),
    Unknown,
}

fn by(client: u32, invoked_ns: u64, ended_ns: u64) -> Who {
    Who { client, invoked_ns, end: End::Returned(ended_ns) }
}

fn refused(client: u32, invoked_ns: u64, ended_ns: u64) -> Who {
    Who { client, invoked_ns, end: End::Refused(ended_ns) }
}

fn unknown(client: u32, invoked_ns: u64) -> Who {
    Who { client, invoked_ns, end: End::Unknown }
}

fn window(not_before_ns: u64, not_after_ns: u64) -> Expiry {
    Expiry { not_before_ns, not_after_ns }
}

impl Who {
    fn did(self, call: Call, reply: Reply) -> Operation {
        let outcome = match self.end {
            End::Returned(at_ns) => Outcome::Returned { at_ns, reply },
            End::Refused(at_ns) => Outcome::Refused { at_ns },
            End::Unknown => Outcome::Unknown,
        };
        Operation { client: self.client, call, invoked_ns: self.invoked_ns, outcome }
    }

    fn get(self, value: u64) -> Operation {
        self.did(Call::Get, Reply::Value(Some(value)))
    }

    fn get_nothing(self) -> Operation {
        self.did(Call::Get, Reply::Value(None))
    }

    fn set(self, value: u64) -> Operation {
        self.set_when(Condition::Always, value, true)
    }

    fn set_when(self, condition: Condition, value: u64, wrote: bool) -> Operation {
        self.did(Call::Set { value, expiry: None, condition }, Reply::Set(wrote))
    }

    fn set_until(self, value: u64, expiry: Expiry) -> Operation {
        let expiry = Some(expiry);
        self.did(Call::Set { value, expiry, condition: Condition::Always }, Reply::Set(true))
    }

    fn swap(self, expected: u64, value: u64, wrote: bool) -> Operation {
        self.set_when(Condition::IfEqual(expected), value, wrote)
    }

    fn delete(self, deleted: bool) -> Operation {
        self.did(Call::Delete, Reply::Deleted(deleted))
    }

    fn expire(self, expiry: Expiry, expiring: bool) -> Operation {
        self.did(Call::Expire { expiry }, Reply::Expiring(expiring))
    }
}
