//! The demo's nodes: real processes of this binary, each with a directory of its own, that never outlive the demo.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lockgate_migrate::control::NodeId;
use lockgate_runtime::sync::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use crate::error::CommandError;

/// How long a node may take to stop when asked, before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long it may try to leave office first.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(1);
/// Pause between two looks at whether it has.
const STOP_LOOK: Duration = Duration::from_millis(10);

/// The nodes of a run, by number, some of which may have been killed for a while.
///
/// Invariant: a node's process ends with the *thread* that started it, so all are started by one that lives as long as this.
pub struct Nodes {
    folder: PathBuf,
    processes: Mutex<Vec<Place>>,
    starter: mpsc::Sender<Start>,
}

/// What the starting thread does next.
type Start = Box<dyn FnOnce() + Send>;

/// One node's place.
struct Place {
    name: String,
    listen: SocketAddr,
    link: SocketAddr,
    /// None while it is killed.
    process: Option<NodeProcess>,
}

impl Nodes {
    /// No nodes yet; their directories will be in `folder`.
    pub fn new(folder: &Path) -> Nodes {
        let (starter, starts) = mpsc::channel::<Start>();
        std::thread::spawn(move || starts.into_iter().for_each(|start| start()));
        Nodes { folder: folder.to_owned(), processes: Mutex::default(), starter }
    }

    fn start(
        &self,
        name: &str,
        addresses: Option<(SocketAddr, SocketAddr)>,
    ) -> Result<NodeProcess, CommandError> {
        let (tell, started) = mpsc::channel();
        let (folder, name) = (self.folder.clone(), name.to_owned());
        // Both ends live until this returns: the thread ends after this value does.
        let start = move || drop(tell.send(NodeProcess::start(&folder, &name, addresses)));
        self.starter.send(Box::new(start)).expect("the starting thread waits");
        started.recv().expect("it answers")
    }

    /// Starts one more: its number is how many there are then.
    pub fn start_next(&self) -> Result<(), CommandError> {
        let mut processes = self.processes.lock();
        let name = format!("node-{}", processes.len() + 1);
        let process = self.start(&name, None)?;
        let (listen, link) = (process.listen, process.link);
        processes.push(Place { name, listen, link, process: Some(process) });
        Ok(())
    }

    /// Where other nodes reach each of them, in order.
    pub fn links(&self) -> Vec<SocketAddr> {
        self.processes.lock().iter().map(|slot| slot.link).collect()
    }

    /// Those of the nodes that run.
    pub fn running_links(&self) -> Vec<SocketAddr> {
        self.processes.lock().iter().filter(|slot| slot.process.is_some()).map(|slot| slot.link).collect()
    }

    /// Where clients reach each of them, in order.
    pub fn listens(&self) -> Vec<SocketAddr> {
        self.processes.lock().iter().map(|slot| slot.listen).collect()
    }

    /// Whether none is killed at present.
    pub fn all_up(&self) -> bool {
        self.processes.lock().iter().all(|slot| slot.process.is_some())
    }

    /// Kills nodes, all at once, and waits until they have ended.
    pub fn kill(&self, nodes: &[NodeId]) {
        let mut processes = self.processes.lock();
        let place = |node: &NodeId| node.0 as usize - 1;
        for node in nodes {
            if let Some(process) = &mut processes[place(node)].process {
                // One that has ended by itself needs no killing.
                let _ = process.child.kill();
            }
        }
        for node in nodes {
            // Dropping it waits.
            processes[place(node)].process = None;
        }
    }

    /// Starts a killed node again, where it was.
    pub fn restart(&self, node: NodeId) -> Result<(), CommandError> {
        let (name, addresses) = {
            let slot = &self.processes.lock()[node.0 as usize - 1];
            (slot.name.clone(), (slot.listen, slot.link))
        };
        let process = self.start(&name, Some(addresses))?;
        self.processes.lock()[node.0 as usize - 1].process = Some(process);
        Ok(())
    }

