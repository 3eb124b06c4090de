#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};

use cuckoo_kernels::KvKind;
use cuckoo_kernels::ops::{KV_BLOCK_TOKENS, OpsError};
use cuckoo_wire::message::{Assign, End, ReplicaFrame, ReplicaId, SequenceId};
use tokio::sync::mpsc;

use super::executor::Stepper;
use super::*;

/// A small batch.
pub(super) const LIMITS: BatchLimits = BatchLimits {
    sequences_max: 4,
    step_tokens_max: 64,
    step_target: Duration::MAX,
    drafts_max: 0,
    kv_blocks: 64,
    kv_kind: KvKind::F16,
    spill_bytes: 0,
    context_tokens: 1_000,
};

/// Draws ones, once the test lets each step end: until then it blocks its thread, as a lost device would.
struct Blocking(Receiver<()>);

impl Stepper for Blocking {
    fn step(&mut self, plan: &StepPlan, _: &[Option<PendingMask>]) -> Result<StepOutput, OpsError> {
        let _ = self.0.recv();
        Ok(StepOutput::of(&vec![1; plan.draws.len()]))
    }
}

/// A GPU that falls off the bus at its first step.
struct Lost;

impl Stepper for Lost {
    fn step(&mut self, _: &StepPlan, _: &[Option<PendingMask>]) -> Result<StepOutput, OpsError> {
        Err(OpsError::Lost("an illegal memory access was encountered".to_owned()))
    }
}

/// A link that hands every batcher to the test.
struct Batchers;

impl Actor for Batchers {
    type Msg = LinkMsg;
    type State = mpsc::Sender<ActorRef<BatcherMsg>>;
    type Arguments = Self::State;

    async fn pre_start(&self, _: ActorRef<LinkMsg>, to: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        Ok(to)
    }

    async fn handle(
        &self,
        _: ActorRef<LinkMsg>,
        message: LinkMsg,
        to: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LinkMsg::Ready { batcher, .. } => Ok(to.send(batcher).await?),
            _ => Ok(()),
        }
    }
}

/// Notes how a device failed.
struct Owner;

impl Actor for Owner {
    type Msg = ();
    type State = mpsc::Sender<ActorProcessingErr>;
    type Arguments = Self::State;

    async fn pre_start(&self, _: ActorRef<()>, to: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        Ok(to)
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        to: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(_, why) => Ok(to.send(why).await?),
            _ => Ok(()),
        }
    }
}

/// Of a model that is none.
pub(super) fn offer() -> Offer {
    Offer {
        replica: ReplicaId(0),
        weights: WeightsHash([1; 32]),
        context_tokens: 1_000,
        block_tokens: 16,
        ask: Price::default(),
        window: Window::default(),
        task: Task::Generate,
        adapters: Vec::new(),
        device: 0,
        numerics: Numerics::exact(1, KvFormat::F16),
    }
}

#[test]
fn how_a_device_computes_is_told_as_it_is() {
    let gpu = |capability| Gpu {
        ordinal: 0,
        name: "test".to_owned(),
        capability,
        multiprocessors: 1,
        memory_bytes: 1 << 30,
        driver: 12_040,
    };
    let fast = DeviceKind::Cuda(gpu((9, 0)), Profile::Fast);
    let exact = DeviceKind::Cuda(gpu((8, 9)), Profile::Exact);
    let told = |kind: &DeviceKind, kv, has_halves| kind.numerics(kv, has_halves);
    for (threads, has_halves) in [(1, false), (8, true)] {
        let cpu = told(&DeviceKind::Cpu { threads }, KvKind::F16, has_halves);
        assert_eq!(cpu, Numerics::exact(CONTRACT_VERSION, KvFormat::F16));
        assert_eq!(told(&exact, KvKind::F16, has_halves), cpu, "on any number of threads as on a GPU");
    }
    assert_eq!(
        told(&fast, KvKind::BF16, false),
        Numerics::exact(CONTRACT_VERSION, KvFormat::BF16),
        "nothing to be fast at"
    );
    let cores = told(&fast, KvKind::Q8_0, true);
    assert_eq!((cores.tensor_cores, cores.kv), (Some(90), KvFormat::Q8_0));
    assert!(cores.check().is_ok());
    assert!(told(&DeviceKind::Cuda(gpu((u32::MAX / 20, 0)), Profile::Fast), KvKind::F16, true).check().is_err());
}

pub(super) fn no_tokenizer() -> constraints::ReadTokenizer {
    Arc::new(|| Err("this model has no words".to_owned()))
}

fn assign(id: u64) -> Assign {
    Assign { credit: 64, ..Assign::new(ReplicaId(1), SequenceId(id), vec![1; 4], 10, KV_BLOCK_TOKENS as u32) }
}

