//! `lockgate serve`: one node with its engine, its links and its clients, until it is told to stop.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lockgate_engine::Engine;
use lockgate_migrate::{AckPolicy, Node, Times};
use lockgate_net::resp::Limits;
use lockgate_runtime::sync::Arc;
use lockgate_runtime::{Runtime, TcpListener};

use crate::cli::{Ack, ServeArgs};
use crate::error::CommandError;
use crate::service::{Backups, Commands};

/// Connections of one node, over all cores.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Bytes of large requests that may be arriving at once.
pub const LARGE_INPUT_BYTES_MAX: usize = 2 << 30;
/// How long an address may stay in use: the system keeps the sockets of a killed process for a moment.
const ADDRESS_LIMIT: Duration = Duration::from_secs(2);
/// Pause between two tries of an address.
const ADDRESS_PAUSE: Duration = Duration::from_millis(10);

enum Ending {
    Signal,
    /// After the first signal: what this node led is led by others, or cannot be.
    Retired,
    NodeStopped,
}

/// Runs a node until SIGINT or SIGTERM; then it leaves office, which a second signal cuts short, and stops in order:
/// clients, node, engine.
pub fn run(args: &ServeArgs) -> Result<(), CommandError> {
    if args.exit_with_parent {
        // Where the kernel refuses, the process only outlives its parent.
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    }
    let (tell, ended) = mpsc::channel();
    watch_signals(tell.clone())?;
    let times = Times::new(Duration::from_millis(args.node_timeout_ms), args.drift_ppm);
    let times = times.map_err(|error| CommandError::Usage(error.to_string()))?;
    check_free(args.listen)?;
    check_free(args.link)?;
    let cores = args.cores.map_or_else(available_cores, usize::from);
    let builder = Runtime::builder().cores(cores).pin(args.pin).spin_us(args.spin_us).name("lockgate");
    let runtime = builder.build().map_err(CommandError::serve)?;
    let (serving, clients_gone) = mpsc::channel();
    let limits = Limits::new(CONNECTIONS_MAX, LARGE_INPUT_BYTES_MAX);
    let backups = Arc::new(Backups::new(args.backup_dir.clone()));
    let clients = Clients { limits, backups, serving };
    let (node, listen) = start(&runtime, args, times, clients.clone())?;
    serve_on_other_cores(&runtime, &node, listen, clients)?;
    let (watched, tell_stopped) = (node.stopping(), tell.clone());
    runtime.spawn_on(0, move || async move {
        watched.stopped().await;
        // The main thread may have ended already.
        let _ = tell_stopped.send(Ending::NodeStopped);
    });
    println!("lockgate: clients on {listen}, nodes on {}, data in {}", node.link_addr(), args.data.display());
    let mut ending = ended.recv().unwrap_or(Ending::NodeStopped);
    if let Ending::Signal = ending {
        let retiring = node.clone();
        runtime.spawn_on(0, move || async move {
            retiring.retire().await;
            let _ = tell.send(Ending::Retired);
        });
        ending = ended.recv().unwrap_or(Ending::NodeStopped);
    }
    let why = node.failure().map(str::to_owned);
    node.stop();
    // Every core drops its end when its last client is gone.
    let _ = clients_gone.recv();
    runtime.block_on(0, move || async move {
        node.stopped().await;
        if let Err(error) = node.engine().close().await {
            tracing::error!(%error, "the log could not be closed");
        }
    });
    runtime.shutdown();
    match ending {
        Ending::Signal | Ending::Retired => Ok(()),
        Ending::NodeStopped => {
            let why = why.unwrap_or_else(|| "see its output".to_owned());
            Err(CommandError::Serve(format!("this node has stepped down: {why}")))
        }
    }
}

fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn watch_signals(tell: mpsc::Sender<Ending>) -> Result<(), CommandError> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]);
    let mut signals =
        signals.map_err(|error| CommandError::Serve(format!("cannot take signals: {error}")))?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if tell.send(Ending::Signal).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// The cores' sockets share a port, and would share it with another process', too, with nobody noticing.
fn check_free(addr: SocketAddr) -> Result<(), CommandError> {
    if addr.port() == 0 {
        return Ok(());
    }
    let give_up = Instant::now() + ADDRESS_LIMIT;
    loop {
        match std::net::TcpListener::bind(addr) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < give_up => {
                std::thread::sleep(ADDRESS_PAUSE);
            }
            Err(error) => return Err(cannot_listen(addr, &error)),
        }
    }
}

fn cannot_listen(addr: SocketAddr, error: &std::io::Error) -> CommandError {
    CommandError::Serve(format!("cannot listen on {addr}: {error}"))
}

/// What the cores share that serve clients.
#[derive(Clone)]
struct Clients {
    limits: Limits,
    backups: Arc<Backups>,
    /// Dropped by each core when its last client is gone.
    serving: mpsc::Sender<()>,
}

impl Clients {
    /// Serves clients on this core.
    fn serve(self, listener: TcpListener, node: &Node) {
        let commands = Commands::new(node.clone()).with_backups(self.backups);
        lockgate_runtime::spawn(async move {
            commands.serve(listener, self.limits).await;
            drop(self.serving);
        });
    }
}

/// Serves clients on all cores but the first. When it returns, every one of them listens.
fn serve_on_other_cores(
    runtime: &Runtime,
    node: &Node,
    listen: SocketAddr,
    clients: Clients,
) -> Result<(), CommandError> {
    for core in 1..runtime.cores() {
        let (node, clients) = (node.clone(), clients.clone());
        let served = runtime.block_on(core, move || async move {
            clients.serve(TcpListener::bind(listen).await?, &node);
            Ok(())
        });
        served.map_err(|error| cannot_listen(listen, &error))?;
    }
    Ok(())
}

/// Opens the engine, starts the node on core 0 and serves clients there; returns it with the address that they reach it at.
fn start(
    runtime: &Runtime,
    args: &ServeArgs,
    times: Times,
    clients: Clients,
) -> Result<(Node, SocketAddr), CommandError> {
    let (args, on) = (args.clone(), runtime.clone());
    runtime.block_on(0, move || async move {
        // First of all, so that port 0 has become a number before it is told to anybody. Early clients wait in its queue.
        let bound = TcpListener::bind(args.listen).await;
        let bound = bound.map_err(|error| cannot_listen(args.listen, &error))?;
        let listen = bound.local_addr();
        let engine = Engine::builder(&args.data)
            .clustered(true)
            .cores(on.cores())
            .open_on(&on)
            .await
            .map_err(CommandError::serve)?;
        let policy = match args.ack {
            Ack::Primary => AckPolicy::Primary,
            Ack::Written => AckPolicy::InSync,
            Ack::Synced => AckPolicy::InSyncSynced,
        };
        let node = Node::builder(engine).link(args.link).listen(listen).ack(policy).times(times);
        let mut node = node.min_in_sync(args.min_in_sync.into());
        if let Some(bound_ms) = args.replica_staleness_ms {
            node = node.replica_staleness(Duration::from_millis(bound_ms));
        }
        let node = node.start().await;
        let node = node.map_err(CommandError::serve)?;
        clients.serve(bound, &node);
        Ok((node, listen))
    })
}
