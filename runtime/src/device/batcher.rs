//! The actor around [`Work`]: keeps the executor in steps and sends each step's news to the link.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use cuckoo_wire::limits::{MINER_BEAT, MINER_IDLE_BEAT, STEP_DUE_MAX, STEP_ITEMS_BYTES_MAX};
use cuckoo_wire::message::{Assign, Beat, Encode, Offer, ReplicaFrame, ReplicaId, SequenceId, Step, StepItem, Window};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::batch::{BatchLimits, BatchStats, StepOutput, StepPlan};
use super::constraints::{Compiled, Constraints, ReadTokenizer};
use super::draft_model::DraftPlan;
use super::executor::ExecutorMsg;
use super::kv_plan::KvPlan;
use super::masks::PendingMask;
use super::watchdog::{WATCH_INTERVAL, Watchdog};
use super::work::Work;

/// How soon a full outlet is tried again.
const OUTLET_RETRY: Duration = Duration::from_millis(1);

/// Messages of the batcher. Those from the link are bounded by the window and by credits.
pub(crate) enum BatcherMsg {
    /// A scheduler is there: forget everything that was, and offer.
    Attach {
        /// Name on the new connection.
        replica: ReplicaId,
        /// Where frames go.
        outlet: mpsc::Sender<ReplicaFrame>,
    },
    /// The scheduler is gone, and every sequence with it.
    Detach,
    /// Run a sequence.
    Assign(Assign),
    /// Make a vector of a text.
    Encode(Encode),
    /// Stop a sequence.
    Cancel(SequenceId),
    /// A sequence may send more.
    Credit(SequenceId, u32),
    /// The executor finished a step.
    Stepped {
        /// What was computed.
        plan: StepPlan,
        /// The masks that it was drawn with.
        masks: Vec<Option<PendingMask>>,
        /// What that gave.
        output: StepOutput,
        /// How long it took, without the passes of a draft model.
        took: Duration,
    },
    /// Look whether the executor gets anywhere.
    Watch,
    /// Say something, unless something has just been said.
    Beat,
    /// A constraint is compiled, or cannot be.
    Compiled(Compiled),
    /// The outlet was full; try again.
    Retry,
    /// Accept nothing more, and tell when all sequences have ended.
    Drain,
}

/// What a batcher starts with.
#[derive(Clone)]
pub(super) struct BatcherArgs {
    pub(super) executor: ActorRef<ExecutorMsg>,
    pub(super) limits: BatchLimits,
    pub(super) kv: KvPlan,
    /// The draft model, where there is one.
    pub(super) draft: Option<DraftPlan>,
    /// Steps that the executor has at most: one it computes, and those behind it.
    pub(super) steps_in_flight: usize,
    /// Replica and window are filled in at each attachment.
    pub(super) offer: Offer,
    /// For constraints.
    pub(super) read_tokenizer: ReadTokenizer,
    /// Threads that compute masks.
    pub(super) mask_threads: usize,
}

pub(super) struct Batcher;

pub(super) struct State {
    args: BatcherArgs,
    batch: Work,
    constraints: Constraints,
    outlet: Option<mpsc::Sender<ReplicaFrame>>,
    /// A frame that the outlet had no room for. No step is planned meanwhile, so there is at most one.
    unsent: Option<ReplicaFrame>,
    /// Whether that is tried again by itself: whatever else is handled meanwhile must not ask for that once more.
    retrying: bool,
    /// News that did not fit into that frame.
    news: VecDeque<StepItem>,
    announced: Window,
    /// Steps at the executor, for the sequences that are here now.
    steps: usize,
    /// Steps at the executor, before those, for sequences of a lost connection.
    steps_void: usize,
    draining: Draining,
    watchdog: Watchdog,
    /// Steps computed since the offer.
    computed: u64,
    /// Of these, those since the last frame that told of a step.
    newest: Computed,
    /// How many of them the scheduler knows of.
    told: u64,
    /// What the newest step at the executor was expected to take.
    due: Duration,
    /// When the last frame left.
    said: Instant,
    /// What the log was last told.
    logged: BatchStats,
}

/// Steps that were computed.
#[derive(Clone, Copy, Default)]
struct Computed {
    steps: u32,
    rows: u32,
    took: Duration,
}

#[derive(Clone, Copy, PartialEq)]
enum Draining {
    No,
    /// The scheduler has not heard of it yet.
    Asked,
    Announced,
}

impl Actor for Batcher {
    type Msg = BatcherMsg;
    type State = State;
    type Arguments = BatcherArgs;

