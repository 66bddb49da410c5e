//! A busy history of several machines under every kind of fault is the same each time, also in another process.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use lockgate_runtime::sim::{Control, DiskFaults, Flow, LinkFaults, Middlebox, Piece, PowerLoss, Sim};
use lockgate_runtime::{
    File, OpenOptions, Runtime, TcpListener, TcpStream, fs, random_u64, sleep, spawn, timeout,
};

const MACHINES: [&str; 4] = ["one", "two", "three", "four"];
/// How many faults a history has, of how many kinds.
const FAULTS: u64 = 120;
const KINDS: u64 = 22;
/// Says to the child that it is one, and which seed it runs.
const CHILD_SEED: &str = "SIM_HISTORY_CHILD_SEED";

fn address(machine: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7000 + machine as u16))
}

/// What is told of a history: its hash, its polls, its end, how often it was observed, what the middlebox passed on.
type Told = (u64, u64, u64, u64, u64);

/// Echoes; ends with its connection.
async fn echo(stream: TcpStream) -> io::Result<()> {
    loop {
        let (result, bytes) = stream.recv(Vec::with_capacity(3000)).await;
        if result? == 0 {
            return Ok(());
        }
        stream.send_all(bytes).await.0?;
    }
}

async fn serve(machine: usize) -> io::Result<()> {
    let listener = TcpListener::bind(address(machine)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        spawn(async move {
            let _ = echo(stream).await;
        });
    }
}

async fn talk() -> io::Result<()> {
    let to = random_u64() as usize % MACHINES.len();
    let stream = TcpStream::connect(address(to)).await?;
    for _ in 0..random_u64() % 20 {
        let len = random_u64() as usize % 5000 + 1;
        stream.send_all(random_u64().to_le_bytes().repeat(len)).await.0?;
        let _ =
            timeout(Duration::from_millis(random_u64() % 50), stream.recv(Vec::with_capacity(9000))).await;
    }
    Ok(())
}

async fn write() -> io::Result<()> {
    let directory = format!("/data/{}", random_u64() % 3);
    fs::create_dir_all(Path::new(&directory)).await?;
    let path = format!("{directory}/{}", random_u64() % 5);
    let options = OpenOptions::new().read(true).write(true).create(true);
    let file = File::open(Path::new(&path), &options).await?;
    for _ in 0..random_u64() % 10 {
        let bytes = (random_u64() % 3).to_le_bytes().repeat(random_u64() as usize % 2000);
        file.write_all_at(bytes, random_u64() % 50_000).await.0?;
        file.read_at(vec![0; 1000], random_u64() % 50_000).await.0?;
        match random_u64() % 4 {
            0 => file.sync_data().await?,
            1 => fs::sync_dir(Path::new(&directory)).await?,
            _ => {}
        }
    }
    match random_u64() % 5 {
        0 => fs::rename(Path::new(&path), Path::new(&format!("{path}.old"))).await,
        1 => fs::remove_file(Path::new(&path)).await,
        2 => fs::remove_dir_all(Path::new(&directory)).await,
        3 => fs::write_atomic(Path::new("/data/whole"), vec![1; 100]).await,
        _ => fs::read_dir(Path::new(&directory)).await.map(drop),
    }
}

/// Work for ever, whatever fails.
fn set_to_work(node: &Runtime, machine: usize) {
    for core in 0..node.cores() {
        node.spawn_on(core, move || async move {
            spawn(async move {
                let _ = serve(machine).await;
            });
            for task in 0..3 {
                spawn(async move {
                    loop {
                        let _ = if task == 0 { write().await } else { talk().await };
                        sleep(Duration::from_micros(random_u64() % 2000)).await;
                    }
                });
            }
        });
    }
}

fn start(control: &Control, machine: usize) {
    let node = control.start(MACHINES[machine], 1 + machine % 2);
    set_to_work(&node, machine);
}

/// Changes and delays some of what passes.
struct Meddler(Rc<Cell<u64>>);

impl Middlebox for Meddler {
    fn pass(&mut self, _: &Flow, mut bytes: Vec<u8>, draw: &mut dyn FnMut() -> u64) -> Vec<Piece> {
        self.0.set(self.0.get() + bytes.len() as u64);
        let place = draw() as usize % bytes.len();
        bytes[place] ^= 1;
        let rest = bytes.split_off(place);
        vec![Piece { delay_ns: draw() % 1_000_000, bytes }, Piece { delay_ns: 0, bytes: rest }]
    }

    fn closed(&mut self, flow: &Flow) {
        self.0.set(self.0.get() ^ flow.connection << 32);
    }
}

fn link() -> LinkFaults {
    LinkFaults { latency_ns: (10_000, 3_000_000), loss_one_in: 20, bytes_per_s: Some(10_000_000) }
}

/// Faults of processes and machines.
fn break_process(control: &Control, kind: u64, machine: usize) {
    let name = MACHINES[machine];
    let is_running = control.is_running(name);
    match kind {
        0 | 1 if !is_running => start(control, machine),
        0 => control.kill(name),
        1 => control.cut_power(name, PowerLoss::Seeded),
        2 => control.cut_power(name, PowerLoss::All),
        3 if is_running => control.pause(name),
        4 => control.resume(name),
        5 if !is_running => control.wipe_disk(name),
        _ if !is_running => start(control, machine),
        _ => {}
    }
}

