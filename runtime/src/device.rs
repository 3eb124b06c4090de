//! One device of a miner: supervises the batcher, which decides, and the executor, which computes. A fault in either
//! restarts both, and the link offers the device anew.
//!
//! Two faults are mended by no restart. A step that never comes back: a thread cannot be killed, and this one holds the weights,
//! the KV memory and the processors; a second one beside it would need as much again and get what is left over. And a GPU that
//! is lost: its driver answers this process nothing but the same error. So the sequences are released to go on elsewhere, and
//! then the miner ends, to be started afresh as a process.

mod batch;
mod batcher;
mod budget;
#[cfg(test)]
mod choices;
mod constraints;
mod draft_model;
mod engine;
mod executor;
mod kv_cache;
mod kv_plan;
mod masks;
mod speculation;
#[cfg(test)]
mod tests;
mod texts;
mod watchdog;
mod work;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cuckoo_kernels::KvKind;
use cuckoo_kernels::cuda::{Gpu, Profile};
use cuckoo_kernels::exact::CONTRACT_VERSION;
use cuckoo_kernels::ops::OpsError;
use cuckoo_models::{Adapter, ArchSpec, ModelFiles};
use cuckoo_wire::message::{KvFormat, Numerics, Offer, Price, ReplicaId, Task, WeightsHash, Window};
use ractor::thread_local::{ThreadLocalActor, ThreadLocalActorSpawner};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};

use crate::link::LinkMsg;

pub use batch::{
    Batch, BatchLimits, BatchStats, Draw, GuessedRow, Placeholder, STEPS_IN_FLIGHT_MAX, Score, StepOutput, StepPlan,
};
pub(crate) use batcher::{BatcherMsg, OutletId};
pub use budget::StepBudget;
pub use draft_model::{DraftPlan, Guess};
pub use engine::Engine;
pub use kv_cache::{BlockHash, HOLE, KvCache, KvCopy, KvWay};
pub use kv_plan::{GroupPlan, KvPlan};
pub use masks::{MaskWorkers, PendingMask, SharedMatcher};
pub use texts::{TextBatch, texts_per_step};
use watchdog::StepOverdue;

/// Restarts that are tried within [`RESTART_WINDOW`] before the fault is the whole miner's.
const RESTARTS_MAX: usize = 3;
/// See [`RESTARTS_MAX`].
const RESTART_WINDOW: Duration = Duration::from_secs(30);

/// How long the end of a stuck device's stream may take to reach the scheduler, before the miner ends.
const RELEASE_TIME: Duration = Duration::from_secs(1);

/// What computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// This machine's processors.
    Cpu {
        /// Threads that work on a step.
        threads: usize,
    },
    /// A GPU, and what it may do for speed.
    Cuda(Gpu, Profile),
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu { threads: 1 } => f.write_str("cpu, 1 thread"),
            Self::Cpu { threads } => write!(f, "cpu, {threads} threads"),
            Self::Cuda(gpu, _) => write!(f, "cuda:{}, {}", gpu.ordinal, gpu.name),
        }
    }
}

/// What a batch is like where nobody has said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Customary {
    /// Sequences that run at once.
    pub sequences_max: u32,
    /// Rows of one step.
    pub step_tokens_max: u32,
    /// Bytes for keys and values.
    pub kv_bytes_max: u64,
}

impl DeviceKind {
    /// How long a step should take: what those who decode wait for a prompt that joins them.
    pub(crate) fn step_target(&self) -> Duration {
        match self {
            Self::Cpu { .. } => Duration::from_millis(60),
            Self::Cuda(..) => Duration::from_millis(30),
        }
    }

    /// What suits it.
    pub fn customary(&self) -> Customary {
        match self {
            Self::Cpu { .. } => Customary { sequences_max: 16, step_tokens_max: 64, kv_bytes_max: 2 << 30 },
            // Its memory is there for nothing else.
            Self::Cuda(..) => Customary { sequences_max: 256, step_tokens_max: 2048, kv_bytes_max: u64::MAX },
        }
    }

    /// What decides the tokens of a model beside its weights: neither threads nor batches, drafts or spilled blocks do. `has_halves`
    /// says whether it has matrices of 16-bit floating-point numbers.
    fn numerics(&self, kv: KvKind, has_halves: bool) -> Numerics {
        let kv = match kv {
            KvKind::F16 => KvFormat::F16,
            KvKind::BF16 => KvFormat::BF16,
            KvKind::Q8_0 => KvFormat::Q8_0,
        };
        let tensor_cores = match self {
            // Other weights keep to the contract in that profile too, and so do adapters.
            Self::Cuda(Gpu { capability: (major, minor), .. }, Profile::Fast) if has_halves => {
                Some(u16::try_from(10 * major + minor).unwrap_or(u16::MAX))
            }
            Self::Cuda(..) | Self::Cpu { .. } => None,
        };
        Numerics { tensor_cores, ..Numerics::exact(CONTRACT_VERSION, kv) }
    }