    async fn pre_start(&self, me: ActorRef<BatcherMsg>, args: BatcherArgs) -> Result<State, ActorProcessingErr> {
        me.send_interval(WATCH_INTERVAL, || BatcherMsg::Watch);
        me.send_interval(MINER_BEAT, || BatcherMsg::Beat);
        Ok(State {
            batch: Work::new(&args),
            constraints: Constraints::new(args.read_tokenizer.clone(), args.mask_threads),
            args,
            outlet: None,
            unsent: None,
            retrying: false,
            news: VecDeque::new(),
            announced: Window::default(),
            steps: 0,
            steps_void: 0,
            draining: Draining::No,
            watchdog: Watchdog::new(now()),
            computed: 0,
            newest: Computed::default(),
            told: 0,
            due: Duration::ZERO,
            said: now(),
            logged: BatchStats::default(),
        })
    }

    async fn handle(
        &self,
        me: ActorRef<BatcherMsg>,
        message: BatcherMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            BatcherMsg::Attach { replica, outlet } => state.attach(replica, outlet),
            BatcherMsg::Detach => state.detach(),
            BatcherMsg::Assign(assign) => state.busy(&me, |state| state.assign(assign, &me)),
            BatcherMsg::Encode(encode) => state.busy(&me, |state| state.batch.encode(encode)),
            BatcherMsg::Cancel(sequence) => state.batch.cancel(sequence),
            BatcherMsg::Credit(sequence, tokens) => state.batch.credit(sequence, tokens),
            BatcherMsg::Stepped { plan, masks, output, took } => state.stepped(plan, &masks, output, took),
            BatcherMsg::Watch => {
                // Its supervisor ends the device; what ran here goes on elsewhere.
                state.watchdog.look(now())?;
                state.log();
            }
            BatcherMsg::Beat if state.is_silent() => state.beat(&me),
            BatcherMsg::Beat => return Ok(()),
            BatcherMsg::Compiled(compiled) => state.compiled(compiled),
            BatcherMsg::Retry => state.retrying = false,
            BatcherMsg::Drain => state.draining = Draining::Asked,
        }
        state.publish(&me);
        state.launch(&me)
    }
}

impl State {
    fn attach(&mut self, replica: ReplicaId, outlet: mpsc::Sender<ReplicaFrame>) {
        self.detach();
        self.announced = self.batch.window();
        let offer = Offer { replica, window: self.announced, ..self.args.offer.clone() };
        // The outlet is fresh and empty; if its reader is gone already, the next frame finds out.
        let _ = outlet.try_send(ReplicaFrame::Offer(offer));
        self.outlet = Some(outlet);
    }

    fn detach(&mut self) {
        self.outlet = None;
        self.unsent = None;
        self.news.clear();
        (self.computed, self.told, self.newest) = (0, 0, Computed::default());
        self.batch = Work::new(&self.args);
        self.constraints.clear();
        self.steps_void += std::mem::take(&mut self.steps);
    }

    /// A sequence with a constraint waits in the batch until that is compiled.
    fn assign(&mut self, assign: Assign, me: &ActorRef<BatcherMsg>) {
        let compilation = self.constraints.compilation(&assign, me);
        let sequence = assign.sequence;
        self.batch.assign(assign);
        if let Some(compilation) = compilation.filter(|_| self.batch.is_compiling(sequence))
            && let Err(why) = self.constraints.compile(compilation)
        {
            self.batch.fail(sequence, &why);
        }
    }

    fn compiled(&mut self, compiled: Compiled) {
        let sequence = compiled.sequence;
        // Somebody who was cancelled meanwhile has nothing to be told.
        if !self.batch.is_compiling(sequence) {
            return;
        }
        match self.constraints.compiled(compiled) {
            None => {}
            Some(Ok(())) => self.batch.constraint_is_ready(sequence),
            Some(Err(why)) => self.batch.fail(sequence, &why),
        }
    }

    /// Steps come back in the order in which they were launched, so those of a lost connection come first.
    fn stepped(&mut self, plan: StepPlan, masks: &[Option<PendingMask>], output: StepOutput, took: Duration) {
        self.watchdog.landed(now());
        match self.steps_void.checked_sub(1) {
            Some(left) => self.steps_void = left,
            None => {
                self.steps -= 1;
                // What was drawn for a sequence without its mask is nobody's.
                for (draw, mask) in plan.draws.iter().zip(masks) {
                    if let Some(why) = mask.as_ref().and_then(PendingMask::failure) {
                        self.batch.fail(draw.sequence, &why);
                    }
                }
                for span in &output.broken {
                    self.batch.fail(plan.owners[*span], "the adapter gives values that are no numbers");
                }
                self.newest.steps += 1;
                self.newest.rows += plan.tokens.len() as u32;
                self.newest.took += took;
                self.batch.apply(plan, output, took);
                self.computed += 1;
            }
        }
    }

