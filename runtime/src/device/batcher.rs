//! The actor around [`Work`]: keeps the executor in steps and sends each step's news to the links.

mod outlets;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use cuckoo_wire::limits::{MINER_BEAT, STEP_DUE_MAX, STEP_ITEMS_BYTES_MAX};
use cuckoo_wire::message::{Assign, Encode, Offer, ReplicaFrame, SequenceId, StepItem, Window};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;

use super::batch::{BatchLimits, BatchStats, StepOutput, StepPlan};
use super::constraints::{Compiled, Constraints, ReadTokenizer};
use super::draft_model::DraftPlan;
use super::executor::ExecutorMsg;
use super::kv_plan::KvPlan;
use super::masks::PendingMask;
use super::watchdog::{WATCH_INTERVAL, Watchdog};
use super::work::Work;
pub(crate) use outlets::OutletId;
use outlets::{Figures, Outlets, Sent};

/// How soon a full outlet is tried again.
const OUTLET_RETRY: Duration = Duration::from_millis(1);

/// Messages of the batcher. Those from the link are bounded by the window and by credits.
pub(crate) enum BatcherMsg {
    /// A scheduler is there: offer.
    Attach {
        /// Its name here.
        outlet: OutletId,
        /// Where frames go.
        frames: mpsc::Sender<ReplicaFrame>,
    },
    /// A scheduler is gone, and all its sequences with it.
    Detach(OutletId),
    /// Run a sequence.
    Assign(OutletId, Assign),
    /// Make a vector of a text.
    Encode(OutletId, Encode),
    /// Stop a sequence.
    Cancel(OutletId, SequenceId),
    /// A sequence may send more.
    Credit(OutletId, SequenceId, u32),
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
    /// An outlet was full; try again.
    Retry,
    /// Accept nothing more of a scheduler, and tell when all its sequences have ended.
    Drain(OutletId),
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
    outlets: Outlets,
    /// What each of them may have.
    window: Window,
    /// Whether a full outlet is tried again by itself: whatever else is handled meanwhile must not ask for that once more.
    retrying: bool,
    /// Steps at the executor.
    steps: usize,
    watchdog: Watchdog,
    /// What the newest step at the executor was expected to take.
    due: Duration,
    /// What the log was last told.
    logged: BatchStats,
}

impl Actor for Batcher {
    type Msg = BatcherMsg;
    type State = State;
    type Arguments = BatcherArgs;

    async fn pre_start(&self, me: ActorRef<BatcherMsg>, args: BatcherArgs) -> Result<State, ActorProcessingErr> {
        me.send_interval(WATCH_INTERVAL, || BatcherMsg::Watch);
        me.send_interval(MINER_BEAT, || BatcherMsg::Beat);
        let batch = Work::new(&args);
        Ok(State {
            window: batch.window(),
            batch,
            constraints: Constraints::new(args.read_tokenizer.clone(), args.mask_threads),
            args,
            outlets: Outlets::default(),
            retrying: false,
            steps: 0,
            watchdog: Watchdog::new(now()),
            due: Duration::ZERO,
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
            BatcherMsg::Attach { outlet, frames } => state.attach(outlet, frames),
            BatcherMsg::Detach(outlet) => state.detach(outlet),
            BatcherMsg::Assign(outlet, assign) => state.busy(&me, outlet, |state| state.assign(outlet, assign, &me)),
            BatcherMsg::Encode(outlet, encode) => state.busy(&me, outlet, |state| state.encode(outlet, encode)),
            BatcherMsg::Cancel(outlet, sequence) => {
                if let Some(local) = state.outlets.local(outlet, sequence) {
                    state.batch.cancel(local);
                }
            }
            BatcherMsg::Credit(outlet, sequence, tokens) => {
                if let Some(local) = state.outlets.local(outlet, sequence) {
                    state.batch.credit(local, tokens);
                }
            }
            BatcherMsg::Stepped { plan, masks, output, took } => state.stepped(plan, &masks, output, took),
            BatcherMsg::Watch => {
                // Its supervisor ends the device; what ran here goes on elsewhere.
                state.watchdog.look(now())?;
                state.log();
            }
            BatcherMsg::Beat => {
                state.beat(&me, None);
                return Ok(());
            }
            BatcherMsg::Compiled(compiled) => state.compiled(compiled),
            BatcherMsg::Retry => state.retrying = false,
            BatcherMsg::Drain(outlet) => state.outlets.drain(outlet),
        }
        state.publish(&me);
        state.launch(&me)
    }
}

impl State {
    fn attach(&mut self, outlet: OutletId, frames: mpsc::Sender<ReplicaFrame>) {
        let cached = self.batch.cached_names().into_iter();
        self.outlets.attach(outlet, frames, (&self.args.offer, self.window), cached, now());
        self.grant();
    }