    /// Threads that compute the masks of constrained sequences while a step is computed.
    fn mask_threads(&self) -> usize {
        match self {
            // A mask takes a hundredth of a step, so one thread serves many sequences and takes little from the others.
            Self::Cpu { threads } => threads.div_ceil(8),
            // Processors have little else to do, and a step is short.
            Self::Cuda(..) => std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2)),
        }
    }

    /// Steps that are handed to the executor before the first of them is done; at most [`STEPS_IN_FLIGHT_MAX`].
    fn steps_in_flight(&self) -> usize {
        match self {
            // Planning takes microseconds and a step of this device milliseconds. A second step would hide the one at
            // the price of making whoever arrives wait for the other.
            Self::Cpu { .. } => 1,
            Self::Cuda(..) => STEPS_IN_FLIGHT_MAX,
        }
    }
}

/// One model on one device.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// What computes.
    pub kind: DeviceKind,
    /// The model's files.
    pub files: Arc<ModelFiles>,
    /// Its architecture.
    pub spec: ArchSpec,
    /// Its hash.
    pub hash: WeightsHash,
    /// A small model that guesses for it.
    pub draft: Option<DraftConfig>,
    /// What the miner asks for its tokens.
    pub ask: Price,
    /// Extent of the batch.
    pub limits: BatchLimits,
    /// Adapters of the model.
    pub adapters: Adapters,
}

/// Adapters of one model, each with its hash and its file.
pub(crate) type Adapters = Vec<(WeightsHash, PathBuf, Arc<Adapter>)>;

/// A small model beside another, with the same vocabulary.
#[derive(Clone, Debug)]
pub struct DraftConfig {
    /// Its files.
    pub files: Arc<ModelFiles>,
    /// Its architecture.
    pub spec: ArchSpec,
}

impl DraftConfig {
    fn plan(&self, limits: &BatchLimits) -> DraftPlan {
        let context_tokens = u32::try_from(self.spec.context_tokens).unwrap_or(u32::MAX);
        DraftPlan { kv: KvPlan::new(&self.spec, &limits.of_draft()), context_tokens }
    }
}

impl DeviceConfig {
    fn load(&self) -> executor::Load {
        let args = executor::ExecutorArgs {
            device: self.kind.clone(),
            files: self.files.clone(),
            spec: self.spec.clone(),
            draft: self.draft.clone(),
            limits: self.limits,
            adapters: self.adapters.iter().map(|(_, path, adapter)| (path.clone(), adapter.clone())).collect(),
        };
        Arc::new(move || args.load())
    }

    fn read_tokenizer(&self) -> constraints::ReadTokenizer {
        let files = self.files.clone();
        Arc::new(move || files.tokenizer().map_err(|e| e.to_string()))
    }

    fn offer(&self, device: u32) -> Offer {
        Offer {
            replica: ReplicaId(0),
            weights: self.hash,
            context_tokens: self.limits.context_tokens,
            block_tokens: cuckoo_kernels::ops::KV_BLOCK_TOKENS as u32,
            ask: self.ask,
            window: Window::default(),
            task: if self.spec.is_encoder() { Task::Embed } else { Task::Generate },
            adapters: self.adapters.iter().map(|(hash, ..)| *hash).collect(),
            device,
            numerics: self.kind.numerics(self.limits.kv_kind, self.files.has_halves()),
        }
    }
}

/// Messages of a device.
pub(crate) enum DeviceMsg {
    /// Its sequences have been released; nothing is left to wait for.
    End(Beyond),
    /// Its model is not to be there any more.
    Unload,
}

/// A fault that only a new process mends.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Beyond(String);

impl Beyond {
    /// What `why` says, if it is such a fault.
    fn of(why: &ActorProcessingErr) -> Option<Self> {
        let lost = || matches!(why.downcast_ref::<OpsError>(), Some(OpsError::Lost(_)));
        (why.is::<StepOverdue>() || lost()).then(|| Self(why.to_string()))
    }
}

pub(crate) struct Device;

/// What a device starts with.
pub(crate) struct DeviceArgs {
    /// The number of the model on the device.
    slot: usize,
    load: executor::Load,
    limits: BatchLimits,
    kv: KvPlan,
    draft: Option<DraftPlan>,
    steps_in_flight: usize,
    offer: Offer,
    read_tokenizer: constraints::ReadTokenizer,
    mask_threads: usize,
    links: Vec<ActorRef<LinkMsg>>,
}