    /// The first node that has ended by itself, with its exit status and output.
    pub fn ended(&self) -> Option<(std::process::ExitStatus, String)> {
        self.processes.lock().iter_mut().filter_map(|slot| slot.process.as_mut()).find_map(|process| {
            let status = process.ended()?;
            Some((status, fs::read_to_string(&process.output).unwrap_or_default()))
        })
    }

    /// Takes all of them out.
    pub fn take(&self) -> Vec<NodeProcess> {
        std::mem::take(&mut *self.processes.lock()).into_iter().filter_map(|slot| slot.process).collect()
    }
}

/// One running node.
pub struct NodeProcess {
    child: Child,
    /// Where clients reach it.
    pub listen: SocketAddr,
    /// Where other nodes reach it.
    pub link: SocketAddr,
    /// Where its output goes.
    pub output: PathBuf,
}

impl NodeProcess {
    /// Starts a node with the directory `folder/name` and waits until it says where it serves: for clients and nodes at
    /// `addresses`, or where the system likes.
    pub fn start(
        folder: &Path,
        name: &str,
        addresses: Option<(SocketAddr, SocketAddr)>,
    ) -> Result<NodeProcess, CommandError> {
        let binary = std::env::current_exe().map_err(CommandError::io("finding this binary"))?;
        let (data, output) = (folder.join(name), folder.join(format!("{name}.out")));
        fs::create_dir_all(&data).map_err(CommandError::io(format!("making {}", data.display())))?;
        let errors = File::options().create(true).append(true).open(&output);
        let errors = errors.map_err(CommandError::io(format!("making {}", output.display())))?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (listen, link) = addresses.unwrap_or((any, any));
        let mut command = Command::new(binary);
        command.args(["serve", "--listen", &listen.to_string(), "--link", &link.to_string(), "--cores", "1"]);
        command.args(["--pin", "false", "--spin-us", "0", "--exit-with-parent", "--data"]).arg(&data);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().map_err(CommandError::io(format!("starting {name}")))?;
        let stdout = child.stdout.take().expect("it is piped");
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        match read.ok().and_then(|_| addresses_in(&line)) {
            Some((listen, link)) => Ok(NodeProcess { child, listen, link, output }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                let why = fs::read_to_string(&output).unwrap_or_default();
                Err(CommandError::Demo(format!("{name} did not start: {}", why.trim())))
            }
        }
    }

    fn ask_to_stop(&self) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            // A node that has ended already needs no asking.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Whether the process has ended, and how.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Stops all nodes in good order; those that do not stop in time are killed and named.
pub fn stop_all(mut nodes: Vec<NodeProcess>) -> Vec<PathBuf> {
    nodes.iter().for_each(NodeProcess::ask_to_stop);
    let asked = Instant::now();
    let mut is_hurried = false;
    while nodes.iter_mut().any(|node| node.ended().is_none()) && asked.elapsed() < STOP_LIMIT {
        // By then nobody is left to hand a shard over to: asked again, a node stops without.
        if !is_hurried && asked.elapsed() > HAND_OVER_LIMIT {
            nodes.iter().for_each(NodeProcess::ask_to_stop);
            is_hurried = true;
        }
        std::thread::sleep(STOP_LOOK);
    }
    let late = nodes.iter_mut().filter_map(|node| node.ended().is_none().then(|| node.output.clone()));
    late.collect()
}

/// The addresses in the line that `lockgate serve` prints when it is ready.
fn addresses_in(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let rest = line.strip_prefix("lockgate: clients on ")?;
    let (listen, rest) = rest.split_once(", nodes on ")?;
    let (link, _) = rest.split_once(", data in ")?;
    Some((listen.parse().ok()?, link.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_ready_node_is_understood() {
        let line = "lockgate: clients on 127.0.0.1:4000, nodes on 127.0.0.1:5000, data in some folder, y\n";
        let (listen, link) = addresses_in(line).unwrap();
        assert_eq!((listen.port(), link.port()), (4000, 5000));
        assert_eq!(addresses_in("error: no\n"), None);
    }
}
