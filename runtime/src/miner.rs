//! The root of a miner's actor tree, and the way in for the command.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cuckoo_kernels::KvKind;
use cuckoo_models::{Adapter, ArchSpec, ModelFiles, same_vocabulary};
use cuckoo_wire::limits::ADAPTERS_MAX;
use cuckoo_wire::message::{Price, WeightsHash};
use cuckoo_wire::{Address, Identity};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::device::{Adapters, Beyond, Device, DeviceArgs, DeviceConfig, DeviceKind, DraftConfig};
use crate::forward;
use crate::link::{Link, LinkArgs, LinkMsg, LinkStatus};
use crate::memory::{self, BatchWish, MemoryError, MemoryPlan, Room};

/// How a miner runs.
#[derive(Clone, Debug)]
pub struct MineConfig {
    /// Who it is; its earnings go to the account of this key.
    pub identity: Identity,
    /// Whom it works for, all of them at a time: each has a window of its own. At least one.
    pub schedulers: Vec<Address>,
    /// What its owner calls it.
    pub name: String,
    /// What computes.
    pub devices: Vec<DeviceKind>,
    /// What it serves, each of them on each device.
    pub models: Vec<ModelConfig>,
    /// What it asks.
    pub ask: Price,
    /// Sequences that run at once, a model and device; `None`: as many as suit the device.
    pub batch_sequences_max: Option<u32>,
    /// Rows of one step; `None`: as many as suit the device.
    pub step_tokens_max: Option<u32>,
    /// Draft tokens of one step; 0 turns speculation off.
    pub drafts_max: u32,
    /// Bytes for keys and values, a model and device; `None`: as many as suit the device.
    pub kv_bytes_max: Option<u64>,
    /// How they are kept.
    pub kv_kind: KvKind,
    /// Bytes of host memory for blocks whose room on the device is needed, a model; 0 where they are forgotten.
    pub spill_bytes_max: u64,
    /// Bytes for all that the models take on a device; `None`: what it has left.
    pub memory_bytes_max: Option<u64>,
    /// Longest sequence; `None`: as long as the models allow.
    pub context_tokens_max: Option<u32>,
}

