//! `lockgate cluster` and `lockgate failover`: forms clusters, asks how they are, and changes them.

use lockgate_migrate::control::{EntryBody, NodeId, ShardId, SlotRange};
use lockgate_runtime::Runtime;

use crate::cli::{
    AssignArgs, ClusterCommand, CreateArgs, FailoverArgs, RecoverArgs, ReplaceNodeArgs, StatusArgs,
};
use crate::error::CommandError;
use crate::operations::{self, OperationError};
use crate::{formation, recovery, survey};

/// A core for a tool's own conversations with nodes.
pub(crate) fn tool_runtime() -> Result<Runtime, CommandError> {
    let builder = Runtime::builder().cores(1).pin(false).spin_us(0).name("lockgate-tool");
    builder.build().map_err(CommandError::cluster)
}

/// Runs one operation on a core of its own.
fn operate<T: Send + 'static, F: Future<Output = Result<T, OperationError>> + 'static>(
    operation: impl FnOnce() -> F + Send + 'static,
) -> Result<T, CommandError> {
    tool_runtime()?.block_on(0, operation).map_err(CommandError::cluster)
}

/// Runs a subcommand of `lockgate cluster`.
pub fn run(command: &ClusterCommand) -> Result<(), CommandError> {
    match command {
        ClusterCommand::Create(args) => create(args),
        ClusterCommand::Status(args) => status(args),
        ClusterCommand::AddNode(args) => {
            let (any, new) = (args.any.node, args.new);
            let node = operate(move || operations::add_node(any, new))?;
            println!("node {node} has joined, without a role: give it one by set-replicas or add-shard");
            Ok(())
        }
        ClusterCommand::RemoveNode(args) => {
            let (any, node) = (args.any.node, NodeId(args.leaving));
            operate(move || operations::change(any, EntryBody::RemoveNode { node }))?;
            println!("node {node} has left; its number is not used again");
            Ok(())
        }
        ClusterCommand::AddShard(args) => {
            let (any, members) = (args.any.node, numbers(&args.members));
            let shard = operate(move || async move { operations::add_shard(any, &members).await })?;
            println!("shard {shard} exists, without slots: move some to it by CLUSTER MIGRATESLOTS");
            Ok(())
        }
        ClusterCommand::RemoveShard(args) => {
            let (any, shard) = (args.any.node, ShardId(args.shard));
            operate(move || operations::change(any, EntryBody::RemoveShard { shard }))?;
            println!("shard {shard} is gone; its nodes have no role now");
            Ok(())
        }
        ClusterCommand::SetReplicas(args) => {
            let (any, shard, replicas) = (args.any.node, ShardId(args.shard), numbers(&args.replicas));
            let count = replicas.len();
            operate(move || operations::change(any, EntryBody::SetReplicas { shard, replicas }))?;
            println!(
                "shard {shard} has {count} replicas; those that are new copy it now, see cluster status"
            );
            Ok(())
        }
        ClusterCommand::SetVoters(args) => {
            let (any, voters) = (args.any.node, numbers(&args.voters));
            let count = voters.len();
            operate(move || operations::change(any, EntryBody::SetVoters { voters }))?;
            println!("{count} nodes vote");
            Ok(())
        }
        ClusterCommand::ReplaceNode(args) => replace(args),
        ClusterCommand::Recover(args) => recover(args),
        ClusterCommand::Assign(args) => assign(args),
    }
}

fn numbers(nodes: &[u32]) -> Vec<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

/// Makes a replica the primary of its shard, and says how long that took.
pub fn failover(args: &FailoverArgs) -> Result<(), CommandError> {
    let (any, shard, to) = (args.any.node, ShardId(args.shard), NodeId(args.to));
    let done = operate(move || operations::fail_over(any, shard, to))?;
    let took_ms = done.took.as_secs_f64() * 1_000.0;
    println!("node {to} leads shard {shard} now, node {} follows; it took {took_ms:.1} ms", done.from);
    Ok(())
}

/// Begins a new generation, after it has said what that means.
fn recover(args: &RecoverArgs) -> Result<(), CommandError> {
    let (runtime, nodes) = (tool_runtime()?, args.node.clone());
    let look = |nodes: Vec<_>| runtime.block_on(0, move || async move { recovery::look(&nodes).await });
    let mut findings = look(nodes.clone()).map_err(CommandError::cluster)?;
    if !findings.waiting.is_empty() {
        println!("an interrupted recovery is finished first");
        let unfinished = findings.clone();
        let finished = runtime.block_on(0, move || async move { unfinished.finish().await });
        for (node, why) in finished.map_err(CommandError::cluster)? {
            println!(
                "node {node} is locked out: {why}. Put an empty node into its place by `lockgate cluster replace-node`"
            );
        }
        findings = look(nodes).map_err(CommandError::cluster)?;
        if findings.check_lost().is_err() {
            println!("a majority answers in generation {}: done", findings.newest.generation);
            return Ok(());
        }
    }
    findings.check_lost().map_err(CommandError::cluster)?;
    println!("{}", findings.outlook());
    if !args.force_new_generation {
        return Err(CommandError::Usage("nothing was done: that takes --force-new-generation".into()));
    }
    if !args.yes && !confirmed()? {
        return Err(CommandError::Usage("nothing was done".into()));
    }
    let lost = findings.lost.clone();
    let done = runtime.block_on(0, move || async move { findings.recover().await });
    let done = done.map_err(CommandError::cluster)?;
    println!("generation {} has begun; nodes {} vote", done.generation, recovery::numbers(&done.voters));
    for node in &lost {
        println!(
            "node {node} is locked out: put an empty node into its place by `lockgate cluster replace-node`"
        );
    }
    if !lost.is_empty() {
        println!("the lost ones vote no more: say who does, beside those, by `lockgate cluster set-voters`");
    }
    for job in done.disputed {
        println!(
            "job {job} is disputed, nobody serves its slots: see `cluster status`, decide by `cluster assign`"
        );
    }
    Ok(())
}

fn confirmed() -> Result<bool, CommandError> {
    println!("type `recover` to do this:");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(CommandError::io("cannot read the confirmation"))?;
    Ok(line.trim() == "recover")
}

/// Decides a disputed job.
fn assign(args: &AssignArgs) -> Result<(), CommandError> {
    let (any, owner, (first, last)) = (args.any.node, ShardId(args.to), args.slots);
    let decided = operate(move || operations::decide(any, SlotRange::new(first, last), owner))?;
    for (job, slots) in decided {
        println!("job {job}: shard {owner} owns its {slots} slots, with what it has of them");
    }
    Ok(())
}

fn replace(args: &ReplaceNodeArgs) -> Result<(), CommandError> {
    let (any, dead, new) = (args.any.node, NodeId(args.dead), args.new);
    let done = operate(move || operations::replace_node(any, dead, new))?;
    let role = match done.shard {
        Some(shard) => format!(", copies shard {shard} now (see cluster status)"),
        None => ", without a role".to_owned(),
    };
    let votes = if done.votes { ", and votes" } else { "" };
    println!("node {dead} has left for good; node {} is in its place{role}{votes}", done.node);
    Ok(())
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
fn status(args: &StatusArgs) -> Result<(), CommandError> {
    let (runtime, node) = (tool_runtime()?, args.node);
    let survey = runtime.block_on(0, move || async move { survey::survey(node).await });
    let survey = survey.map_err(CommandError::cluster)?;
    if args.json {
        let json = serde_json::to_string(&survey).map_err(CommandError::cluster)?;
        println!("{json}");
    } else {
        println!("{}", survey::table(&survey));
    }
    Ok(())
}
