//! Making a failing run shorter: parts of its plan are left out as long as the same oracle is violated.

use std::process::ExitCode;

use super::{replay_line, verdict};
use crate::mutations::with;
use crate::plan::{Keep, Plan, Scenario};
use crate::run::run;

/// Runs at most so many plans.
const TRIES_MAX: usize = 400;

struct Shrinker {
    seed: u64,
    scenario: Scenario,
    mutation: Option<&'static str>,
    oracle: &'static str,
    best: Keep,
    tries: usize,
}

pub(super) fn shrink(seed: u64, scenario: Scenario, keep: &Keep, mutation: Option<&'static str>) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let plan = keep.apply(Plan::draw(seed, scenario));
    let report = with(mutation, || run(&plan));
    let Some(violation) = &report.violation else {
        println!("{}; there is nothing to shrink", verdict(&report));
        return ExitCode::SUCCESS;
    };
    println!("{}", verdict(&report));
    let (jobs, faults) = (Plan::draw(seed, scenario).jobs.len(), Plan::draw(seed, scenario).faults.len());
    let best = Keep {
        jobs: Some(keep.jobs.clone().unwrap_or_else(|| (0..jobs).collect())),
        faults: Some(keep.faults.clone().unwrap_or_else(|| (0..faults).collect())),
        clients: Some(plan.load.clients),
        keys: Some(plan.load.keys),
        ms: Some(plan.faults_ms),
    };
    let mut shrinker = Shrinker { seed, scenario, mutation, oracle: violation.oracle, best, tries: 0 };
    while shrinker.pass() {}
    let plan = shrinker.best.apply(Plan::draw(seed, scenario));
    println!("after {} runs:\n{plan}", shrinker.tries);
    println!("{}", verdict(&with(mutation, || run(&plan))));
    println!("again: {}", replay_line(&plan, &shrinker.best, mutation));
    ExitCode::from(1)
}

impl Shrinker {
    /// Tries every way to leave something out once; whether any did.
    fn pass(&mut self) -> bool {
        let mut shorter = false;
        shorter |= self.leave_out(|keep| keep.faults.as_mut().expect("all parts are named"));
        shorter |= self.leave_out(|keep| keep.jobs.as_mut().expect("all parts are named"));
        shorter |= self.less(|keep| keep.clients.as_mut().expect("all parts are named"), 1);
        shorter |= self.less(|keep| keep.keys.as_mut().expect("all parts are named"), 1);
        let ms = self.best.ms.expect("all parts are named");
        for less in [ms / 2, ms * 3 / 4, ms.saturating_sub(100)] {
            if less > 0 && less < ms && self.holds(&Keep { ms: Some(less), ..self.best.clone() }) {
                shorter = true;
                break;
            }
        }
        shorter
    }

    /// Leaves out numbers of a list, many at once first.
    fn leave_out(&mut self, list: impl Fn(&mut Keep) -> &mut Vec<usize>) -> bool {
        let mut shorter = false;
        let mut chunk = list(&mut self.best.clone()).len();
        while chunk > 0 {
            let mut at = 0;
            while at < list(&mut self.best.clone()).len() {
                let mut keep = self.best.clone();
                let all = list(&mut keep);
                let end = all.len().min(at + chunk);
                all.drain(at..end);
                if self.holds(&keep) {
                    shorter = true;
                } else {
                    at += chunk;
                }
            }
            chunk /= 2;
        }
        shorter
    }

    /// Makes a number smaller.
    fn less(&mut self, number: impl Fn(&mut Keep) -> &mut usize, least: usize) -> bool {
        let now = *number(&mut self.best.clone());
        for less in [least, now / 2, now.saturating_sub(1)] {
            if less < least || less >= now {
                continue;
            }
            let mut keep = self.best.clone();
            *number(&mut keep) = less;
            if self.holds(&keep) {
                return true;
            }
        }
        false
    }

    /// Whether the plan with these parts is violated the same way; then it is the best so far.
    fn holds(&mut self, keep: &Keep) -> bool {
        if self.tries >= TRIES_MAX {
            return false;
        }
        self.tries += 1;
        let plan = keep.apply(Plan::draw(self.seed, self.scenario));
        let report = with(self.mutation, || run(&plan));
        let same = report.violation.is_some_and(|violation| violation.oracle == self.oracle);
        if same {
            println!("run {}: still violated with {keep}", self.tries);
            self.best = keep.clone();
        }
        same
    }
}