/// A weights file whose hash has been verified.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The file.
    pub path: PathBuf,
    /// Its hash.
    pub hash: WeightsHash,
    /// The file of a small model with the same vocabulary that guesses its tokens. Nobody is offered it.
    pub draft: Option<PathBuf>,
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
    /// There is too little memory for a model; nothing was read.
    #[error("{path}: {why}")]
    Memory {
        /// The file.
        path: PathBuf,
        /// Which, by what it is for.
        why: MemoryError,
    },
    /// Another model cannot guess for it.
    #[error("{path} cannot draft: {why}")]
    Draft {
        /// The file of the draft model.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// More adapters than may be.
    #[error("{path}: {count} adapters are more than the {ADAPTERS_MAX} that can be offered: leave some out")]
    Adapters {
        /// The model's file.
        path: PathBuf,
        /// How many.
        count: usize,
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
    /// A device computes for ever, or is lost. What it ran goes on elsewhere; only a new process can have the device again.
    #[error("the miner is stuck: {0}; start it again")]
    Stuck(String),
}

/// A running miner. Dropping it does not stop it; [`Miner::stop`] does.
#[derive(Debug)]
pub struct Miner {
    root: ActorRef<RootMsg>,
    finished: JoinHandle<()>,
    /// One a link.
    statuses: Vec<watch::Receiver<LinkStatus>>,
    /// All of them together, a moment later.
    status: watch::Receiver<LinkStatus>,
    failure: watch::Receiver<Option<Failure>>,
}

/// What ended a miner.
#[derive(Clone, Debug)]
enum Failure {
    /// What only a new process mends.
    Stuck(String),
    /// Anything else.
    Other(String),
}

/// Loads the models and starts to work. Returns when everything is loaded; the link may still be connecting.
pub async fn mine(config: MineConfig) -> Result<Miner, MineError> {
    if config.schedulers.is_empty() {
        return Err(MineError::Start("no scheduler was named: name at least one".to_owned()));
    }
    let mut devices = Vec::new();
    for kind in &config.devices {
        let mut room = Room::on(kind, config.memory_bytes_max).map_err(|e| MineError::Start(format!("{kind}: {e}")))?;
        for model in &config.models {
            let (device, memory) = device_config(&config, (model, kind), room)?;
            tracing::info!(model = %model.path.display(), %kind, ?memory, ?room, "memory planned");
            room = room.without(&memory);
            devices.push(device);
        }
    }
    let (status_in, status) = watch::channel(LinkStatus::Connecting);
    let (failure_in, failure) = watch::channel(None);
    let (mut links, mut statuses) = (Vec::new(), Vec::new());
    for (index, scheduler) in config.schedulers.into_iter().enumerate() {
        let (status, seen) = watch::channel(LinkStatus::Connecting);
        let (identity, name) = (config.identity.clone(), config.name.clone());
        links.push(LinkArgs { index, identity, scheduler, name, status });
        statuses.push(seen);
    }
    tokio::spawn(all_statuses(statuses.clone(), status_in));
    let args = RootArgs { devices, links, failure: failure_in };
    let (root, finished) = Actor::spawn(None, Root, args).await.map_err(|error| match together(&statuses) {
        // A scheduler may say no before everything is loaded.
        LinkStatus::Refused(why) => MineError::Refused(why),
        _ => MineError::Start(error.to_string()),
    })?;
    Ok(Miner { root, finished, statuses, status, failure })
}

impl Miner {
    /// How it stands with its schedulers, now and later.
    pub fn status(&self) -> watch::Receiver<LinkStatus> {
        self.status.clone()
    }

    /// Waits until it ends by itself: never, unless it is refused or keeps failing.
    pub async fn ended(&mut self) -> MineError {
        let _ = (&mut self.finished).await;
        if let LinkStatus::Refused(why) = together(&self.statuses) {
            return MineError::Refused(why);
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

/// Keeps how it stands with all schedulers, for as long as there are links and somebody who asks.
async fn all_statuses(mut statuses: Vec<watch::Receiver<LinkStatus>>, all: watch::Sender<LinkStatus>) {
    loop {
        statuses.iter_mut().for_each(watch::Receiver::mark_unchanged);
        all.send_replace(together(&statuses));
        let changed = statuses.iter_mut().map(|status| Box::pin(status.changed()));
        tokio::select! {
            (changed, ..) = futures_util::future::select_all(changed) => if changed.is_err() { return },
            () = all.closed() => return,
        }
    }
}

/// How it stands with all schedulers: who is refused by one is to end, and who has left one may still work for another.
fn together(statuses: &[watch::Receiver<LinkStatus>]) -> LinkStatus {
    let (mut replicas, mut is_connected, mut has_drained) = (0, false, true);
    for status in statuses {
        match &*status.borrow() {
            LinkStatus::Refused(why) => return LinkStatus::Refused(why.clone()),
            LinkStatus::Connected { replicas: more } => (replicas, is_connected) = (replicas + more, true),
            LinkStatus::Connecting => has_drained = false,
            LinkStatus::Drained => {}
        }
    }
    match () {
        () if is_connected => LinkStatus::Connected { replicas },
        () if has_drained => LinkStatus::Drained,
        () => LinkStatus::Connecting,
    }
}

/// Opens a model's adapters, as many as may be.
fn adapters(model: &ModelConfig, spec: &ArchSpec) -> Result<Adapters, MineError> {
    let mut opened = Adapters::new();
    for (path, hash) in &model.adapters {
        // Named twice, it is still one.
        if opened.iter().all(|(known, ..)| known != hash) {
            let adapter = Adapter::open(path, spec);
            let adapter = adapter.map_err(|e| MineError::Model { path: path.clone(), why: e.to_string() })?;
            opened.push((*hash, path.clone(), Arc::new(adapter)));
        }
    }
    match opened.len() {
        count if count > ADAPTERS_MAX => Err(MineError::Adapters { path: model.path.clone(), count }),
        _ => Ok(opened),
    }
}

fn device_config(
    config: &MineConfig,
    (model, kind): (&ModelConfig, &DeviceKind),
    room: Room,
) -> Result<(DeviceConfig, MemoryPlan), MineError> {
    let failed = |why: String| MineError::Model { path: model.path.clone(), why };
    let files = ModelFiles::open(&model.path).map_err(|e| failed(e.to_string()))?;
    let spec = files.spec().map_err(|e| failed(e.to_string()))?;
    forward::check(&spec).map_err(|e| failed(e.to_string()))?;
    let adapters = adapters(model, &spec)?;
    let draft = model.draft.as_ref().map(|path| draft_config(config, path, &files)).transpose()?;
    let customary = kind.customary();
    let wish = BatchWish {
        sequences_max: config.batch_sequences_max.unwrap_or(customary.sequences_max),
        step_tokens_max: config.step_tokens_max.unwrap_or(customary.step_tokens_max),
        step_target: kind.step_target(),
        drafts_max: config.drafts_max,
        kv_bytes_max: config.kv_bytes_max.unwrap_or(customary.kv_bytes_max),
        kv_kind: config.kv_kind,
        spill_bytes: config.spill_bytes_max,
        context_tokens_max: config.context_tokens_max,
    };
    let planned = {
        let draft = draft.as_ref().map(|draft| (&*draft.files, &draft.spec));
        let adapters: Vec<&Adapter> = adapters.iter().map(|(.., adapter)| &**adapter).collect();
        memory::plan_on(kind, ((&files, &spec), draft, &adapters), &wish, room)
    };
    let (limits, memory) = planned.map_err(|why| MineError::Memory { path: model.path.clone(), why })?;
    let files = Arc::new(files);
    let kind = kind.clone();
    let device = DeviceConfig { kind, files, spec, hash: model.hash, draft, ask: config.ask, limits, adapters };
    Ok((device, memory))
}

/// A draft model for the model whose files are `target`, if it can be one.
fn draft_config(config: &MineConfig, path: &Path, target: &ModelFiles) -> Result<DraftConfig, MineError> {
    let failed = |why: String| MineError::Draft { path: path.to_owned(), why };
    if config.drafts_max == 0 {
        return Err(failed("there are to be no drafts: allow some, or leave it out".to_owned()));
    }
    let files = ModelFiles::open(path).map_err(|e| failed(e.to_string()))?;
    let spec = files.spec().map_err(|e| failed(e.to_string()))?;
    forward::check(&spec).map_err(|e| failed(e.to_string()))?;
    same_vocabulary(target, &files).map_err(|e| failed(e.to_string()))?;
    Ok(DraftConfig { files: Arc::new(files), spec })
}

#[derive(Debug)]
enum RootMsg {
    Drain,
}

struct RootArgs {
    devices: Vec<DeviceConfig>,
    links: Vec<LinkArgs>,
    failure: watch::Sender<Option<Failure>>,
}

struct Root;

struct RootState {
    links: Vec<ActorRef<LinkMsg>>,
    failure: watch::Sender<Option<Failure>>,
}

impl Actor for Root {
    type Msg = RootMsg;
    type State = RootState;
    type Arguments = RootArgs;

    async fn pre_start(&self, me: ActorRef<RootMsg>, args: RootArgs) -> Result<RootState, ActorProcessingErr> {
        let mut links = Vec::new();
        for link in args.links {
            links.push(Actor::spawn_linked(None, Link, link, me.get_cell()).await?.0);
        }
        for (index, config) in args.devices.iter().enumerate() {
            let args = DeviceArgs::new(index, config, links.clone());
            Actor::spawn_linked(None, Device, args, me.get_cell()).await?;
        }
        Ok(RootState { links, failure: args.failure })
    }

    async fn handle(
        &self,
        _me: ActorRef<RootMsg>,
        message: RootMsg,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RootMsg::Drain => {
                for link in &state.links {
                    link.cast(LinkMsg::Drain)?;
                }
                Ok(())
            }
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
            state.failure.send_replace(Some(match why.is::<Beyond>() {
                true => Failure::Stuck(why.to_string()),
                false => Failure::Other(why.to_string()),
            }));
            me.stop(Some(why.to_string()));
        }
        Ok(())
    }
}