impl DeviceArgs {
    /// A model on the device of a miner with this number, which is offered on all `links`.
    pub(crate) fn new((slot, device): (usize, u32), config: &DeviceConfig, links: Vec<ActorRef<LinkMsg>>) -> Self {
        Self {
            slot,
            load: config.load(),
            limits: config.limits,
            kv: KvPlan::new(&config.spec, &config.limits),
            draft: config.draft.as_ref().map(|draft| draft.plan(&config.limits)),
            steps_in_flight: config.kind.steps_in_flight(),
            offer: config.offer(device),
            read_tokenizer: config.read_tokenizer(),
            mask_threads: config.kind.mask_threads(),
            links,
        }
    }
}

pub(crate) struct State {
    args: DeviceArgs,
    pair: Pair,
    restarts: Vec<Instant>,
    ending: Ending,
}

/// Whether it ends, and how.
#[derive(Clone, Copy, PartialEq)]
enum Ending {
    No,
    /// When the executor has given its memory back.
    Unloading,
    /// Within [`RELEASE_TIME`].
    Beyond,
}

/// The two children.
struct Pair {
    batcher: ActorCell,
    executor: ActorCell,
}

impl Actor for Device {
    type Msg = DeviceMsg;
    type State = State;
    type Arguments = DeviceArgs;

    async fn pre_start(&self, me: ActorRef<DeviceMsg>, args: DeviceArgs) -> Result<State, ActorProcessingErr> {
        let pair = Pair::start(&me, &args).await?;
        Ok(State { args, pair, restarts: Vec::new(), ending: Ending::No })
    }

    async fn handle(
        &self,
        _me: ActorRef<DeviceMsg>,
        message: DeviceMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DeviceMsg::End(fault) => Err(fault.into()),
            // What is beyond mending ends the miner, which this must not hide.
            DeviceMsg::Unload if state.ending == Ending::Beyond => Ok(()),
            DeviceMsg::Unload => {
                state.ending = Ending::Unloading;
                // The batcher stays: it sees whether the executor comes back from its last step.
                state.pair.executor.stop(None);
                Ok(())
            }
        }
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<DeviceMsg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (who, why) = match event {
            SupervisionEvent::ActorFailed(who, why) => (who, why),
            SupervisionEvent::ActorTerminated(who, _, why) => (who, why.unwrap_or_else(|| "stopped".to_owned()).into()),
            _ => return Ok(()),
        };
        if state.ending == Ending::Beyond || !state.pair.holds(&who) {
            return Ok(());
        }
        if let Some(fault) = Beyond::of(&why) {
            tracing::error!(device = state.args.slot, %fault, "device beyond mending; ending the miner");
            state.ending = Ending::Beyond;
            state.pair.stop();
            me.send_after(RELEASE_TIME, || DeviceMsg::End(fault));
            return Ok(());
        }
        if state.ending == Ending::Unloading {
            if who.get_id() == state.pair.executor.get_id() {
                // What is left of its children ends with it.
                me.stop(None);
            }
            return Ok(());
        }
        let now = Instant::now();
        state.restarts.retain(|t| now.duration_since(*t) < RESTART_WINDOW);
        if state.restarts.len() >= RESTARTS_MAX {
            return Err(format!("device {} failed {RESTARTS_MAX} times in a row: {why}", state.args.slot).into());
        }
        state.restarts.push(now);
        tracing::error!(device = state.args.slot, %why, "device fault; restarting it");
        state.pair.stop();
        state.pair = Pair::start(&me, &state.args).await?;
        Ok(())
    }
}

impl Pair {
    async fn start(me: &ActorRef<DeviceMsg>, args: &DeviceArgs) -> Result<Self, ActorProcessingErr> {
        let spawner = ThreadLocalActorSpawner::new();
        let (executor, _) = executor::Executor::spawn_linked(None, args.load.clone(), me.get_cell(), spawner).await?;
        let batcher_args = batcher::BatcherArgs {
            executor: executor.clone(),
            limits: args.limits,
            kv: args.kv.clone(),
            draft: args.draft.clone(),
            steps_in_flight: args.steps_in_flight,
            offer: args.offer.clone(),
            read_tokenizer: args.read_tokenizer.clone(),
            mask_threads: args.mask_threads,
        };
        let (batcher, _) = Actor::spawn_linked(None, batcher::Batcher, batcher_args, me.get_cell()).await?;
        for link in &args.links {
            link.cast(LinkMsg::Ready { slot: args.slot, batcher: batcher.clone() })?;
        }
        Ok(Self { batcher: batcher.get_cell(), executor: executor.get_cell() })
    }

    fn holds(&self, who: &ActorCell) -> bool {
        who.get_id() == self.batcher.get_id() || who.get_id() == self.executor.get_id()
    }

    fn stop(&self) {
        self.batcher.kill();
        self.executor.kill();
    }
}
