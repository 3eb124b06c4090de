//! The way into a miner for the command: what it starts with, how it stands, how it ends.

mod root;
mod stock;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cuckoo_kernels::KvKind;
use cuckoo_wire::limits::{ADAPTERS_MAX, DEVICES_MAX, LOADABLE_MAX};
use cuckoo_wire::message::{Price, WeightsHash};
use cuckoo_wire::{Address, Identity};
use ractor::{Actor, ActorRef};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::device::DeviceKind;
use crate::link::{LinkConfig, LinkStatus};
use crate::memory::{MemoryError, Room};
use root::{DeviceRoom, Failure, Root, RootArgs, RootMsg};
use stock::Stock;

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
    /// What it may serve, each of them on each device: at first the first one, and those after it that fit beside it. Later
    /// whichever are needed, as far as they fit.
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

/// Loads what there is to be at first and starts to work. Returns when that is loaded; the link may still be connecting.
pub async fn mine(config: MineConfig) -> Result<Miner, MineError> {
    if config.schedulers.is_empty() {
        return Err(MineError::Start("no scheduler was named: name at least one".to_owned()));
    }
    for (what, count, max) in
        [("models", config.models.len(), LOADABLE_MAX), ("devices", config.devices.len(), DEVICES_MAX)]
    {
        if count > max {
            return Err(MineError::Start(format!("{count} {what} are more than the {max} of one miner: name fewer")));
        }
    }
    let stock = Arc::new(Stock::open(config.clone())?);
    let mut devices: Vec<DeviceRoom> = Vec::new();
    for kind in &config.devices {
        let room = Room::on(kind, config.memory_bytes_max).map_err(|e| MineError::Start(format!("{kind}: {e}")))?;
        devices.push(DeviceRoom::new(&stock, kind.clone(), room)?);
    }
    let (status_in, status) = watch::channel(LinkStatus::Connecting);
    let (failure_in, failure) = watch::channel(None);
    let (mut links, mut statuses) = (Vec::new(), Vec::new());
    for (index, scheduler) in config.schedulers.into_iter().enumerate() {
        let (status, seen) = watch::channel(LinkStatus::Connecting);
        let (identity, name) = (config.identity.clone(), config.name.clone());
        links.push(LinkConfig { index, identity, scheduler, name, status });
        statuses.push(seen);
    }
    tokio::spawn(all_statuses(statuses.clone(), status_in));
    let args = RootArgs { stock, devices, links, failure: failure_in };
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
