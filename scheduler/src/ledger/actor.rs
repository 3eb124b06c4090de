//! The actor that writes the books: collects commands while a batch commits, commits them together, answers each.
//! Decides nothing itself.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use super::{Command, LEDGER_BATCH_MAX, LEDGER_RETRY, LedgerError, Outcome, Store, StoreError, now_ms};

/// Messages of the ledger.
pub(super) enum LedgerMsg {
    /// Do this; answer when it is durable, where somebody waits.
    Apply(Command, Option<Port>),
    /// Commit what has arrived.
    Commit,
    /// The store may work again.
    Retry,
}

type Port = RpcReplyPort<Result<Outcome, LedgerError>>;

/// The actor over any store.
pub(super) struct Ledger<S>(PhantomData<fn() -> S>);

impl<S> Default for Ledger<S> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

/// What the actor owns.
pub(super) struct State<S> {
    store: Arc<S>,
    /// Arrived and not committed. Bounded: by the handle's places where somebody waits, by open holds where not.
    pending: VecDeque<(Command, Option<Port>)>,
    /// A `Commit` is on its way.
    committing: bool,
    /// A `Retry` is on its way.
    retrying: bool,
}

impl<S: Store> Actor for Ledger<S> {
    type Msg = LedgerMsg;
    type State = State<S>;
    type Arguments = Arc<S>;

    async fn pre_start(&self, _: ActorRef<LedgerMsg>, store: Arc<S>) -> Result<State<S>, ActorProcessingErr> {
        Ok(State { store, pending: VecDeque::new(), committing: false, retrying: false })
    }

    async fn handle(
        &self,
        me: ActorRef<LedgerMsg>,
        message: LedgerMsg,
        state: &mut State<S>,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LedgerMsg::Apply(command, port) => {
                state.pending.push_back((command, port));
                state.schedule_commit(&me)
            }
            LedgerMsg::Commit => {
                state.committing = false;
                match state.commit().await? {
                    Progress::Done => state.schedule_commit(&me),
                    Progress::Failed => {
                        state.schedule_retry(&me);
                        Ok(())
                    }
                }
            }
            LedgerMsg::Retry => {
                state.retrying = false;
                state.schedule_commit(&me)
            }
        }
    }
}

/// How a batch went.
enum Progress {
    Done,
    /// What nobody waits for is pending again.
    Failed,
}

impl<S: Store> State<S> {
    /// The message goes behind what has arrived meanwhile, and that is what fills a batch.
    fn schedule_commit(&mut self, me: &ActorRef<LedgerMsg>) -> Result<(), ActorProcessingErr> {
        if !self.committing && !self.pending.is_empty() {
            self.committing = true;
            me.cast(LedgerMsg::Commit)?;
        }
        Ok(())
    }

    fn schedule_retry(&mut self, me: &ActorRef<LedgerMsg>) {
        if !self.retrying && !self.pending.is_empty() {
            self.retrying = true;
            me.send_after(LEDGER_RETRY, || LedgerMsg::Retry);
        }
    }

    async fn commit(&mut self) -> Result<Progress, ActorProcessingErr> {
        let batch = self.pending.len().min(LEDGER_BATCH_MAX);
        let (commands, ports): (Vec<Command>, Vec<Option<Port>>) = self.pending.drain(..batch).unzip();
        let error = match self.store.commit(&commands, now_ms()).await {
            Ok(outcomes) => {
                for ((outcome, port), command) in outcomes.into_iter().zip(ports).zip(commands) {
                    answer(port, outcome.map_err(LedgerError::Rejected), &command);
                }
                return Ok(Progress::Done);
            }
            Err(error) => error,
        };
        tracing::error!(%error, commands = batch, "the ledger could not commit");
        // Everybody who waits is told at once; the others keep their order.
        let later = std::mem::take(&mut self.pending);
        for (command, port) in commands.into_iter().zip(ports).chain(later) {
            match port {
                Some(_) => answer(port, Err(LedgerError::Store(error.clone())), &command),
                None => self.pending.push_back((command, None)),
            }
        }
        if matches!(error, StoreError::Broken(_)) { Err(error.into()) } else { Ok(Progress::Failed) }
    }
}

fn answer(port: Option<Port>, outcome: Result<Outcome, LedgerError>, command: &Command) {
    match (port, outcome) {
        // Who stopped waiting needs no answer.
        (Some(port), outcome) => drop(port.send(outcome)),
        (None, Ok(_)) => {}
        (None, Err(error)) => tracing::debug!(%error, ?command, "the ledger did not do what nobody waits for"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use ractor::rpc::CallResult;

    use super::super::books::tests::{client, deposit, hold, request};
    use super::super::store::stub::Stub;
    use super::*;

    async fn start() -> (Arc<Stub>, ActorRef<LedgerMsg>) {
        let store = Arc::new(Stub::default());
        let (actor, _) = Actor::spawn(None, Ledger::default(), store.clone()).await.unwrap();
        (store, actor)
    }

    async fn ask(actor: &ActorRef<LedgerMsg>, command: Command) -> Result<Outcome, LedgerError> {
        match actor.call(|port| LedgerMsg::Apply(command, Some(port)), None).await.unwrap() {
            CallResult::Success(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn full() -> StoreError {
        StoreError::Full { path: "ledger.db".into() }
    }

    #[tokio::test]
    async fn what_arrives_during_a_commit_is_the_next_batch() {
        let (store, actor) = start().await;
        ask(&actor, deposit(1, 1, 1_000)).await.unwrap();
        let command = |n: u16| {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&n.to_le_bytes());
            Command::Hold { request: cuckoo_wire::message::RequestId(id), client: client(1), amount: 1 }
        };
        let asked: Vec<_> = (0..700)
            .map(|n| {
                let actor = actor.clone();
                tokio::spawn(async move { ask(&actor, command(n)).await })
            })
            .collect();
        for answer in asked {
            assert_eq!(answer.await.unwrap(), Ok(Outcome::Held));
        }
        let sizes: Vec<usize> = store.batches.lock().iter().map(Vec::len).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 701);
        assert_eq!(sizes.iter().max(), Some(&LEDGER_BATCH_MAX));
        assert!(sizes.len() <= 6, "{sizes:?}");
    }

    #[tokio::test]
    async fn a_failed_commit_is_told_to_who_waits_and_retried_for_who_does_not() {
        let (store, actor) = start().await;
        ask(&actor, deposit(1, 1, 1_000)).await.unwrap();
        ask(&actor, hold(1, 1, 600)).await.unwrap();
        store.failures.lock().extend([full(), full()]);
        actor.cast(LedgerMsg::Apply(Command::Release { request: request(1) }, None)).unwrap();
        assert_eq!(ask(&actor, hold(2, 1, 100)).await, Err(LedgerError::Store(full())));
        assert_eq!(ask(&actor, hold(3, 1, 100)).await, Err(LedgerError::Store(full())));
        let released = async {
            while store.books.lock().balance(&super::super::Account::Client(client(1))) < 1_000 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LEDGER_RETRY * 3, released).await.expect("the release is tried again");
        assert_eq!(ask(&actor, hold(3, 1, 1_000)).await, Ok(Outcome::Held));
    }
}
