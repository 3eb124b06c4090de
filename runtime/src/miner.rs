//! The root of a miner's actor tree, and the way in for the command.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cuckoo_kernels::ops::KV_BLOCK_TOKENS;
use cuckoo_models::{Adapter, ArchSpec, Gguf};
use cuckoo_wire::limits::ADAPTERS_MAX;
use cuckoo_wire::message::{Price, WeightsHash};
use cuckoo_wire::{Address, Identity};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::device::{BatchLimits, Device, DeviceArgs, DeviceConfig, DeviceKind, KvPlan, StepOverdue};
use crate::forward::{self, Workspace};
use crate::link::{Link, LinkArgs, LinkMsg, LinkStatus};

/// How a miner runs.
#[derive(Clone, Debug)]
pub struct MineConfig {
    /// Who it is; its earnings go to the account of this key.
    pub identity: Identity,
    /// Whom it works for.
    pub scheduler: Address,
    /// What its owner calls it.
    pub name: String,
    /// What it serves, each on this machine's processors.
    pub models: Vec<ModelConfig>,
    /// What it asks.
    pub ask: Price,
    /// Threads that compute.
    pub threads: usize,
    /// Sequences that run at once, a model.
    pub batch_sequences_max: u32,
    /// Rows of one step.
    pub step_tokens_max: u32,
    /// Draft tokens of one step; 0 turns speculation off.
    pub drafts_max: u32,
    /// Bytes for keys and values, a model.
    pub kv_bytes_max: u64,
    /// Bytes for adapters, a model.
    pub adapter_bytes_max: u64,
}

/// A weights file whose hash has been verified.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The file.
    pub path: PathBuf,
    /// Its hash.
    pub hash: WeightsHash,
    /// Files of adapters that are served beside it, and their hashes.
    pub adapters: Vec<(PathBuf, WeightsHash)>,
}

/// Why a miner did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum MineError {
    /// The file cannot be read as a model.
    #[error("{path}: {why}")]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Too little memory was allowed.
    #[error("{path}: {allowed} bytes for keys and values hold no sequence: at least {needed} are needed")]
    KvMemory {
        /// The file.
        path: PathBuf,
        /// What was allowed.
        allowed: u64,
        /// One block.
        needed: u64,
    },
    /// More adapters than may be.
    #[error("{path}: {what}: leave some out, or allow them more memory")]
    Adapters {
        /// The model's file.
        path: PathBuf,
        /// How many, or how large.
        what: String,
    },
    /// Loading failed.
    #[error("the miner could not start: {0}")]
    Start(String),
    /// The scheduler will not have this miner.
    #[error("refused by the scheduler: {0}")]
    Refused(String),
    /// A device keeps failing.
    #[error("the miner failed: {0}")]
    Failed(String),
    /// A device computes for ever. What it ran goes on elsewhere; only a new process can have the device again.
    #[error("the miner is stuck: {0}; start it again")]
    Stuck(String),
}

/// A running miner. Dropping it does not stop it; [`Miner::stop`] does.
#[derive(Debug)]
pub struct Miner {
    root: ActorRef<RootMsg>,
    finished: JoinHandle<()>,
    status: watch::Receiver<LinkStatus>,
    failure: watch::Receiver<Option<Failure>>,
}

/// What ended a miner.
#[derive(Clone, Debug)]
enum Failure {
    /// A step that never came back.
    Stuck(String),
    /// Anything else.
    Other(String),
}

/// Loads the models and starts to work. Returns when everything is loaded; the link may still be connecting.
pub async fn mine(config: MineConfig) -> Result<Miner, MineError> {
    let devices = config.models.iter().map(|m| device_config(&config, m)).collect::<Result<Vec<_>, _>>()?;
    let (status_in, status) = watch::channel(LinkStatus::Connecting);
    let (failure_in, failure) = watch::channel(None);
    let link =
        LinkArgs { identity: config.identity, scheduler: config.scheduler, name: config.name, status: status_in };
    let args = RootArgs { devices, link, failure: failure_in };
    let (root, finished) = Actor::spawn(None, Root, args).await.map_err(|error| match &*status.borrow() {
        // The scheduler may say no before everything is loaded.
        LinkStatus::Refused(why) => MineError::Refused(why.clone()),
        _ => MineError::Start(error.to_string()),
    })?;
    Ok(Miner { root, finished, status, failure })
}

impl Miner {
    /// How it stands with its scheduler, now and later.
    pub fn status(&self) -> watch::Receiver<LinkStatus> {
        self.status.clone()
    }

    /// Waits until it ends by itself: never, unless it is refused or keeps failing.
    pub async fn ended(&mut self) -> MineError {
        let _ = (&mut self.finished).await;
        if let LinkStatus::Refused(why) = &*self.status.borrow() {
            return MineError::Refused(why.clone());
        }
        match self.failure.borrow().clone() {
            Some(Failure::Stuck(why)) => MineError::Stuck(why),
            Some(Failure::Other(why)) => MineError::Failed(why),
            None => MineError::Failed("stopped".to_owned()),
        }
    }

    /// Accepts nothing more, finishes what runs within `patience`, and stops.
    pub async fn stop(self, patience: Duration) {
        let mut status = self.status.clone();
        if self.root.cast(RootMsg::Drain).is_ok() {
            let done = |s: &LinkStatus| !matches!(s, LinkStatus::Connected { .. });
            let _ = tokio::time::timeout(patience, status.wait_for(done)).await;
        }
        self.root.stop(None);
        let _ = self.finished.await;
    }
}