    /// Sends news and windows, if there are any.
    fn publish(&mut self, me: &ActorRef<BatcherMsg>) {
        let Some(outlet) = self.outlet.clone() else { return };
        if let Some(frame) = self.unsent.take() {
            self.send(&outlet, frame, me);
        }
        let items = self.batch.take_news();
        items.iter().filter(|i| i.end.is_some()).for_each(|i| self.constraints.remove(i.sequence));
        self.news.extend(items);
        while self.unsent.is_none() && (!self.news.is_empty() || self.batch.window() != self.announced) {
            let items = frameful(&mut self.news);
            self.send_step(&outlet, items, me);
        }
        if self.draining == Draining::Asked && self.unsent.is_none() {
            self.draining = Draining::Announced;
            self.send(&outlet, ReplicaFrame::Drain, me);
        }
        if self.draining == Draining::Announced && self.batch.sequences() == (0, 0) && self.unsent.is_none() {
            // The end of its stream is the end of the replica; what was assigned meanwhile goes elsewhere.
            self.outlet = None;
        }
    }

    /// Takes an order, and answers at once where there was nothing to do: who has nothing to do seldom speaks.
    fn busy(&mut self, me: &ActorRef<BatcherMsg>, take: impl FnOnce(&mut Self)) {
        let was_idle = self.is_idle();
        take(self);
        if was_idle {
            self.beat(me);
        }
    }

    /// Whether nobody waits for anything, and everybody knows what was computed.
    fn is_idle(&self) -> bool {
        self.batch.sequences() == (0, 0) && self.told == self.computed
    }

    /// Whether it must say something before the next look. Looks come as often as heartbeats of those who are busy.
    fn is_silent(&self) -> bool {
        let silence_max = if self.is_idle() { MINER_IDLE_BEAT } else { MINER_BEAT };
        now().duration_since(self.said) + MINER_BEAT / 2 >= silence_max
    }

    /// Sends a heartbeat, where frames leave. It comes from here, because who cannot plan cannot serve; a step takes no time
    /// of this actor's, so that a long one silences nobody.
    fn beat(&mut self, me: &ActorRef<BatcherMsg>) {
        let Some(outlet) = self.outlet.clone().filter(|_| self.unsent.is_none()) else { return };
        let due = if self.steps + self.steps_void == 0 { Duration::ZERO } else { self.due };
        self.told = self.computed;
        self.send(&outlet, ReplicaFrame::Beat(Beat::new(self.computed, due)), me);
    }

    /// What the batch has done so far, at most once a second.
    fn log(&mut self) {
        let stats = self.batch.stats();
        if stats != self.logged {
            tracing::debug!(?stats, "batch so far");
            self.logged = stats;
        }
    }

    fn send_step(&mut self, outlet: &mpsc::Sender<ReplicaFrame>, items: Vec<StepItem>, me: &ActorRef<BatcherMsg>) {
        let window = self.batch.window();
        self.announced = window;
        if !items.is_empty() {
            self.told = self.computed;
        }
        let (batch, blocks_used) = (self.batch.sequences().0 as u32, u64::from(self.batch.blocks_used()));
        let Computed { steps, rows, took } = std::mem::take(&mut self.newest);
        let (cached, evicted) = self.batch.take_block_news();
        let took_us = took.as_micros() as u64;
        let step = Step { window, batch, blocks_used, steps, rows, took_us, cached, evicted, items };
        self.send(outlet, ReplicaFrame::Step(step), me);
    }

    fn send(&mut self, outlet: &mpsc::Sender<ReplicaFrame>, frame: ReplicaFrame, me: &ActorRef<BatcherMsg>) {
        match outlet.try_send(frame) {
            Ok(()) => self.said = now(),
            Err(TrySendError::Full(frame)) => {
                self.unsent = Some(frame);
                if !std::mem::replace(&mut self.retrying, true) {
                    me.send_after(OUTLET_RETRY, || BatcherMsg::Retry);
                }
            }
            Err(TrySendError::Closed(_)) => self.detach(),
        }
    }

    /// Starts the next steps, unless there are enough or the last one's news have not left.
    fn launch(&mut self, me: &ActorRef<BatcherMsg>) -> Result<(), ActorProcessingErr> {
        while self.unsent.is_none() && self.steps + self.steps_void < self.args.steps_in_flight {
            let Some(plan) = self.batch.plan() else { break };
            let rows = plan.tokens.len();
            let expected = self.batch.expected(&plan);
            self.due = expected.unwrap_or(STEP_DUE_MAX);
            self.watchdog.launched(rows, expected, now());
            let masks = self.constraints.masks(&plan);
            self.args.executor.cast(ExecutorMsg::Run { plan, masks, reply_to: me.clone() })?;
            self.steps += 1;
        }
        Ok(())
    }
}

/// Takes as many items as surely fit one frame; any one does.
fn frameful(news: &mut VecDeque<StepItem>) -> Vec<StepItem> {
    let mut left = STEP_ITEMS_BYTES_MAX;
    let fit = news.iter().take_while(|item| {
        let fits = item.bytes_max() <= left;
        left = left.saturating_sub(item.bytes_max());
        fits
    });
    let count = fit.count().max(1).min(news.len());
    news.drain(..count).collect()
}

/// The time, which tests can move.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
