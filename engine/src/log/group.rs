//! Logs that fail together: once one of them has failed, none takes anything any more (R19).
//!
//! Invariants:
//! - The first failure of any member is kept; it is what every member answers from then on.
//! - The other members write and sync what they had taken, and end. So what is acknowledged after the failure is on the
//!   disk, as always.
//!
//! What this module does not know: what the logs have in common. One engine's logs are one group.

use lockgate_runtime::mutation;
use lockgate_runtime::sync::{Arc, Mutex, Weak};

use super::error::LogFailed;
use super::shared::Shared;

/// A group of logs. Cheap to clone: all clones are one group.
#[derive(Clone, Default)]
pub struct LogGroup {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    first: Option<LogFailed>,
    members: Vec<Weak<Shared>>,
}

impl std::fmt::Debug for LogGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state.lock();
        f.debug_struct("LogGroup")
            .field("members", &state.members.len())
            .field("failure", &state.first)
            .finish()
    }
}

impl LogGroup {
    /// A group without members.
    pub fn new() -> LogGroup {
        LogGroup::default()
    }

    /// What ended the group: the first failure of a member.
    pub fn failure(&self) -> Option<LogFailed> {
        self.state.lock().first.clone()
    }

    pub(super) fn join(&self, member: &Arc<Shared>) {
        let first = {
            let mut state = self.state.lock();
            state.members.retain(|member| member.strong_count() > 0);
            state.members.push(Arc::downgrade(member));
            state.first.clone()
        };
        if let Some(first) = first {
            member.end_with(first);
        }
    }

    /// A member has failed.
    pub(super) fn fail(&self, cause: &LogFailed) {
        if mutation!("latch-covers-one-log") {
            return;
        }
        let members: Vec<Arc<Shared>> = {
            let mut state = self.state.lock();
            if state.first.is_some() {
                return;
            }
            state.first = Some(cause.clone());
            state.members.iter().filter_map(Weak::upgrade).collect()
        };
        for member in members {
            member.end_with(cause.clone());
        }
    }
}
