//! Clocks of simulated machines that drift and jump.

use std::time::Duration;

use lockgate_runtime::sim::Sim;
use lockgate_runtime::{now_ns, sleep, unix_ms};

/// What a sleep of 100 s on the node takes in ideal time, in nanoseconds.
fn ideal_ns_of_100_s(sim: &Sim, node: &lockgate_runtime::Runtime) -> u64 {
    let began = sim.now_ns();
    node.block_on(0, || async {
        let began = now_ns();
        sleep(Duration::from_secs(100)).await;
        let slept = now_ns() - began;
        assert!((100_000_000_000..100_000_100_000).contains(&slept), "by its own clock: {slept}");
    });
    sim.now_ns() - began
}

#[test]
fn timers_are_due_by_the_clock_of_their_machine() {
    for (ppm, ideal_ms) in [(0, 100_000), (100_000, 90_909), (-200_000, 125_000), (500_000, 66_666)] {
        let sim = Sim::new(1);
        let node = sim.node("node", 1);
        sim.set_clock_rate("node", ppm);
        let ms = ideal_ns_of_100_s(&sim, &node) / 1_000_000;
        assert!((ideal_ms..=ideal_ms + 1).contains(&ms), "{ppm} ppm: {ms} ms");
    }
}

#[test]
fn a_new_rate_changes_neither_clock_at_once() {
    let sim = Sim::new(1);
    let (node, other) = (sim.node("node", 1), sim.node("other", 1));
    for ppm in [300, -40_000, 0, 77] {
        let before = (node.now_ns(), node.unix_ms());
        sim.set_clock_rate("node", ppm);
        assert_eq!((node.now_ns(), node.unix_ms()), before);
        sim.run_until(async { sleep(Duration::from_secs(10)).await });
        let passed = i64::try_from(node.now_ns() - before.0).expect("forward");
        let expected = 10_000_000_000 + 10_000 * i64::from(ppm);
        assert!((expected..expected + 100_000).contains(&passed), "{ppm} ppm: {passed}");
        let wall_ms = i64::try_from(node.unix_ms() - before.1).expect("forward");
        assert!((wall_ms - expected / 1_000_000).abs() <= 1, "{ppm} ppm: {wall_ms}");
    }
    assert_eq!(other.now_ns(), sim.now_ns(), "the others' clocks are right");
}

#[test]
fn timers_fire_when_the_boot_time_jumps_over_them() {
    let sim = Sim::new(1);
    let node = sim.node("node", 1);
    let control = sim.control();
    let slept = node.clone();
    node.spawn_on(0, move || async move {
        sleep(Duration::from_secs(3600)).await;
        slept.shutdown();
    });
    sim.run_until(async move {
        sleep(Duration::from_secs(1)).await;
        assert!(control.is_running("node"));
        control.jump_boottime("node", Duration::from_secs(3600));
        sleep(Duration::from_millis(1)).await;
        assert!(!control.is_running("node"), "the timer has fired");
    });
    assert!(sim.now_ns() < 3_000_000_000, "ideal time does not jump");
    assert!(node.now_ns() > 3_600_000_000_000);
}

#[test]
fn the_wall_clock_jumps_either_way_and_alone() {
    let sim = Sim::new(1);
    let node = sim.node("node", 1);
    let (boot, wall) = (node.now_ns(), node.unix_ms());
    sim.jump_wall_clock("node", -86_400_000);
    assert_eq!((node.now_ns(), node.unix_ms()), (boot, wall - 86_400_000));
    sim.jump_wall_clock("node", 86_400_500);
    assert_eq!((node.now_ns(), node.unix_ms()), (boot, wall + 500));
    let inside = node.block_on(0, || async { (now_ns(), unix_ms()) });
    assert!(inside.0 >= boot && inside.1 >= wall + 500);
}
