#![allow(clippy::unwrap_used)]

use cuckoo_kernels::ops::KV_BLOCK_TOKENS;
use cuckoo_wire::limits::MINER_IDLE_BEAT;
use cuckoo_wire::message::{Beat, Constraint, Encode, End, ReplicaId, Step, StepItem, Task, Window};

use cuckoo_wire::BlockHash;

use super::*;
use crate::device::tests::{LIMITS, no_tokenizer, offer};

const OUTLET: OutletId = OutletId { link: 0, replica: ReplicaId(1) };

type Run = (StepPlan, Vec<Option<PendingMask>>, ActorRef<BatcherMsg>);

/// An executor that hands its plans to the test, which answers them when it likes.
struct Held;

impl Actor for Held {
    type Msg = ExecutorMsg;
    type State = mpsc::Sender<Run>;
    type Arguments = Self::State;

    async fn pre_start(
        &self,
        _me: ActorRef<ExecutorMsg>,
        to: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(to)
    }

    async fn handle(
        &self,
        _me: ActorRef<ExecutorMsg>,
        message: ExecutorMsg,
        to: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ExecutorMsg::Run { plan, masks, reply_to } => Ok(to.send((plan, masks, reply_to)).await?),
            ExecutorMsg::Finish => Ok(()),
        }
    }
}

struct Bench {
    batcher: ActorRef<BatcherMsg>,
    plans: mpsc::Receiver<Run>,
    frames: mpsc::Receiver<ReplicaFrame>,
    ended: tokio::task::JoinHandle<()>,
}

impl Bench {
    async fn start(steps_in_flight: usize) -> Self {
        let (plans_in, plans) = mpsc::channel(16);
        let (executor, _) = Actor::spawn(None, Held, plans_in).await.unwrap();
        Self { plans, ..Self::with(executor, steps_in_flight).await }
    }

    async fn with(executor: ActorRef<ExecutorMsg>, steps_in_flight: usize) -> Self {
        Self::of(executor, steps_in_flight, Task::Generate).await
    }

    async fn of(executor: ActorRef<ExecutorMsg>, steps_in_flight: usize, task: Task) -> Self {
        // A text is computed in one step.
        let context_tokens = if task == Task::Embed { LIMITS.step_tokens_max } else { LIMITS.context_tokens };
        let limits = BatchLimits { context_tokens, ..LIMITS };
        let args = BatcherArgs {
            executor,
            limits,
            kv: KvPlan::plain(LIMITS.kv_blocks),
            draft: None,
            steps_in_flight,
            offer: Offer { task, ..offer() },
            read_tokenizer: no_tokenizer(),
            mask_threads: 1,
        };
        let (batcher, ended) = Actor::spawn(None, Batcher, args).await.unwrap();
        let mut bench = Self { batcher, plans: mpsc::channel(1).1, frames: mpsc::channel(1).1, ended };
        bench.attach().await;
        bench
    }

    async fn attach(&mut self) {
        let (frames, received) = mpsc::channel(64);
        self.frames = received;
        self.batcher.cast(BatcherMsg::Attach { outlet: OUTLET, frames }).unwrap();
        assert!(matches!(self.frames.recv().await, Some(ReplicaFrame::Offer(_))));
    }

    fn assign(&self, id: u64) {
        self.assign_sequence(id, 4, None);
    }

    fn assign_sequence(&self, id: u64, tokens: u32, constraint: Option<Constraint>) {
        let prompt = vec![1; tokens as usize];
        let assign = Assign {
            credit: 64,
            constraint,
            ..Assign::new(ReplicaId(1), SequenceId(id), prompt, 4, KV_BLOCK_TOKENS as u32)
        };
        self.batcher.cast(BatcherMsg::Assign(OUTLET, assign)).unwrap();
    }

    async fn plan(&mut self) -> Run {
        self.plans.recv().await.unwrap()
    }

    /// Whether no further plan comes, though everything sent so far was handled.
    async fn is_quiet(&mut self) -> bool {
        self.batcher.cast(BatcherMsg::Credit(OUTLET, SequenceId(999), 0)).unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        self.plans.try_recv().is_err()
    }

