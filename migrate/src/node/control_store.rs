//! The control log on disk: the genesis in a file of its own, and consensus' records in a log like the engine's.
//!
//! Invariant: what [`append`] returns a position for must be synced before a message that rests on it is sent.

use std::path::PathBuf;

use lockgate_engine::Engine;
use lockgate_engine::log::{self, FrameHeader, FrameKind, Log, LogConfig, LogError, LogPosition};
use lockgate_runtime::fs;

use super::driver::DriverError;
use crate::control::{
    ClusterMap, CodecError, Genesis, Incarnation, NodeId, Persist, RaftConfig, RaftCore, RaftError, Replay,
    decode_genesis, encode_genesis, encode_persist,
};

/// Name of the control log beside the cores' logs.
const CONTROL_LOG: &str = "control";
/// Name of the file that holds the genesis.
const GENESIS_FILE: &str = "cluster";
/// Size of its files: its entries are small and rare.
const CONTROL_FILE_BYTES: u64 = 4 << 20;
/// Frame kind of consensus' records; the engine's kinds lie below.
const KIND_CONSENSUS: FrameKind = FrameKind(64);

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
    /// The directory belongs to another node than the genesis says.
    #[error("{0}")]
    Foreign(String),
    /// The genesis is larger than its format allows.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The control log could not be recovered.
    #[error("the control log: {0}")]
    Recover(#[from] log::RecoverError),
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
    pub log: Log,
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
    fs::write_atomic(&path, encode_genesis(genesis)?).await.map_err(|error| StoreError::Io { path, error })
}

/// Checks that a genesis is sound and names this directory.
pub(crate) fn check_genesis(engine: &Engine, genesis: &Genesis) -> Result<NodeId, String> {
    let directory = engine.boot().directory_id;
    ClusterMap::genesis(genesis.clone()).map_err(|error| error.to_string())?;
    let mine = genesis.nodes.iter().find(|info| info.incarnation.directory == directory);
    mine.map(|info| info.incarnation.node)
        .ok_or_else(|| "the genesis does not name this node's data directory".into())
}

/// Recovers the control log and restores consensus from it.
pub(crate) async fn open(engine: &Engine, genesis: Genesis) -> Result<Opened, StoreError> {
    let node = check_genesis(engine, &genesis).map_err(StoreError::Foreign)?;
    let boot = engine.boot();
    let me = Incarnation { node, directory: boot.directory_id, boot: boot.number };
    let map = ClusterMap::genesis(genesis).map_err(|error| StoreError::Foreign(error.to_string()))?;
    let config = RaftConfig::of_genesis(node, &map);
    let mut replay = Replay::new(config.start_index);
    let (dir, ends) = (engine.log_dir(), engine.known_ends(CONTROL_LOG).await);
    let recovered = log::recover(&dir, CONTROL_LOG, &ends, |header, payload| match header.kind {
        KIND_CONSENSUS => Ok(replay.push(payload)?),
        FrameKind(kind) => Err(format!("frame kind {kind} does not belong into a control log").into()),
    })
    .await?;
    engine.accept_ends(CONTROL_LOG, recovered.ends.clone()).await?;
    log::remove_unused_files(&recovered).await;
    let mut log_config = LogConfig::new(dir, CONTROL_LOG, boot.number);
    log_config.file_bytes = CONTROL_FILE_BYTES;
    let log = Log::create(log_config, recovered.position.0).await?;
    let raft = RaftCore::new(&config, replay.finish(), Box::new(lockgate_runtime::random_u64))?;
    Ok(Opened { me, map, raft, log })
}

/// Appends what consensus must keep. Returns the position to sync to; `None` if there was nothing.
pub(crate) fn append(log: &Log, persist: &Persist) -> Result<Option<LogPosition>, DriverError> {
    if persist.is_empty() {
        return Ok(None);
    }
    let record = encode_persist(persist)?;
    let header = FrameHeader { kind: KIND_CONSENSUS, slot: 0, generation: 0, term: 0, base: 0 };
    let reservation = log.reserve(record.len())?;
    Ok(Some(log.append(reservation, header, &[&record])?))
}
