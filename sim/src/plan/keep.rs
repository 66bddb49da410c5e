//! Which parts of a plan a replay keeps: what shrinking found to be enough.
//!
//! The text form is one word, so that a replay is one line: `jobs=0,3;faults=1;clients=2;keys=4;ms=1800`. What is not
//! named is kept whole.

use std::fmt;
use std::str::FromStr;

use super::Plan;

/// The parts that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// These jobs, by their numbers in the whole plan.
    pub jobs: Option<Vec<usize>>,
    /// These faults, by their numbers in the whole plan.
    pub faults: Option<Vec<usize>>,
    /// So many clients.
    pub clients: Option<usize>,
    /// So many keys.
    pub keys: Option<usize>,
    /// So long a first phase.
    pub ms: Option<u64>,
}

impl Keep {
    /// The plan with these parts only.
    pub fn apply(&self, mut plan: Plan) -> Plan {
        fn some<T: Copy>(all: &mut Vec<T>, kept: &Option<Vec<usize>>) {
            if let Some(kept) = kept {
                *all = kept.iter().filter_map(|&number| all.get(number).copied()).collect();
            }
        }
        some(&mut plan.jobs, &self.jobs);
        some(&mut plan.faults, &self.faults);
        plan.load.clients = self.clients.unwrap_or(plan.load.clients);
        plan.load.keys = self.keys.unwrap_or(plan.load.keys);
        plan.faults_ms = self.ms.unwrap_or(plan.faults_ms);
        plan
    }

    /// Whether everything is kept.
    pub fn is_all(&self) -> bool {
        *self == Keep::default()
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let parts = [
            self.jobs.as_deref().map(|jobs| format!("jobs={}", list(jobs))),
            self.faults.as_deref().map(|faults| format!("faults={}", list(faults))),
            self.clients.map(|clients| format!("clients={clients}")),
            self.keys.map(|keys| format!("keys={keys}")),
            self.ms.map(|ms| format!("ms={ms}")),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(";"))
    }
}

/// A text is not of the form `jobs=0,3;faults=1;clients=2;keys=4;ms=1800`.
#[derive(Debug, PartialEq, Eq)]
pub struct KeepError(String);

impl std::error::Error for KeepError {}

impl fmt::Display for KeepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not of the form jobs=0,3;faults=1;clients=2;keys=4;ms=1800", self.0)
    }
}

impl FromStr for Keep {
    type Err = KeepError;

    fn from_str(text: &str) -> Result<Keep, KeepError> {
        let wrong = || KeepError(text.to_owned());
        let number = |value: &str| value.parse::<u64>().map_err(|_| wrong());
        let list = |value: &str| {
            let numbers = value.split(',').filter(|number| !number.is_empty());
            numbers.map(|one| number(one).map(|one| one as usize)).collect::<Result<Vec<_>, _>>()
        };
        let mut keep = Keep::default();
        for part in text.split(';').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(wrong)?;
            match name {
                "jobs" => keep.jobs = Some(list(value)?),
                "faults" => keep.faults = Some(list(value)?),
                "clients" => keep.clients = Some(number(value)? as usize),
                "keys" => keep.keys = Some(number(value)? as usize),
                "ms" => keep.ms = Some(number(value)?),
                _ => return Err(wrong()),
            }
        }
        Ok(keep)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Scenario;
    use super::*;

    #[test]
    fn the_text_form_round_trips() {
        for text in ["", "jobs=", "jobs=0,3;faults=1;clients=2;keys=4;ms=1800", "faults=2,5"] {
            let keep: Keep = text.parse().expect("well formed");
            assert_eq!(keep.to_string(), text);
        }
        for text in ["jobs", "jobs=x", "seeds=1", "ms=-1"] {
            assert_eq!(text.parse::<Keep>(), Err(KeepError(text.to_owned())));
        }
    }

    #[test]
    fn what_is_not_named_is_kept_whole() {
        let plan = Plan::draw(7, Scenario::ManyJobs);
        let same = Keep::default().apply(plan.clone());
        assert_eq!(format!("{plan:?}"), format!("{same:?}"));
        let keep: Keep = "jobs=2,0".parse().expect("well formed");
        assert_eq!(keep.apply(plan.clone()).jobs, [plan.jobs[2], plan.jobs[0]]);
        assert_eq!(keep.apply(plan.clone()).faults, plan.faults);
    }
}
