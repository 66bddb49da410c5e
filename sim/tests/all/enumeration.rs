//! One job's commit against a failover, at some of the points that `lockgate-sim --enumerate` tries all of.

use std::collections::BTreeSet;

use lockgate_sim::enumerate::{Enumeration, Kind, Outcome, Point};

/// A prime, so that participants are met at different points of what they do in turns.
const STRIDE: u64 = 11;

#[test]
fn a_commit_and_a_failover_at_some_points() {
    let enumeration = Enumeration::new(1).expect("the run without faults holds");
    assert_eq!(enumeration.participants.len(), 4, "both primaries and both replicas");
    assert!(enumeration.participants.iter().any(|participant| participant.leads_control));
    let points = enumeration.points(STRIDE);
    let (mut won, mut lost) = (0, 0);
    for point in &points {
        let report = enumeration.run(point).expect("a point of this enumeration");
        let broken = report.violation.as_ref().map(|broken| format!("{}: {}", broken.oracle, broken.what));
        assert_eq!(broken, None, "{point}");
        match Outcome::of(&report) {
            Outcome::Committed | Outcome::CommitWon => won += 1,
            Outcome::FailoverFirst | Outcome::VoteVoid => lost += 1,
            Outcome::EndedOtherwise => {}
        }
    }
    assert!(won > 0 && lost > 0, "the commit came first in {won} runs, and a failover in {lost}");
}

#[test]
fn every_poll_of_every_participant_is_a_point() {
    let enumeration = Enumeration::new(1).expect("the run without faults holds");
    let points = enumeration.points(1);
    let polls: u64 = enumeration.participants.iter().map(|participant| participant.polls() + 1).sum();
    assert_eq!(points.len() as u64, polls * Kind::ALL.len() as u64);
    let texts: BTreeSet<String> = points.iter().map(Point::to_string).collect();
    assert_eq!(texts.len(), points.len(), "each has a name of its own");
    for point in &points {
        assert_eq!(point.to_string().parse::<Point>().as_ref(), Ok(point));
    }
    assert!("source-primary:kill".parse::<Point>().is_err());
    assert!("source-primary:burn:3".parse::<Point>().is_err());
    let nobody: Point = "bystander:kill:3".parse().expect("well formed");
    assert!(enumeration.run(&nobody).expect_err("nobody").contains("source-primary"));
}
