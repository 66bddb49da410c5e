//! `lockgate serve`: one node with its engine, its links and its clients, until it is told to stop.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc;

use lockgate_engine::Engine;
use lockgate_migrate::{AckPolicy, Node};
use lockgate_net::resp::{self, Limits};
use lockgate_runtime::{Runtime, TcpListener};

use crate::cli::{Ack, ServeArgs};
use crate::error::CommandError;
use crate::service::Commands;

/// Connections of one node, over all cores.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Bytes of large requests that may be arriving at once.
pub const LARGE_INPUT_BYTES_MAX: usize = 2 << 30;

enum Ending {
    Signal,
    NodeStopped,
}

/// Runs a node until SIGINT or SIGTERM; then stops in order: clients, node, engine.
pub fn run(args: &ServeArgs) -> Result<(), CommandError> {
    if args.exit_with_parent {
        // Where the kernel refuses, the process only outlives its parent.
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    }
    let (tell, ended) = mpsc::channel();
    watch_signals(tell.clone())?;
    let cores = args.cores.map_or_else(available_cores, usize::from);
    let builder = Runtime::builder().cores(cores).pin(args.pin).spin_us(args.spin_us).name("lockgate");
    let runtime = builder.build().map_err(CommandError::serve)?;
    let (node, listen) = start(&runtime, args)?;
    let clients_gone = serve_clients(&runtime, &node, listen);
    let watched = node.stopping();
    runtime.spawn_on(0, move || async move {
        watched.stopped().await;
        // The main thread may have ended already.
        let _ = tell.send(Ending::NodeStopped);
    });
    println!("lockgate: clients on {listen}, nodes on {}, data in {}", node.link_addr(), args.data.display());
    let ending = ended.recv().unwrap_or(Ending::NodeStopped);
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
        Ending::Signal => Ok(()),
        Ending::NodeStopped => Err(CommandError::Serve(
            "this node has stepped down because its log failed; restart it once its disk is sound".into(),
        )),
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

/// Serves clients on every core. The receiver is hung up when the last core has none left.
fn serve_clients(runtime: &Runtime, node: &Node, listen: SocketAddr) -> mpsc::Receiver<()> {
    let (serving, gone) = mpsc::channel::<()>();
    let limits = Limits::new(CONNECTIONS_MAX, LARGE_INPUT_BYTES_MAX);
    for core in 0..runtime.cores() {
        let (node, stop, limits, serving) = (node.clone(), node.stopping(), limits.clone(), serving.clone());
        runtime.spawn_on(core, move || async move {
            match TcpListener::bind(listen).await {
                Ok(listener) => resp::serve(listener, Rc::new(Commands::new(node)), stop, limits).await,
                Err(error) => tracing::error!(core, %listen, %error, "this core takes no clients"),
            }
            drop(serving);
        });
    }
    gone
}

/// Opens the engine and starts the node on core 0; returns it with the address that clients reach it at.
fn start(runtime: &Runtime, args: &ServeArgs) -> Result<(Node, SocketAddr), CommandError> {
    let (args, on) = (args.clone(), runtime.clone());
    runtime.block_on(0, move || async move {
        // Bound here once, so that port 0 has become a number before it is told to anybody.
        let bound = TcpListener::bind(args.listen).await;
        let bound = bound
            .map_err(|error| CommandError::Serve(format!("cannot listen on {}: {error}", args.listen)))?;
        let listen = bound.local_addr();
        let engine =
            Engine::builder(&args.data).clustered(true).open_on(&on).await.map_err(CommandError::serve)?;
        let policy = match args.ack {
            Ack::Written => AckPolicy::InSync,
            Ack::Synced => AckPolicy::InSyncSynced,
        };
        let node = Node::builder(engine).link(args.link).listen(listen).ack(policy).start().await;
        Ok((node.map_err(CommandError::serve)?, listen))
    })
}