type Ready = mpsc::Receiver<ActorRef<BatcherMsg>>;
type Failed = mpsc::Receiver<ActorProcessingErr>;

const OUTLET: OutletId = OutletId { link: 0, replica: ReplicaId(1) };

/// A device whose model `load` gives: its batchers, what becomes of it, and its end.
async fn device(
    load: impl Fn() -> Box<dyn Stepper> + Send + Sync + 'static,
) -> (Ready, Failed, tokio::task::JoinHandle<()>) {
    let (ready_in, ready) = mpsc::channel(4);
    let (failed_in, failed) = mpsc::channel(4);
    let (link, _) = Actor::spawn(None, Batchers, ready_in).await.unwrap();
    let (owner, _) = Actor::spawn(None, Owner, failed_in).await.unwrap();
    let args = DeviceArgs {
        slot: 0,
        load: Arc::new(move || Ok(load())),
        limits: LIMITS,
        kv: KvPlan::plain(LIMITS.kv_blocks),
        draft: None,
        steps_in_flight: 1,
        offer: offer(),
        read_tokenizer: no_tokenizer(),
        mask_threads: 1,
        links: vec![link],
    };
    let (_, ended) = Actor::spawn_linked(None, Device, args, owner.get_cell()).await.unwrap();
    (ready, failed, ended)
}

/// The next frame that is more than a heartbeat.
async fn word(frames: &mut mpsc::Receiver<ReplicaFrame>) -> Option<ReplicaFrame> {
    loop {
        match frames.recv().await {
            Some(ReplicaFrame::Beat(_)) => {}
            word => return word,
        }
    }
}

#[tokio::test]
async fn a_gpu_that_is_lost_releases_its_sequences_and_ends_the_device() {
    let (mut ready, mut failed, ended) = device(|| Box::new(Lost)).await;
    let batcher = ready.recv().await.unwrap();
    let (frames_in, mut frames) = mpsc::channel(16);
    batcher.cast(BatcherMsg::Attach { outlet: OUTLET, frames: frames_in }).unwrap();
    assert!(matches!(frames.recv().await, Some(ReplicaFrame::Offer(_))));
    batcher.cast(BatcherMsg::Assign(OUTLET, assign(1))).unwrap();
    assert!(word(&mut frames).await.is_none(), "the replica's stream ends, without a word for what runs");
    let why = failed.recv().await.unwrap();
    assert!(
        why.is::<Beyond>() && why.to_string().starts_with("the device is lost until the process starts afresh"),
        "{why}"
    );
    ended.await.unwrap();
    assert!(ready.try_recv().is_err(), "nothing is started where the driver answers no more");
}

/// The clock stands still but where nobody has anything to do; the executor's thread is not asked.
#[tokio::test(start_paused = true)]
async fn a_step_that_never_comes_back_releases_its_sequences_and_ends_the_device() {
    let (let_go, held) = sync_channel(1);
    let held = Mutex::new(Some(Blocking(held)));
    let load = move || -> Box<dyn Stepper> { Box::new(held.lock().unwrap().take().expect("loaded once")) };
    let (mut ready, mut failed, ended) = device(load).await;
    let batcher = ready.recv().await.unwrap();
    let (frames_in, mut frames) = mpsc::channel(16);
    batcher.cast(BatcherMsg::Attach { outlet: OUTLET, frames: frames_in }).unwrap();
    assert!(matches!(frames.recv().await, Some(ReplicaFrame::Offer(_))));

    let began = tokio::time::Instant::now();
    batcher.cast(BatcherMsg::Assign(OUTLET, assign(1))).unwrap();
    // A sequence that is cancelled meanwhile has its answer, and its blocks are free, though the device is stuck.
    batcher.cast(BatcherMsg::Assign(OUTLET, assign(2))).unwrap();
    batcher.cast(BatcherMsg::Cancel(OUTLET, SequenceId(1))).unwrap();
    let Some(ReplicaFrame::Step(step)) = word(&mut frames).await else { panic!("no step") };
    assert_eq!((step.items[0].end.clone(), step.blocks_used), (Some(End::Cancelled), 0));

    assert!(word(&mut frames).await.is_none(), "the replica's stream ends, without a word for what runs");
    assert_eq!(began.elapsed().as_secs(), 301);
    let why = failed.recv().await.unwrap();
    assert_eq!(why.to_string(), "a step of 4 rows has not come back within 300 s");
    assert!(why.is::<Beyond>());
    assert_eq!(began.elapsed().as_secs(), 302, "the stream's end had time to be read");
    ended.await.unwrap();
    assert!(ready.try_recv().is_err(), "and nothing is started beside the thread that is stuck");
    drop(let_go);
}
