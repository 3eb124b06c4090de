//! The actor that owns a device's memory and runs its steps, on a thread of its own: a step blocks, and must block
//! nothing else. Decides nothing.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

#[cfg(feature = "cuda")]
use cuckoo_kernels::check::refuse_unsound;
#[cfg(not(feature = "cuda"))]
use cuckoo_kernels::cuda::NoGpu;
#[cfg(feature = "cuda")]
use cuckoo_kernels::cuda::{Cuda, Driver, Replay};
use cuckoo_kernels::ops::OpsError;
use cuckoo_kernels::{Cpu, Ops};
use cuckoo_models::{Adapter, ArchSpec, ModelFiles};
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use super::batch::{BatchLimits, StepOutput, StepPlan};
use super::batcher::BatcherMsg;
use super::engine::Engine;
use super::masks::PendingMask;
use super::{DeviceKind, DraftConfig};
use crate::forward::LoadError;

/// Messages of the executor.
#[allow(clippy::large_enum_variant, reason = "nearly all are steps, and mailboxes hold two")]
pub(super) enum ExecutorMsg {
    /// Compute, draw, and tell `reply_to`.
    Run {
        /// What to compute.
        plan: StepPlan,
        /// The mask of each draw that has one; they are computed meanwhile.
        masks: Vec<Option<PendingMask>>,
        /// Who asked.
        reply_to: ActorRef<BatcherMsg>,
    },
    /// Wait for the oldest step that was begun; its own wish, behind those that came meanwhile.
    Finish,
}

/// What to load, and where.
#[derive(Clone)]
pub(super) struct ExecutorArgs {
    pub(super) device: DeviceKind,
    pub(super) files: Arc<ModelFiles>,
    pub(super) spec: ArchSpec,
    pub(super) draft: Option<DraftConfig>,
    pub(super) limits: BatchLimits,
    /// Adapters and their files.
    pub(super) adapters: Vec<(PathBuf, Arc<Adapter>)>,
}

/// Loads what computes. Called on the executor's own thread, at each of its starts.
pub(super) type Load = Arc<dyn Fn() -> Result<Box<dyn Stepper>, LoadError> + Send + Sync>;

impl ExecutorArgs {
    /// Loads the model onto the device.
    pub(super) fn load(&self) -> Result<Box<dyn Stepper>, LoadError> {
        Ok(match &self.device {
            DeviceKind::Cpu { threads } => Box::new(Engine::load(Cpu::new(*threads), self)?),
            #[cfg(feature = "cuda")]
            DeviceKind::Cuda(gpu, profile) => {
                // Memory that the check needed is no model's, whose own was counted without it.
                let mut checked = Cuda::new(Replay::new(Driver::new(gpu)?));
                refuse_unsound(&mut checked)?;
                Box::new(Engine::load(Cuda::with_profile(checked.into_machine(), *profile), self)?)
            }
            #[cfg(not(feature = "cuda"))]
            DeviceKind::Cuda(..) => return Err(OpsError::Fault(NoGpu::NotBuilt.to_string()).into()),
        })
    }
}

#[derive(Default)]
pub(super) struct Executor;

/// What it computes with, and what it has begun.
pub(super) struct State {
    engine: Box<dyn Stepper>,
    /// Steps whose output is waited for, oldest first.
    begun: VecDeque<Begun>,
    /// When the last step was done.
    done: Instant,
}

struct Begun {
    plan: StepPlan,
    masks: Vec<Option<PendingMask>>,
    reply_to: ActorRef<BatcherMsg>,
    at: Instant,
}

impl ThreadLocalActor for Executor {
    type Msg = ExecutorMsg;
    type State = State;
    type Arguments = Load;

    async fn pre_start(&self, _me: ActorRef<ExecutorMsg>, load: Load) -> Result<State, ActorProcessingErr> {
        Ok(State { engine: load()?, begun: VecDeque::new(), done: Instant::now() })
    }

    /// A fault fails this actor; its supervisor starts the device afresh.
    async fn handle(
        &self,
        me: ActorRef<ExecutorMsg>,
        message: ExecutorMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ExecutorMsg::Run { plan, masks, reply_to } => {
                let begun = Begun { plan, masks, reply_to, at: Instant::now() };
                if begun.masks.iter().all(Option::is_none) && state.engine.begin(&begun.plan)? {
                    state.begun.push_back(begun);
                    me.cast(ExecutorMsg::Finish)?;
                } else {
                    while state.finish()? {}
                    let output = state.engine.step(&begun.plan, &begun.masks)?;
                    state.tell(begun, output);
                }
            }
            ExecutorMsg::Finish => _ = state.finish()?,
        }
        Ok(())
    }

    /// Gives memory back before anybody is told that this has stopped.
    async fn post_stop(&self, _me: ActorRef<ExecutorMsg>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.engine = Box::new(Unloaded);
        Ok(())
    }
}

/// What is left of an engine whose memory has been given back.
struct Unloaded;

impl Stepper for Unloaded {
    fn step(&mut self, _plan: &StepPlan, _masks: &[Option<PendingMask>]) -> Result<StepOutput, OpsError> {
        Err(OpsError::Fault("the model is unloaded".to_owned()))
    }
}

impl State {
    /// Waits for the oldest step; `false` if there is none.
    fn finish(&mut self) -> Result<bool, OpsError> {
        let Some(begun) = self.begun.pop_front() else { return Ok(false) };
        let output = self.engine.finish()?;
        self.tell(begun, output);
        Ok(true)
    }

    /// Tells whoever asked. A step takes its time from when it was begun, or when the one before it was done.
    fn tell(&mut self, Begun { plan, masks, reply_to, at }: Begun, output: StepOutput) {
        let now = Instant::now();
        let took = now.duration_since(at.max(self.done)).saturating_sub(output.passes.iter().sum());
        self.done = now;
        // A batcher that is gone has nobody to tell.
        let _ = reply_to.cast(BatcherMsg::Stepped { plan, masks, output, took });
    }
}

/// A loaded model on some backend.
pub(super) trait Stepper {
    /// Computes a step and draws its tokens, when those that were begun are finished.
    fn step(&mut self, plan: &StepPlan, masks: &[Option<PendingMask>]) -> Result<StepOutput, OpsError>;

    /// Begins a step without masks; see [`Engine::begin`].
    fn begin(&mut self, _plan: &StepPlan) -> Result<bool, OpsError> {
        Ok(false)
    }

    /// See [`Engine::finish`].
    fn finish(&mut self) -> Result<StepOutput, OpsError> {
        Err(OpsError::Fault("no step was begun".to_owned()))
    }
}

impl<O: Ops> Stepper for Engine<O> {
    fn step(&mut self, plan: &StepPlan, masks: &[Option<PendingMask>]) -> Result<StepOutput, OpsError> {
        self.step_masked(plan, masks)
    }

    fn begin(&mut self, plan: &StepPlan) -> Result<bool, OpsError> {
        Engine::begin(self, plan)
    }

    fn finish(&mut self) -> Result<StepOutput, OpsError> {
        Engine::finish(self)
    }
}
