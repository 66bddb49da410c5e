//! `lockgate cluster`: forms a cluster, and asks how it is.

use lockgate_migrate::node::NodeStatus;
use lockgate_runtime::Runtime;

use crate::cli::{CreateArgs, StatusArgs};
use crate::error::CommandError;
use crate::formation;

/// A core for a tool's own conversations with nodes.
pub(crate) fn tool_runtime() -> Result<Runtime, CommandError> {
    let builder = Runtime::builder().cores(1).pin(false).spin_us(0).name("lockgate-tool");
    builder.build().map_err(CommandError::cluster)
}

/// Forms a cluster of running, empty nodes; returns when every slot is served.
pub fn create(args: &CreateArgs) -> Result<(), CommandError> {
    let shards: Vec<Vec<_>> =
        args.shards().map_err(CommandError::Usage)?.into_iter().map(<[_]>::to_vec).collect();
    let voters = args.voter_count().map_err(CommandError::Usage)?;
    let runtime = tool_runtime()?;
    let formed = runtime.block_on(0, move || async move { formation::create(&shards, voters).await });
    let genesis = formed.map_err(CommandError::cluster)?;
    println!(
        "a cluster of {} nodes in {} shards; {voters} nodes vote",
        genesis.nodes.len(),
        genesis.shards.len()
    );
    for info in &genesis.nodes {
        let voter = if info.voter { ", votes" } else { "" };
        println!(
            "node {} {} clients on {}, nodes on {}{voter}",
            info.incarnation.node, info.name, info.listen, info.link
        );
    }
    Ok(())
}

/// Prints a cluster's nodes, shards and jobs.
pub fn status(args: &StatusArgs) -> Result<(), CommandError> {
    let (runtime, node) = (tool_runtime()?, args.node);
    let status = runtime.block_on(0, move || async move { formation::status(node).await });
    println!("{}", table(&status.map_err(CommandError::cluster)?));
    Ok(())
}

/// A cluster as a table for people.
fn table(status: &NodeStatus) -> String {
    let mut lines =
        vec![format!("as node {} sees it, up to entry {} of the control log", status.node, status.applied)];
    let row = |cells: [&str; 7]| {
        let [shard, epoch, node, clients, role, in_sync, slots] = cells;
        format!("{shard:<6} {epoch:<6} {node:<5} {clients:<22} {role:<14} {in_sync:<8} {slots}")
    };
    lines.push(row(["shard", "epoch", "node", "clients", "role", "in sync", "slots"]));
    for shard in &status.shards {
        let owned: usize = shard.slots.iter().map(|range| range.len()).sum();
        let owned = format!("{owned} in {} ranges", shard.slots.len());
        for (index, member) in shard.members.iter().enumerate() {
            let (role, slots) = if index == 0 { ("primary", owned.as_str()) } else { ("replica", "") };
            let role = if member.voter { format!("{role}, votes") } else { role.to_owned() };
            let in_sync = if member.in_sync { "yes" } else { "no" };
            let (id, epoch) = (shard.id.to_string(), shard.epoch.to_string());
            let (node, listen) = (member.node.to_string(), member.listen.to_string());
            lines.push(row([&id, &epoch, &node, &listen, &role, in_sync, slots]).trim_end().to_owned());
        }
    }
    for job in &status.jobs {
        let slots: usize = job.slots.iter().map(|range| range.len()).sum();
        let reason = if job.reason.is_empty() { String::new() } else { format!(": {}", job.reason) };
        let (name, state) = (&job.name[..8], &job.state);
        lines.push(format!(
            "job {name}  shard {} to {}, {slots} slots, {state}{reason}",
            job.source, job.target
        ));
    }
    lines.join("\n")
}
