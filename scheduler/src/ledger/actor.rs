//! The actor that writes books and journal: collects what is to be written while a batch commits, commits it together,
//! answers each. Decides nothing itself.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use super::{
    Done, LEDGER_BATCH_MAX, LEDGER_BYTES_MAX, LEDGER_RETRY, LEDGER_WRITES_MAX, LedgerError, Store, StoreError,
    TEND_EVERY, Write, now_ms,
};
use crate::journal::Entry;

/// Messages of the ledger.
#[allow(clippy::large_enum_variant, reason = "nearly all of them are writes")]
pub(super) enum LedgerMsg {
    /// Do this; answer when it is durable, where somebody waits.
    Apply(Write, Option<Port>),
    /// Commit what has arrived.
    Commit,
    /// The store may work again.
    Retry,
    /// A second has passed.
    Tend,
}

type Port = RpcReplyPort<Result<Done, LedgerError>>;

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
    pending: VecDeque<(Write, Option<Port>)>,
    /// A `Commit` is on its way.
    committing: bool,
    /// A `Retry` is on its way.
    retrying: bool,
}

impl<S: Store> Actor for Ledger<S> {
    type Msg = LedgerMsg;
    type State = State<S>;
    type Arguments = Arc<S>;

    async fn pre_start(&self, me: ActorRef<LedgerMsg>, store: Arc<S>) -> Result<State<S>, ActorProcessingErr> {
        me.send_after(TEND_EVERY, || LedgerMsg::Tend);
        Ok(State { store, pending: VecDeque::new(), committing: false, retrying: false })
    }

    async fn handle(
        &self,
        me: ActorRef<LedgerMsg>,
        message: LedgerMsg,
        state: &mut State<S>,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LedgerMsg::Apply(write, port) => {
                state.pending.push_back((write, port));
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
            LedgerMsg::Tend => {
                // One at a time: the next second begins when this one's work is done.
                me.send_after(TEND_EVERY, || LedgerMsg::Tend);
                match state.store.tend(now_ms()).await {
                    Err(error) if is_final(&error) => Err(error.into()),
                    Err(error) => {
                        tracing::error!(%error, "the ledger's store could not be tended");
                        Ok(())
                    }
                    Ok(()) => Ok(()),
                }
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
        let batch = self.batch_len();
        let (writes, ports): (Vec<Write>, Vec<Option<Port>>) = self.pending.drain(..batch).unzip();
        let error = match self.store.commit(&writes, now_ms()).await {
            Ok(answers) => {
                for ((done, port), write) in answers.into_iter().zip(ports).zip(writes) {
                    answer(port, done.map_err(LedgerError::from), &write);
                }
                return Ok(Progress::Done);
            }
            Err(error) => error,
        };
        tracing::error!(%error, writes = batch, "the ledger could not commit");
        // Everybody who waits is told at once; the others keep their order.
        let later = std::mem::take(&mut self.pending);
        for (write, port) in writes.into_iter().zip(ports).chain(later) {
            match port {
                Some(_) => answer(port, Err(LedgerError::Store(error.clone())), &write),
                None => self.pending.push_back((write, None)),
            }
        }
        if is_final(&error) { Err(error.into()) } else { Ok(Progress::Failed) }
    }

    /// How many of what is pending are one transaction.
    fn batch_len(&self) -> usize {
        let (mut money, mut bytes) = (0, 0);
        let fits = |(write, _): &&(Write, Option<Port>)| {
            money += usize::from(write.money().is_some());
            bytes += write.entry().map_or(0, Entry::weight);
            money <= LEDGER_BATCH_MAX && bytes <= LEDGER_BYTES_MAX
        };
        self.pending.iter().take(LEDGER_WRITES_MAX).take_while(fits).count().max(1).min(self.pending.len())
    }
}

/// Whether this process must not go on after `error`.
fn is_final(error: &StoreError) -> bool {
    matches!(error, StoreError::Broken(_) | StoreError::LeaseLost(_))
}

fn answer(port: Option<Port>, done: Result<Done, LedgerError>, write: &Write) {
    match (port, done) {
        // Who stopped waiting needs no answer.
        (Some(port), done) => drop(port.send(done)),
        (None, Ok(_)) => {}
        (None, Err(error)) => tracing::debug!(%error, ?write, "the ledger did not do what nobody waits for"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use ractor::rpc::CallResult;

    use super::super::books::tests::{client, deposit, hold, request};
    use super::super::store::stub::Stub;
    use super::super::write::tests::{append, open, release, write};
    use super::super::{Command, Outcome};
    use super::*;

    async fn start() -> (Arc<Stub>, ActorRef<LedgerMsg>) {
        let store = Arc::new(Stub::default());
        let (actor, _) = Actor::spawn(None, Ledger::default(), store.clone()).await.unwrap();
        (store, actor)
    }

    async fn ask(actor: &ActorRef<LedgerMsg>, command: Command) -> Result<Outcome, LedgerError> {
        match actor.call(|port| LedgerMsg::Apply(write(command), Some(port)), None).await.unwrap() {
            CallResult::Success(answer) => answer.map(|done| match done {
                Done::Money(outcome) => outcome,
                Done::Appended => panic!("a command was answered as tokens are"),
            }),
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
    async fn tokens_of_thousands_of_streams_are_one_batch() {
        let (store, actor) = start().await;
        ask(&actor, deposit(1, 1, 1_000)).await.unwrap();
        actor.cast(LedgerMsg::Apply(open(1, 10), None)).unwrap();
        for first in 0..5_000 {
            actor.cast(LedgerMsg::Apply(append(1, 1, first, &[first]), None)).unwrap();
        }
        ask(&actor, deposit(2, 1, 1_000)).await.unwrap();
        let sizes: Vec<usize> = store.batches.lock().iter().map(Vec::len).collect();
        assert_eq!((sizes.iter().sum::<usize>(), sizes.iter().max()), (5_003, Some(&LEDGER_WRITES_MAX)), "{sizes:?}");
        assert_eq!(store.journal.lock().row(&request(1)).unwrap().tokens, (0..5_000).collect::<Vec<u32>>());
        // What is long waits for the next one.
        for n in 10..30 {
            let spec = vec![1; crate::journal::SPEC_BYTES_MAX];
            actor.cast(LedgerMsg::Apply(Write::open(request(n), client(1), 1, spec), None)).unwrap();
        }
        ask(&actor, deposit(3, 1, 1_000)).await.unwrap();
        let sizes: Vec<usize> = store.batches.lock().iter().skip(sizes.len()).map(Vec::len).collect();
        assert_eq!(sizes, [8, 8, 5]);
    }

    #[tokio::test]
    async fn a_failed_commit_is_told_to_who_waits_and_retried_for_who_does_not() {
        let (store, actor) = start().await;
        ask(&actor, deposit(1, 1, 1_000)).await.unwrap();
        ask(&actor, hold(1, 1, 600)).await.unwrap();
        store.failures.lock().extend([full(), full()]);
        actor.cast(LedgerMsg::Apply(release(1), None)).unwrap();
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