    async fn items(&mut self) -> Vec<StepItem> {
        loop {
            match self.frames.recv().await.unwrap() {
                ReplicaFrame::Step(step) => return step.items,
                ReplicaFrame::Beat(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn beat(&mut self) -> Beat {
        match self.frames.recv().await.unwrap() {
            ReplicaFrame::Beat(beat) => beat,
            other => panic!("{other:?}"),
        }
    }
}

fn answer((plan, masks, to): Run, token: u32) {
    let output = StepOutput::of(&vec![token; plan.draws.len()]);
    to.cast(BatcherMsg::Stepped { plan, masks, output, took: Duration::from_millis(1) }).unwrap();
}

/// Spans that an adapter broke end their own sequences; the others of the step go on.
#[tokio::test]
async fn a_broken_span_ends_its_sequence_alone() {
    let mut bench = Bench::start(1).await;
    bench.assign(1);
    let (plan, masks, to) = bench.plan().await;
    bench.assign(2);
    let output = StepOutput::of(&[5]);
    to.cast(BatcherMsg::Stepped { plan, masks, output, took: Duration::from_millis(1) }).unwrap();
    assert_eq!(bench.items().await.len(), 1);
    let (plan, masks, to) = bench.plan().await;
    assert_eq!(plan.owners, [SequenceId(1), SequenceId(2)]);
    let output = StepOutput { broken: vec![1], ..StepOutput::of(&[5, 0]) };
    to.cast(BatcherMsg::Stepped { plan, masks, output, took: Duration::from_millis(1) }).unwrap();
    let items = bench.items().await;
    let of = |id| items.iter().find(|item| item.sequence == SequenceId(id)).unwrap();
    assert_eq!((of(1).tokens.as_slice(), &of(1).end), (&[5][..], &None));
    assert!(matches!(&of(2).end, Some(cuckoo_wire::message::End::Failed(why)) if why.contains("no numbers")));
    assert!(of(2).tokens.is_empty());
}

#[tokio::test]
async fn the_executor_has_at_most_as_many_steps_as_it_should() {
    for steps in [1, 2] {
        let mut bench = Bench::start(steps).await;
        bench.assign(1);
        let mut held = Vec::new();
        for _ in 0..steps {
            held.push(bench.plan().await);
        }
        assert!(bench.is_quiet().await, "{steps} steps");
        for first in 0..4 {
            answer(held.remove(0), first + 10);
            let items = bench.items().await;
            assert_eq!((items[0].first, items[0].tokens.clone()), (first, vec![first + 10]));
            if held.len() + (first as usize) + 1 < 4 {
                held.push(bench.plan().await);
            }
        }
        assert!(held.is_empty() && bench.is_quiet().await);
    }
}

#[tokio::test]
async fn a_replica_does_what_its_model_is_for() {
    let encode = |id| Encode { replica: ReplicaId(1), sequence: SequenceId(id), tokens: vec![id as u32; 3], blocks: 1 };
    let failed = |items: Vec<StepItem>| match items[0].end.clone() {
        Some(End::Failed(why)) => why,
        other => panic!("{other:?}"),
    };
    let mut generating = Bench::start(1).await;
    generating.batcher.cast(BatcherMsg::Encode(OUTLET, encode(1))).unwrap();
    assert!(failed(generating.items().await).contains("no vectors"));

    let (plans_in, plans) = mpsc::channel(16);
    let (executor, _) = Actor::spawn(None, Held, plans_in).await.unwrap();
    let mut embedding = Bench { plans, ..Bench::of(executor, 1, Task::Embed).await };
    embedding.assign(1);
    assert!(failed(embedding.items().await).contains("generates nothing"));
    embedding.batcher.cast(BatcherMsg::Encode(OUTLET, encode(2))).unwrap();
    let (plan, masks, to) = embedding.plan().await;
    assert_eq!((plan.tokens.as_slice(), plan.draws.len(), masks.len()), (&[2, 2, 2][..], 0, 0));
    let output = StepOutput { vectors: vec![vec![1.0]], ..StepOutput::default() };
    to.cast(BatcherMsg::Stepped { plan, masks, output, took: Duration::from_millis(1) }).unwrap();
    let items = embedding.items().await;
    assert_eq!((items[0].sequence, items[0].end.clone()), (SequenceId(2), Some(End::Embedded(vec![1.0]))));
    // Its connection breaks while a step is computed: that is nobody's.
    embedding.batcher.cast(BatcherMsg::Encode(OUTLET, encode(3))).unwrap();
    let (plan, masks, to) = embedding.plan().await;
    embedding.batcher.cast(BatcherMsg::Detach(OUTLET)).unwrap();
    embedding.attach().await;
    embedding.batcher.cast(BatcherMsg::Encode(OUTLET, encode(4))).unwrap();
    assert!(embedding.is_quiet().await);
    let output = StepOutput { vectors: vec![vec![1.0]], ..StepOutput::default() };
    to.cast(BatcherMsg::Stepped { plan, masks, output, took: Duration::from_millis(1) }).unwrap();
    assert_eq!(embedding.plan().await.0.tokens, [4, 4, 4]);
}

#[tokio::test]
async fn steps_of_a_lost_connection_are_nobodys() {
    let mut bench = Bench::start(2).await;
    bench.assign(1);
    let old = [bench.plan().await, bench.plan().await];
    bench.batcher.cast(BatcherMsg::Detach(OUTLET)).unwrap();
    bench.attach().await;
    bench.assign(1);
    assert!(bench.is_quiet().await, "the executor has enough to do");
    let [first, second] = old;
    answer(first, 20);
    let fresh = bench.plan().await;
    assert_eq!((fresh.0.placeholders.len(), fresh.0.tokens.len()), (0, 4), "it begins anew");
    answer(second, 21);
    let ahead = bench.plan().await;
    assert_eq!(ahead.0.placeholders.len(), 1);
    answer(fresh, 30);
    assert_eq!(bench.items().await[0].tokens, [30]);
}

#[test]
fn news_are_cut_into_frames_that_fit() {
    use cuckoo_wire::limits::{BLOCK_NEWS_MAX, MINER_FRAME_BYTES_MAX, STEP_SCORES_MAX, TOP_LOGPROBS_MAX};
    use cuckoo_wire::message::Logprobs;
    let most = Logprobs { logprob: -1.0, rank: u32::MAX, top: vec![(u32::MAX, -1.0); TOP_LOGPROBS_MAX] };
    let item = |id| StepItem {
        prompt_logprobs: vec![most.clone(); STEP_SCORES_MAX],
        logprobs: vec![most.clone(); 16],
        ..StepItem::new(SequenceId(u64::MAX - id), u32::MAX, vec![u32::MAX; 16], Some(End::Failed("x".repeat(100))))
    };
    let all: Vec<StepItem> = (0..20).map(item).collect();
    let mut news = VecDeque::from(all.clone());
    let (mut frames, mut sent) = (0, Vec::new());
    while !news.is_empty() {
        let items = frameful(&mut news);
        let window = Window { sequences: u64::MAX, blocks: u64::MAX };
        let names = vec![u64::MAX; BLOCK_NEWS_MAX];
        let step = Step {
            window,
            batch: u32::MAX,
            blocks_used: u64::MAX,
            steps: u32::MAX,
            rows: u32::MAX,
            took_us: u64::MAX,
            cached: names.clone(),
            evicted: names,
            items,
        };
        assert!(cuckoo_wire::encode(&ReplicaFrame::Step(step.clone()), MINER_FRAME_BYTES_MAX).is_ok());
        assert!(step.check().is_ok());
        sent.extend(step.items);
        frames += 1;
    }
    assert_eq!((frames, sent), (5, all), "four of them fit one");
    assert!(frameful(&mut VecDeque::new()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_has_sequences_says_something_all_the_time_and_how_it_gets_on() {
    let mut bench = Bench::start(1).await;
    for _ in 0..5 {
        let began = tokio::time::Instant::now();
        assert_eq!(bench.beat().await, Beat::new(0, Duration::ZERO));
        assert!(began.elapsed() >= MINER_IDLE_BEAT - MINER_BEAT, "nobody waits for anything");
    }
    let began = tokio::time::Instant::now();
    bench.assign_sequence(1, 300, None);
    assert_eq!((bench.beat().await, began.elapsed()), (Beat::new(0, Duration::ZERO), Duration::ZERO), "at once");
    for steps in 0..4 {
        let run = bench.plan().await;
        let due = if steps == 0 { STEP_DUE_MAX } else { bench.beat().await.due() };
        assert!(run.0.draws.is_empty() && due > Duration::ZERO, "a long prompt, with nothing to say of it");
        for _ in 0..20 {
            let began = tokio::time::Instant::now();
            assert_eq!(bench.beat().await, Beat::new(steps, due), "however long a step takes");
            assert!(began.elapsed() <= MINER_BEAT * 3 / 2);
        }
        answer(run, 9);
    }
    let last = bench.plan().await;
    answer(last, 9);
    assert_eq!(bench.items().await[0].tokens, [9]);
    bench.batcher.cast(BatcherMsg::Cancel(OUTLET, SequenceId(1))).unwrap();
    let last = bench.plan().await;
    answer(last, 9);
    while !matches!(bench.items().await.first(), Some(item) if item.end.is_some()) {}
    let beats = tokio::time::timeout(Duration::from_secs(8), async {
        for _ in 0..30 {
            bench.beat().await;
        }
    });
    assert!(beats.await.is_err(), "nobody waits any more");
}

#[tokio::test]
async fn frames_tell_what_was_computed_and_what_is_cached() {
    let mut bench = Bench::start(1).await;
    bench.assign_sequence(1, 64, None);
    let (mut steps, mut rows, mut took_us, mut cached) = (0, 0, 0, Vec::new());
    loop {
        let step = bench.plan().await;
        answer(step, 9);
        let step = loop {
            match bench.frames.recv().await.unwrap() {
                ReplicaFrame::Step(step) => break step,
                ReplicaFrame::Beat(_) => {}
                other => panic!("{other:?}"),
            }
        };
        (steps, rows, took_us) = (steps + step.steps, rows + step.rows, took_us + step.took_us);
        cached.extend(step.cached);
        assert!(step.evicted.is_empty());
        if step.items.iter().any(|item| item.end.is_some()) {
            break;
        }
    }
    assert_eq!((steps, rows, took_us), (4, 64 + 3, 4_000), "a prompt and three tokens that were drawn");
    let root = BlockHash::root(&offer().weights.0, None, &[0; 16]);
    let names: Vec<u64> = BlockHash::chain(root, &[1; 64], KV_BLOCK_TOKENS).map(BlockHash::short).collect();
    assert_eq!(cached, names, "as whoever has the prompt names it");
}

#[tokio::test(start_paused = true)]
async fn steps_that_do_not_come_back_are_a_fault_attached_or_not() {
    for detached in [false, true] {
        let (plans_in, _plans) = mpsc::channel(16);
        let (executor, _) = Actor::spawn(None, Held, plans_in).await.unwrap();
        let mut bench = Bench::with(executor, 1).await;
        bench.assign(1);
        if detached {
            bench.batcher.cast(BatcherMsg::Detach(OUTLET)).unwrap();
        }
        let began = tokio::time::Instant::now();
        bench.ended.await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 301);
        while let Some(frame) = bench.frames.recv().await {
            assert!(matches!(frame, ReplicaFrame::Beat(_)), "{frame:?}");
        }
    }
}

#[tokio::test]
async fn a_constraint_that_cannot_be_compiled_ends_its_sequence_only() {
    let mut bench = Bench::start(1).await;
    bench.assign_sequence(1, 4, Some(Constraint::JsonObject));
    let items = bench.items().await;
    assert_eq!((items.len(), items[0].sequence), (1, SequenceId(1)));
    assert!(matches!(&items[0].end, Some(End::Failed(why)) if why.contains("no words")));
    bench.assign(2);
    let run = bench.plan().await;
    assert_eq!(run.1.len(), 1);
    assert!(run.1[0].is_none(), "nobody computes a mask for it");
    answer(run, 7);
    assert_eq!(bench.items().await[0].tokens, [7]);
}
