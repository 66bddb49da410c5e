//! A full disk ends nothing: data is refused early, control is not, and once there is space the log goes on.

use lockgate_runtime::sim::{Control, DiskFaults};
use lockgate_runtime::sync::{Arc, Mutex};

use super::*;

const DIR: &str = "/srv/log";
/// Far more than any write takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Large enough that a full disk is known long before the end of the file that is written.
const FILE_BYTES: u64 = 64 << 10;

/// A simulated machine with a log that has a file ready.
struct Machine {
    sim: Sim,
    runtime: Runtime,
    control: Control,
    log: Log,
}

impl Machine {
    fn new(seed: u64) -> Machine {
        let sim = Sim::new(seed);
        let (runtime, control) = (sim.node("a", 1), sim.control());
        let cfg = LogConfig { file_bytes: FILE_BYTES, ..config(Path::new(DIR), 1) };
        let log = runtime.block_on(0, move || async move { Log::create(cfg, 0).await.unwrap() });
        let machine = Machine { sim, runtime, control, log };
        machine.pass(Duration::from_millis(100));
        machine
    }

    fn run<T: Send + 'static, F: Future<Output = T> + 'static>(
        &self,
        act: impl FnOnce(Log) -> F + Send + 'static,
    ) -> T {
        let log = self.log.clone();
        let bounded = move || async move {
            let result = lockgate_runtime::timeout(10 * PATIENCE, act(log)).await;
            result.expect("it ends in simulated time")
        };
        self.runtime.block_on(0, bounded)
    }

    fn pass(&self, time: Duration) {
        self.sim.run_until(async move { lockgate_runtime::sleep(time).await });
    }

    /// The disk has so much more room, or any.
    fn give_room(&self, bytes: Option<u64>) {
        let capacity_bytes = bytes.map(|bytes| self.control.disk_bytes("a") + bytes);
        self.control.set_disk_faults("a", DiskFaults { capacity_bytes, ..DiskFaults::default() });
    }

    /// Appends frames of `payload_bytes` until one is refused, and returns their number.
    fn fill(&self, first: u64, payload_bytes: usize) -> u64 {
        let refused = self.run(move |log| async move {
            for number in first.. {
                let refusal = match log.reserve(payload_bytes) {
                    Ok(reservation) => {
                        let frame = frame(number, payload_bytes);
                        let end = log.append(reservation, frame.header, &[&frame.payload]).unwrap();
                        let written = lockgate_runtime::timeout(PATIENCE, log.wait_written(end)).await;
                        written.expect("what was taken fits").unwrap();
                        continue;
                    }
                    Err(refusal) => refusal,
                };
                assert!(matches!(refusal, LogError::DiskFull { .. }) && refusal.is_retryable(), "{refusal}");
                assert!(refusal.to_string().contains("the disk is full"), "{refusal}");
                return number;
            }
            unreachable!("a disk has an end")
        });
        refused - first
    }

    fn recovered(&self) -> Vec<Seen> {
        self.run(|_| async { recover_all(Path::new(DIR), &[]).await.unwrap().1 })
    }
}

#[test]
fn data_is_refused_and_control_is_not_until_there_is_space() {
    for seed in 0..20 {
        let machine = Machine::new(seed);
        machine.give_room(Some(seed * 10_000));
        let frames = machine.fill(0, 1000);
        assert!(frames > 10, "the current file and the next one: {frames}");
        assert!(machine.log.is_disk_full());
        let (waiting, polls) = (machine.log.clone(), machine.control.polls("a"));
        let room = Arc::new(Mutex::new(false));
        let got = room.clone();
        machine.runtime.spawn_on(0, move || async move {
            waiting.wait_room().await.unwrap();
            *got.lock() = true;
        });
        // Small frames of control find room, on the disk.
        machine.run(move |log| async move {
            for number in 0..5 {
                let reservation = log.reserve_control(0).unwrap();
                let end = log.append(reservation, frame(frames + number, 0).header, &[]).unwrap();
                log.wait_synced(end).await.unwrap();
                assert!(matches!(log.reserve(0), Err(LogError::DiskFull { .. })), "not even small data");
            }
        });
        machine.pass(Duration::from_secs(60));
        assert!(!*room.lock() && machine.log.failure().is_none());
        let polls = machine.control.polls("a") - polls;
        assert!(polls < 2_000, "{polls} polls in a minute: nobody spins");
        machine.give_room(None);
        machine.pass(Duration::from_secs(10));
        assert!(*room.lock() && !machine.log.is_disk_full());
        machine.run(move |log| async move {
            for number in frames + 5..frames + 60 {
                let end = append(&log, &frame(number, 1000));
                log.wait_synced(end).await.unwrap();
            }
        });
        let seen = machine.recovered();
        assert_eq!(seen.len() as u64, frames + 60);
        assert!(seen.iter().zip(0..).all(|(seen, number)| seen.header == frame(number, 0).header));
    }
}