fn device_config(config: &MineConfig, model: &ModelConfig) -> Result<DeviceConfig, MineError> {
    let failed = |why: String| MineError::Model { path: model.path.clone(), why };
    let gguf = Gguf::open(&model.path).map_err(|e| failed(e.to_string()))?;
    let spec = ArchSpec::from_gguf(&gguf).map_err(|e| failed(e.to_string()))?;
    forward::check(&spec).map_err(|e| failed(e.to_string()))?;
    let kind = DeviceKind::Cpu { threads: config.threads };
    let limits = limits(config, kind, &spec, &model.path)?;
    let adapters = adapters(config, model, &spec)?;
    Ok(DeviceConfig {
        kind,
        weights: model.path.clone(),
        gguf: Arc::new(gguf),
        spec,
        hash: model.hash,
        ask: config.ask,
        limits,
        adapters,
    })
}

/// Opens a model's adapters, as many and as large as may be.
fn adapters(
    config: &MineConfig,
    model: &ModelConfig,
    spec: &ArchSpec,
) -> Result<Vec<(WeightsHash, PathBuf, Arc<Adapter>)>, MineError> {
    let refused = |what| MineError::Adapters { path: model.path.clone(), what };
    let mut opened: Vec<(WeightsHash, PathBuf, Arc<Adapter>)> = Vec::new();
    for (path, hash) in &model.adapters {
        // Named twice, it is still one.
        if opened.iter().all(|(known, ..)| known != hash) {
            let adapter = Adapter::open(path, spec);
            let adapter = adapter.map_err(|e| MineError::Model { path: path.clone(), why: e.to_string() })?;
            opened.push((*hash, path.clone(), Arc::new(adapter)));
        }
    }
    let bytes: u64 = opened.iter().map(|(.., adapter)| forward::Adapter::bytes(adapter)).sum();
    match () {
        () if opened.len() > ADAPTERS_MAX => {
            Err(refused(format!("{} adapters are more than the {ADAPTERS_MAX} that can be offered", opened.len())))
        }
        () if bytes > config.adapter_bytes_max => {
            Err(refused(format!("adapters take {bytes} bytes of the {} allowed", config.adapter_bytes_max)))
        }
        () => {
            tracing::info!(adapters = opened.len(), bytes, "adapters planned");
            Ok(opened)
        }
    }
}

/// The batch that fits the memory allowed: as many blocks as all sequences need at full length, or as many as fit.
fn limits(
    config: &MineConfig,
    kind: DeviceKind,
    spec: &ArchSpec,
    path: &std::path::Path,
) -> Result<BatchLimits, MineError> {
    let context_blocks = (spec.context_tokens as u64).div_ceil(KV_BLOCK_TOKENS as u64);
    let wanted = context_blocks.saturating_mul(u64::from(config.batch_sequences_max));
    let mut limits = BatchLimits {
        sequences_max: config.batch_sequences_max,
        step_tokens_max: config.step_tokens_max.max(config.batch_sequences_max),
        step_target: kind.step_target(),
        drafts_max: config.drafts_max,
        kv_blocks: u32::try_from(wanted).unwrap_or(u32::MAX),
        context_tokens: 0,
    };
    limits.kv_blocks = KvPlan::blocks_within(spec, &limits, config.kv_bytes_max);
    if limits.kv_blocks == 0 {
        let block = KvPlan::new(spec, &BatchLimits { kv_blocks: 1, ..limits });
        let needed = block.device_bytes();
        return Err(MineError::KvMemory { path: path.to_owned(), allowed: config.kv_bytes_max, needed });
    }
    let positions = u64::from(limits.kv_blocks) * KV_BLOCK_TOKENS as u64;
    limits.context_tokens = (spec.context_tokens as u64).min(positions) as u32;
    let (rows, draws) = (limits.step_tokens_max as usize, limits.draws_max() as usize);
    let work = Workspace::<cuckoo_kernels::Cpu>::bytes(spec, rows, draws);
    let kv = KvPlan::new(spec, &limits);
    tracing::info!(kv_bytes = kv.device_bytes(), activations_bytes = work, "memory planned");
    Ok(limits)
}

#[derive(Debug)]
enum RootMsg {
    Drain,
}

struct RootArgs {
    devices: Vec<DeviceConfig>,
    link: LinkArgs,
    failure: watch::Sender<Option<Failure>>,
}

struct Root;

struct RootState {
    link: ActorRef<LinkMsg>,
    failure: watch::Sender<Option<Failure>>,
}

impl Actor for Root {
    type Msg = RootMsg;
    type State = RootState;
    type Arguments = RootArgs;

    async fn pre_start(&self, me: ActorRef<RootMsg>, args: RootArgs) -> Result<RootState, ActorProcessingErr> {
        let (link, _) = Actor::spawn_linked(None, Link, args.link, me.get_cell()).await?;
        for (index, config) in args.devices.iter().enumerate() {
            let args = DeviceArgs::new(index, config, link.clone());
            Actor::spawn_linked(None, Device, args, me.get_cell()).await?;
        }
        Ok(RootState { link, failure: args.failure })
    }

    async fn handle(
        &self,
        _me: ActorRef<RootMsg>,
        message: RootMsg,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RootMsg::Drain => Ok(state.link.cast(LinkMsg::Drain)?),
        }
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<RootMsg>,
        event: SupervisionEvent,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        // Link and devices mend what they can by themselves; what reaches this far is the miner's end.
        if let SupervisionEvent::ActorFailed(_, why) = event {
            state.failure.send_replace(Some(match why.is::<StepOverdue>() {
                true => Failure::Stuck(why.to_string()),
                false => Failure::Other(why.to_string()),
            }));
            me.stop(Some(why.to_string()));
        }
        Ok(())
    }
}
