//! The demo's nodes: real processes of this binary, each with a directory of its own, that never outlive the demo.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::CommandError;

/// How long a node may take to stop when asked, before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two looks at whether it has.
const STOP_LOOK: Duration = Duration::from_millis(10);

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
    /// Starts a node with the directory `folder/name` and waits until it says where it serves.
    pub fn start(folder: &Path, name: &str) -> Result<NodeProcess, CommandError> {
        let binary = std::env::current_exe().map_err(CommandError::io("finding this binary"))?;
        let (data, output) = (folder.join(name), folder.join(format!("{name}.out")));
        fs::create_dir_all(&data).map_err(CommandError::io(format!("making {}", data.display())))?;
        let errors =
            File::create(&output).map_err(CommandError::io(format!("making {}", output.display())))?;
        let mut command = Command::new(binary);
        command.args(["serve", "--listen", "127.0.0.1:0", "--link", "127.0.0.1:0", "--cores", "1"]);
        command.args(["--pin", "false", "--spin-us", "0", "--exit-with-parent", "--data"]).arg(&data);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().map_err(CommandError::io(format!("starting {name}")))?;
        let stdout = child.stdout.take().expect("it is piped");
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        match read.ok().and_then(|_| addresses(&line)) {
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
    let give_up = Instant::now() + STOP_LIMIT;
    while nodes.iter_mut().any(|node| node.ended().is_none()) && Instant::now() < give_up {
        std::thread::sleep(STOP_LOOK);
    }
    let late = nodes.iter_mut().filter_map(|node| node.ended().is_none().then(|| node.output.clone()));
    late.collect()
}

/// The addresses in the line that `lockgate serve` prints when it is ready.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
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
        let (listen, link) = addresses(line).unwrap();
        assert_eq!((listen.port(), link.port()), (4000, 5000));
        assert_eq!(addresses("error: no\n"), None);
    }
}
