//! The control log on disk: the genesis in a file of its own, beside it the number of a node that came later, and
//! consensus' records in a log like the engine's.
//!
//! Invariants: what [`append`] returns must be synced before a message that rests on it is sent. Recovery is the newest
//! snapshot and the records after it ([`mod@log`]); the genesis is the first snapshot.

mod log;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;

use lockgate_engine::Engine;
use lockgate_engine::log::{FrameKind, LogError, LogPosition, RecoverError, recover, remove_unused_files};
use lockgate_runtime::{fs, mutation};

use super::driver::DriverError;
use crate::control::{
    ClusterId, ClusterMap, CodecError, Genesis, Incarnation, MapSnapshot, Members, NodeId, Persist,
    RaftConfig, RaftCore, RaftError, Replay, Restored, decode_genesis, decode_leaving, decode_map,
    decode_membership, encode_genesis, encode_leaving, encode_map, encode_membership,
};

pub(crate) use log::{Appended, ControlLog};
use log::{KIND_CONSENSUS, create, forget, log_name, number_of_file, remove_files};

/// Name of the file that holds the genesis.
const GENESIS_FILE: &str = "cluster";
/// Name of the file that holds the number of a node that the genesis does not name.
const MEMBERSHIP_FILE: &str = "membership";

/// Why the control log or the genesis cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The genesis file is damaged.
    #[error("{}: the genesis is damaged ({why}); restore the file from another node of the cluster", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The file with this node's number is damaged.
    #[error(
        "{}: this node's number is damaged ({why}); start it with an empty data directory, and put it into its own place \
         under a new number",
        path.display()
    )]
    DamagedMembership {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The directory belongs to another node than the genesis says.
    #[error("{0}")]
    Foreign(String),
    /// The genesis is larger than its format allows.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The control log could not be recovered.
    #[error("the control log: {0}")]
    Recover(#[from] RecoverError),
    /// The snapshot that it goes on from is gone.
    #[error(
        "the control log: {why}. What this node has promised to the others is lost with it: restore the data directory \
         from a copy that is not older, or take the node out of the cluster and add it with an empty directory under a \
         new node number"
    )]
    Lost {
        /// What is missing or damaged.
        why: String,
    },
    /// Where it ends could not be recorded.
    #[error("the control log: {0}")]
    Meta(#[from] lockgate_engine::meta::MetaError),
    /// It could not be continued.
    #[error("the control log: {0}")]
    Log(#[from] LogError),
    /// Consensus could not be restored from it.
    #[error("the control log: {0}")]
    Raft(#[from] RaftError),
}

/// What a driver starts from.
pub(crate) struct Opened {
    pub me: Incarnation,
    pub map: ClusterMap,
    pub raft: RaftCore,
    pub log: ControlLog,
}

fn genesis_path(engine: &Engine) -> PathBuf {
    engine.path().join(GENESIS_FILE)
}

/// The genesis that this directory was given, if any.
pub(crate) async fn load_genesis(engine: &Engine) -> Result<Option<Genesis>, StoreError> {
    let path = genesis_path(engine);
    if !fs::exists(&path).await {
        return Ok(None);
    }
    let bytes = fs::read(&path).await.map_err(|error| StoreError::Io { path: path.clone(), error })?;
    let genesis =
        decode_genesis(&bytes).map_err(|error| StoreError::Damaged { path, why: error.to_string() })?;
    Ok(Some(genesis))
}

/// Makes the genesis durable.
pub(crate) async fn save_genesis(engine: &Engine, genesis: &Genesis) -> Result<(), StoreError> {
    let path = genesis_path(engine);
    let is_durable = !mutation!("unsynced-genesis");
    fs::replace(&path, encode_genesis(genesis)?, is_durable)
        .await
        .map_err(|error| StoreError::Io { path, error })
}

/// The number under which this directory joined that cluster after its beginning, if it did.
async fn load_membership(engine: &Engine, cluster: ClusterId) -> Result<Option<NodeId>, StoreError> {
    let path = engine.path().join(MEMBERSHIP_FILE);
    if !fs::exists(&path).await {
        return Ok(None);
    }
    let bytes = fs::read(&path).await.map_err(|error| StoreError::Io { path: path.clone(), error })?;
    let (of, node) = decode_membership(&bytes)
        .map_err(|error| StoreError::DamagedMembership { path, why: error.to_string() })?;
    Ok((of == cluster).then_some(node))
}

/// Makes the number durable under which this directory joins a cluster. It counts once the genesis is there too.
pub(crate) async fn save_membership(
    engine: &Engine,
    cluster: ClusterId,
    node: NodeId,
) -> Result<(), StoreError> {
    let path = engine.path().join(MEMBERSHIP_FILE);
    let bytes = encode_membership(cluster, node)?;
    let is_durable = !mutation!("unsynced-membership");
    fs::replace(&path, bytes, is_durable).await.map_err(|error| StoreError::Io { path, error })
}

/// Name of the file that says which generation of the cluster this directory's node has left.
const LEAVING_FILE: &str = "leaving";

/// That a node has left a generation of its cluster.
pub(crate) struct Leaving {
    /// Which.
    pub generation: u64,
    /// What the next one begins with, once it is known.
    pub next: Option<MapSnapshot>,
}

/// What this directory's node has last left, if it ever did.
async fn load_leaving(engine: &Engine) -> Result<Option<Leaving>, StoreError> {
    let path = engine.path().join(LEAVING_FILE);
    if !fs::exists(&path).await {
        return Ok(None);
    }
    let bytes = fs::read(&path).await.map_err(|error| StoreError::Io { path, error })?;
    let (generation, next) = decode_leaving(&bytes)?;
    Ok(Some(Leaving { generation, next }))
}

/// Makes it durable that the node has left.
pub(crate) async fn save_leaving(engine: &Engine, leaving: &Leaving) -> Result<(), StoreError> {
    let path = engine.path().join(LEAVING_FILE);
    let bytes = encode_leaving(leaving.generation, leaving.next.as_ref())?;
    let is_durable = !mutation!("unsynced-leaving");
    fs::replace(&path, bytes, is_durable).await.map_err(|error| StoreError::Io { path, error })
}

/// How this directory's node has left that generation, if it has.
pub(crate) async fn load_left(engine: &Engine, generation: u64) -> Result<Option<Leaving>, StoreError> {
    Ok(load_leaving(engine).await?.filter(|leaving| leaving.generation == generation))
}

/// Name of the file that says that answers of this directory's node did not always wait for its disk.
const UNSYNCED_ANSWERS_FILE: &str = "unsynced-answers";

/// Whether every answer that this directory's node ever gave as a primary waited until its disk had it: also this boot's,
/// which waits for disks if `synced`. What was once weaker is noted for good, before the first such answer.
pub(crate) async fn always_synced(engine: &Engine, synced: bool) -> Result<bool, StoreError> {
    let path = engine.path().join(UNSYNCED_ANSWERS_FILE);
    if fs::exists(&path).await {
        return Ok(false);
    }
    if !synced {
        let is_durable = !mutation!("unsynced-answers-marker");
        fs::replace(&path, Vec::new(), is_durable).await.map_err(|error| StoreError::Io { path, error })?;
    }
    Ok(synced)
}

/// Checks that a genesis is sound, and finds this directory's number: the genesis names it, or it joined as another one.
pub(crate) fn check_genesis(
    engine: &Engine,
    genesis: &Genesis,
    joins_as: Option<NodeId>,
) -> Result<NodeId, String> {
    let directory = engine.boot().directory_id;
    let map = ClusterMap::genesis(genesis.clone()).map_err(|error| error.to_string())?;
    let mine = genesis.nodes.iter().find(|info| info.incarnation.directory == directory);
    match (mine.map(|info| info.incarnation.node), joins_as) {
        (Some(named), None) => Ok(named),
        (Some(named), Some(node)) if named == node => Ok(named),
        (Some(named), Some(node)) => Err(format!("the genesis names this node {named}, not {node}")),
        (None, Some(node)) if node.0 == 0 || map.nodes.contains_key(&node) => {
            Err(format!("node number {node} cannot be given to a node that joins later"))
        }
        (None, Some(node)) => Ok(node),
        (None, None) => Err("the genesis does not name this node's data directory".into()),
    }
}

/// Recovers the control log and restores consensus and the map from it.
pub(crate) async fn open(engine: &Engine, genesis: Genesis) -> Result<Opened, StoreError> {
    let joined_as = load_membership(engine, genesis.cluster).await?;
    let node = check_genesis(engine, &genesis, joined_as).map_err(StoreError::Foreign)?;
    let boot = engine.boot();
    let me = Incarnation { node, directory: boot.directory_id, boot: boot.number };
    let first = ClusterMap::genesis(genesis).map_err(|error| StoreError::Foreign(error.to_string()))?;
    let config = RaftConfig::of_genesis(node, &first);
    let numbers = log_numbers(engine).await?;
    let found = recover_newest(engine, &config, &numbers).await?;
    let mut restored = found.replay.finish();
    let map = start_map(&config, first, &mut restored)?;
    for &other in numbers.iter().filter(|number| **number != found.number) {
        // Those before it are covered by its snapshot; those after it were never begun.
        forget(engine, other).await?;
        remove_files(&engine.log_dir(), other).await;
    }
    let log = create(engine, found.number, found.position).await?;
    let next_number = numbers.last().map_or(0, |last| *last).max(found.number) + 1;
    let log = ControlLog::new(engine.clone(), log, found.number, next_number);
    let raft = RaftCore::new(&config, restored, Box::new(lockgate_runtime::random_u64))?;
    Ok(Opened { me, map, raft, log })
}

/// The control logs that have files.
async fn log_numbers(engine: &Engine) -> Result<BTreeSet<u64>, StoreError> {
    let dir = engine.log_dir();
    if !fs::exists(&dir).await {
        return Ok(BTreeSet::new());
    }
    let files = fs::read_dir(&dir).await.map_err(|error| StoreError::Io { path: dir, error })?;
    Ok(files.iter().filter_map(|file| number_of_file(file)).collect())
}

/// The log that counts, as it was recovered.
struct Found {
    number: u64,
    replay: Replay,
    position: LogPosition,
}

/// Recovers the newest log that was begun. The first log always was, by the genesis.
async fn recover_newest(
    engine: &Engine,
    config: &RaftConfig,
    numbers: &BTreeSet<u64>,
) -> Result<Found, StoreError> {
    for &number in numbers.iter().rev() {
        if let Some(found) = recover_log(engine, config, number).await? {
            return Ok(found);
        }
    }
    if let Some(last) = numbers.last() {
        let why =
            format!("{} does not begin with a whole snapshot, and there is no older log", log_name(*last));
        return Err(StoreError::Lost { why });
    }
    // Nothing is there: a new log, unless there was one once.
    let found = recover_log(engine, config, 0).await?;
    found.ok_or_else(|| StoreError::Lost { why: "its first log cannot be begun".into() })
}

/// Recovers one log. `None` if it was never begun: then nothing of it is recorded.
async fn recover_log(engine: &Engine, config: &RaftConfig, number: u64) -> Result<Option<Found>, StoreError> {
    let name = log_name(number);
    let mut replay = Replay::new(config.start_index);
    let (dir, ends) = (engine.log_dir(), engine.known_ends(&name).await);
    let recovered = recover(&dir, &name, None, &ends, |header, payload| match header.kind {
        KIND_CONSENSUS => {
            replay.push(payload)?;
            if number > 0 && !replay.has_snapshot() {
                return Err("it does not begin with a snapshot".into());
            }
            Ok(())
        }
        FrameKind(kind) => Err(format!("frame kind {kind} does not belong into a control log").into()),
    })
    .await?;
    if number > 0 && !replay.has_snapshot() {
        return Ok(None);
    }
    engine.accept_ends(&name, recovered.ends.clone()).await?;
    remove_unused_files(&recovered).await;
    Ok(Some(Found { number, replay, position: recovered.position }))
}

/// The map to start with. Without a snapshot it is the genesis, which becomes one: for members that come later.
fn start_map(
    config: &RaftConfig,
    first: ClusterMap,
    restored: &mut Restored,
) -> Result<ClusterMap, StoreError> {
    let Some(snapshot) = &restored.snapshot else {
        let members = Members::new(config.voters.clone(), config.learners.clone());
        let (index, term, map) = (config.start_index, config.start_term, encode_map(&first)?);
        restored.snapshot = Some(MapSnapshot { index, term, members, map });
        return Ok(first);
    };
    let lost = |why: String| StoreError::Lost { why: format!("its snapshot cannot be used, {why}") };
    let map = decode_map(&snapshot.map).map_err(|error| lost(error.to_string()))?;
    if map.applied != snapshot.index {
        return Err(lost(format!("the map in it is of index {}, not {}", map.applied, snapshot.index)));
    }
    if map.cluster != first.cluster {
        return Err(StoreError::Foreign("the control log is of another cluster than the genesis".into()));
    }
    Ok(map)
}

/// Appends what consensus must keep. Returns what is to be synced; `None` if there was nothing.
pub(crate) fn append(log: &ControlLog, persist: &Persist) -> Result<Option<Appended>, DriverError> {
    log.append(persist)
}