/// Faults of clocks and disks.
fn break_machine(control: &Control, kind: u64, name: &str) {
    let faults = DiskFaults {
        sync_fails_one_in: 10,
        write_fails_one_in: 20,
        read_fails_one_in: 20,
        slow_one_in: 5,
        slow_ns: (1_000_000, 20_000_000),
        capacity_bytes: Some(200_000),
    };
    match kind {
        7 => control.set_clock_rate(name, (random_u64() % 100_000) as i32 - 50_000),
        8 => control.jump_boottime(name, Duration::from_millis(random_u64() % 100)),
        9 => control.jump_wall_clock(name, random_u64() as i64 % 1_000_000),
        10 => control.set_disk_faults(name, faults),
        11 => control.set_disk_faults(name, DiskFaults::default()),
        12 => control.fail_next_sync(name),
        _ => {
            control.rot(name, "/data", 5);
        }
    }
}

/// Faults of the network.
fn break_network(control: &Control, kind: u64, (a, b): (&str, &str), passed: &Rc<Cell<u64>>) {
    match kind {
        14 => control.block(a, b),
        15 => control.unblock(a, b),
        16 => control.heal_network(),
        17 => control.set_link(a, b, link()),
        18 => control.set_default_link(link()),
        19 => control.reset_connections(a, b),
        20 => control.set_middlebox(Some(Box::new(Meddler(passed.clone())))),
        _ => control.set_middlebox(None),
    }
}

async fn inject(control: Control, passed: Rc<Cell<u64>>) {
    for turn in 0..FAULTS {
        sleep(Duration::from_micros(random_u64() % 5000)).await;
        // Each kind in its turn, and others in between.
        let kind = if turn % 2 == 0 { turn / 2 % KINDS } else { random_u64() % KINDS };
        let machine = random_u64() as usize % MACHINES.len();
        let other = MACHINES[random_u64() as usize % MACHINES.len()];
        match kind {
            0..7 => break_process(&control, kind, machine),
            7..14 => break_machine(&control, kind, MACHINES[machine]),
            _ => break_network(&control, kind, (MACHINES[machine], other), &passed),
        }
    }
}

fn history(seed: u64) -> Told {
    let sim = Sim::new(seed);
    let (observed, passed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let count = observed.clone();
    sim.on_step(move || count.set(count.get() + 1));
    for machine in 0..MACHINES.len() {
        start(&sim, machine);
    }
    sim.run_until(inject(sim.control(), passed.clone()));
    (sim.trace_hash(), sim.steps(), sim.now_ns(), observed.get(), passed.get())
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let mut hashes = std::collections::BTreeSet::new();
    for seed in 0..8 {
        let told = history(seed);
        assert!(told.1 > 3000 && told.3 > 1000, "a busy history: {told:?}");
        assert_eq!(told, history(seed), "seed {seed}");
        hashes.insert(told.0);
    }
    assert_eq!(hashes.len(), 8, "different seeds give different histories");
}

#[test]
fn another_process_sees_the_same_history() {
    if let Ok(seed) = std::env::var(CHILD_SEED) {
        println!("told: {:?}", history(seed.parse().expect("a number")));
        return;
    }
    let program = std::env::current_exe().expect("this test has a program");
    for seed in [3, 4] {
        let output = Command::new(&program)
            .args([
                "--exact",
                "sim_history::another_process_sees_the_same_history",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CHILD_SEED, seed.to_string())
            .output()
            .expect("the child runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let told = text.lines().find_map(|line| line.split_once("told: ")).map(|(_, told)| told);
        assert_eq!(told, Some(&*format!("{:?}", history(seed))), "seed {seed}: {text}");
    }
}

/// A history of one machine that writes and sends what `byte` says.
fn hash_of(byte: u8, draws: bool) -> u64 {
    let sim = Sim::new(1);
    let node = sim.node("one", 1);
    node.block_on(0, move || async move {
        let file = File::open(Path::new("/file"), &OpenOptions::new().write(true).create(true)).await;
        file.expect("opened").write_all_at(vec![1, byte], 0).await.0.expect("written");
        if draws {
            random_u64();
        }
    });
    sim.trace_hash()
}

#[test]
fn the_hash_takes_in_content_and_draws() {
    let one = hash_of(1, false);
    assert_eq!(one, hash_of(1, false));
    assert_ne!(one, hash_of(2, false));
    assert_ne!(one, hash_of(1, true));
    assert_ne!(hash_of_sent(1), hash_of_sent(2));
    let fault = |act: fn(&Sim)| {
        let sim = Sim::new(1);
        sim.node("one", 1);
        act(&sim);
        sim.trace_hash()
    };
    let rates =
        [fault(|_| {}), fault(|sim| sim.set_clock_rate("one", 1)), fault(|sim| sim.set_clock_rate("one", 2))];
    assert!(rates[0] != rates[1] && rates[1] != rates[2]);
}

fn hash_of_sent(byte: u8) -> u64 {
    let sim = Sim::new(1);
    sim.run_until(async move {
        let listener = TcpListener::bind(address(0)).await.expect("bound");
        let stream = TcpStream::connect(address(0)).await.expect("connected");
        stream.send_all(vec![1, byte]).await.0.expect("sent");
        drop(listener);
    });
    sim.trace_hash()
}