#[test]
fn what_was_taken_waits_for_space() {
    let machine = Machine::new(1);
    machine.give_room(Some(0));
    let frames = machine.fill(0, 1000);
    // More control than the reserve holds.
    let end = machine.run(move |log| async move {
        for number in 0..12 {
            let frame = frame(frames + number, 3_000);
            let reservation = log.reserve_control(3_000).unwrap();
            log.append(reservation, frame.header, &[&frame.payload]).unwrap();
        }
        log.request_sync(log.appended());
        log.appended()
    });
    machine.pass(Duration::from_secs(20));
    assert!(machine.log.written() < end && machine.log.failure().is_none());
    machine.give_room(None);
    machine.run(move |log| async move { log.wait_synced(end).await.unwrap() });
    assert_eq!(machine.recovered().len() as u64, frames + 12);
}

#[test]
fn a_batch_larger_than_a_file_waits_for_space() {
    let machine = Machine::new(2);
    machine.give_room(Some(20_000));
    machine.run(|log| async move {
        append(&log, &frame(0, 100));
        append(&log, &frame(1, 300_000));
    });
    machine.pass(Duration::from_secs(5));
    assert!(machine.log.is_disk_full() && machine.log.written().0 == 132);
    assert!(matches!(machine.log.reserve(10), Err(LogError::DiskFull { room_bytes: 0, .. })));
    machine.give_room(Some(100_000));
    machine.pass(Duration::from_secs(5));
    assert!(machine.log.is_disk_full());
    machine.give_room(None);
    machine.run(|log| async move {
        log.wait_room().await.unwrap();
        append(&log, &frame(2, 100));
        log.wait_synced(log.appended()).await.unwrap();
    });
    assert_eq!(machine.recovered(), [frame(0, 100), frame(1, 300_000), frame(2, 100)]);
    // Such a batch is refused before it is taken, once it is known.
    machine.give_room(Some(0));
    machine.fill(3, 3_000);
    assert!(matches!(machine.log.reserve(300_000), Err(LogError::DiskFull { .. })));
}

#[test]
fn given_back_files_are_space() {
    let machine = Machine::new(3);
    machine.give_room(Some(300_000));
    machine.fill(0, 1000);
    let start = machine.run(|log| async move {
        let start = log.mark();
        log.wait_synced(LogPosition(start.position)).await.unwrap();
        assert!(log.give_back(start).await.recycled_files >= 3);
        log.wait_room().await.unwrap();
        append(&log, &frame(9, 1000));
        log.wait_synced(log.appended()).await.unwrap();
        start
    });
    assert!(!machine.log.is_disk_full(), "no space was made but by the log itself");
    let seen = machine.run(move |_| async move { recover_from(Path::new(DIR), Some(start), &[]).await });
    assert_eq!(seen.unwrap().1, [frame(9, 1000)]);
}

#[test]
fn a_close_does_not_wait_for_space() {
    for oversized in [false, true] {
        let machine = Machine::new(4);
        machine.give_room(Some(0));
        let frames = machine.fill(0, 1000);
        // Everything that was taken fits: the log ends in order.
        if !oversized {
            machine.run(|log| async move { log.close().await.unwrap() });
            assert_eq!(machine.recovered().len() as u64, frames);
            continue;
        }
        let failed = machine.run(move |log| async move {
            let reservation = log.reserve_control(40_000).unwrap();
            let end = log.append(reservation, frame(frames, 0).header, &[&[1; 40_000]]).unwrap();
            let (closed, written) = futures_util::future::join(log.close(), log.wait_written(end)).await;
            assert_eq!(written.unwrap_err().to_string(), closed.clone().unwrap_err().to_string());
            closed.unwrap_err()
        });
        assert!(
            matches!(failed.cause(), StopCause::Io { source, .. } if source.raw_os_error() == Some(28)),
            "{failed}"
        );
        assert_eq!(machine.recovered().len() as u64, frames);
    }
}