    /// Each scheduler has a window; the batch counts one of them itself.
    fn grant(&mut self) {
        let others = self.outlets.len().saturating_sub(1) as u64;
        let Window { sequences, blocks } = self.window;
        self.batch.grant_others(Window { sequences: sequences * others, blocks: blocks * others });
    }

    /// What it had here is nobody's; what that left in the cache stays.
    fn detach(&mut self, outlet: OutletId) {
        for orphan in self.outlets.detach(outlet) {
            self.batch.cancel(orphan);
        }
        self.grant();
    }

    /// A sequence with a constraint waits in the batch until that is compiled.
    fn assign(&mut self, outlet: OutletId, assign: Assign, me: &ActorRef<BatcherMsg>) {
        let Some(sequence) = self.outlets.admit(outlet, assign.sequence, assign.blocks) else { return };
        let assign = Assign { sequence, ..assign };
        let compilation = self.constraints.compilation(&assign, me);
        self.batch.assign(assign);
        if let Some(compilation) = compilation.filter(|_| self.batch.is_compiling(sequence))
            && let Err(why) = self.constraints.compile(compilation)
        {
            self.batch.fail(sequence, &why);
        }
    }

    fn encode(&mut self, outlet: OutletId, encode: Encode) {
        if let Some(sequence) = self.outlets.admit(outlet, encode.sequence, encode.blocks) {
            self.batch.encode(Encode { sequence, ..encode });
        }
    }

    fn compiled(&mut self, compiled: Compiled) {
        let sequence = compiled.sequence;
        // Somebody who was cancelled meanwhile has nothing to be told.
        if !self.batch.is_compiling(sequence) {
            return;
        }
        match self.constraints.compiled(compiled) {
            Ok(()) => self.batch.constraint_is_ready(sequence),
            Err(why) => self.batch.fail(sequence, &why),
        }
    }

    fn stepped(&mut self, plan: StepPlan, masks: &[Option<PendingMask>], output: StepOutput, took: Duration) {
        self.watchdog.landed(now());
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
        self.outlets.stepped(plan.tokens.len() as u32, took);
        self.batch.apply(plan, output, took);
    }

    /// Sends news and windows, if there are any.
    fn publish(&mut self, me: &ActorRef<BatcherMsg>) {
        loop {
            let items = self.batch.take_news();
            items.iter().filter(|i| i.end.is_some()).for_each(|i| self.constraints.remove(i.sequence));
            self.outlets.route(items);
            loop {
                let (came, left) = self.batch.take_block_news();
                if came.is_empty() && left.is_empty() {
                    break;
                }
                self.outlets.cached(&came, &left);
            }
            let figures =
                Figures { batch: self.batch.sequences().0 as u32, blocks_used: u64::from(self.batch.blocks_used()) };
            let sent = self.outlets.publish(figures, now());
            if !self.heed(sent, me) {
                break;
            }
        }
    }

    /// What was not sent is tried again, and who is gone is forgotten; whether anybody is.
    fn heed(&mut self, sent: Sent, me: &ActorRef<BatcherMsg>) -> bool {
        if sent.is_full && !std::mem::replace(&mut self.retrying, true) {
            me.send_after(OUTLET_RETRY, || BatcherMsg::Retry);
        }
        let is_anybody_gone = !sent.gone.is_empty();
        sent.gone.into_iter().for_each(|outlet| self.detach(outlet));
        is_anybody_gone
    }

    /// Takes an order, and answers at once where there was nothing to do: who has nothing to do seldom speaks.
    fn busy(&mut self, me: &ActorRef<BatcherMsg>, outlet: OutletId, take: impl FnOnce(&mut Self)) {
        let was_idle = self.outlets.is_idle(outlet);
        take(self);
        if was_idle {
            self.beat(me, Some(outlet));
        }
    }

    /// Sends heartbeats: they come from here, because who cannot plan cannot serve; a step takes no time of this actor's, so
    /// that a long one silences nobody.
    fn beat(&mut self, me: &ActorRef<BatcherMsg>, only: Option<OutletId>) {
        let due = if self.steps == 0 { Duration::ZERO } else { self.due };
        let sent = self.outlets.beat(only, due, now());
        self.heed(sent, me);
    }

    /// What the batch has done so far, at most once a second.
    fn log(&mut self) {
        let stats = self.batch.stats();
        if stats != self.logged {
            tracing::debug!(?stats, "batch so far");
            self.logged = stats;
        }
    }

    /// Starts the next steps, unless there are enough. Who does not read runs out of credit.
    fn launch(&mut self, me: &ActorRef<BatcherMsg>) -> Result<(), ActorProcessingErr> {
        while self.steps < self.args.steps_in_flight {
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
