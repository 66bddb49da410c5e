//! Machines that are network namespaces of this kernel, on one bridge; and wires that lose what one sends to another.
//!
//! A wire is cut by telling the sender a hardware address for the receiver that nobody has: what it sends is lost without a
//! word, as behind a broken switch, and the other direction is not touched.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Nobody's hardware address.
const NOWHERE: &str = "02:00:00:00:00:01";

/// Machines and the bridge between them. They are taken away when this is dropped.
pub struct Wires {
    prefix: String,
    names: Vec<String>,
}

/// Runs `ip` with these words; what it says if it fails.
fn ip(words: &str) -> Result<(), String> {
    let output =
        Command::new("ip").args(words.split(' ')).output().map_err(|error| format!("ip: {error}"))?;
    let why = || format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    if output.status.success() { Ok(()) } else { Err(why()) }
}

impl Wires {
    /// So many machines, all of which reach each other; or why there can be none here.
    pub fn lay(machines: usize) -> Result<Wires, String> {
        let mut wires = Wires { prefix: format!("lockgate-{}", std::process::id()), names: Vec::new() };
        let bridge = wires.add("bridge")?;
        ip(&format!("-n {bridge} link add br0 type bridge"))?;
        ip(&format!("-n {bridge} link set br0 up"))?;
        for machine in 0..machines {
            let name = wires.add(&machine.to_string())?;
            ip(&format!("-n {bridge} link add m{machine} type veth peer name eth0 netns {name}"))?;
            ip(&format!("-n {bridge} link set m{machine} master br0 up"))?;
            ip(&format!("-n {name} addr add {}/24 dev eth0", addr(machine)))?;
            ip(&format!("-n {name} link set eth0 up"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        Ok(wires)
    }

    fn add(&mut self, what: &str) -> Result<String, String> {
        let name = format!("{}-{what}", self.prefix);
        ip(&format!("netns add {name}"))?;
        self.names.push(name.clone());
        Ok(name)
    }

    /// The namespace's name.
    pub fn name(&self, machine: usize) -> String {
        format!("{}-{machine}", self.prefix)
    }

    /// This thread, and those that it starts, live on that machine from now on.
    pub fn enter(&self, machine: usize) {
        let file =
            File::open(format!("/run/netns/{}", self.name(machine))).expect("the namespace has a name");
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
            .expect("who made a namespace may enter it");
    }

    /// What `from` sends to `to` is lost from now on.
    pub fn cut(&self, from: usize, to: usize) {
        let (name, to) = (self.name(from), addr(to));
        ip(&format!("-n {name} neigh replace {to} lladdr {NOWHERE} dev eth0 nud permanent"))
            .expect("it is cut");
    }

    /// What `from` sends to `to` arrives again.
    pub fn mend(&self, from: usize, to: usize) {
        ip(&format!("-n {} neigh del {} dev eth0", self.name(from), addr(to))).expect("it is mended");
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        for name in &self.names {
            // With the last process in it, and the wires to it.
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

/// A machine's address.
pub fn addr(machine: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, machine as u8 + 1))
}
