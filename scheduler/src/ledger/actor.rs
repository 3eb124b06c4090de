//! The actor that writes books and journal: commits what has come into its inbox while the batch before was committed,
//! together, and answers each. Decides nothing itself.

use std::marker::PhantomData;
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::inbox::{Inbox, Port};
use super::{Done, LEDGER_RETRY, LedgerError, Store, StoreError, TEND_EVERY, Write, now_ms};

/// Messages of the ledger.
pub(super) enum LedgerMsg {
    /// Commit what is in the inbox.
    Commit,
    /// The store may work again.
    Retry,
    /// A second has passed.
    Tend,
}

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
    inbox: Arc<Inbox>,
    /// A `Retry` is on its way.
    retrying: bool,
}

impl<S: Store> Actor for Ledger<S> {
    type Msg = LedgerMsg;
    type State = State<S>;
    type Arguments = (Arc<S>, Arc<Inbox>);

    async fn pre_start(
        &self,
        me: ActorRef<LedgerMsg>,
        (store, inbox): (Arc<S>, Arc<Inbox>),
    ) -> Result<State<S>, ActorProcessingErr> {
        me.send_after(TEND_EVERY, || LedgerMsg::Tend);
        Ok(State { store, inbox, retrying: false })
    }

    async fn handle(
        &self,
        me: ActorRef<LedgerMsg>,
        message: LedgerMsg,
        state: &mut State<S>,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LedgerMsg::Commit => match state.commit().await? {
                // Behind the other messages, so that none of them waits for a ledger that always has something to write.
                Progress::Done if state.inbox.done() => Ok(me.cast(LedgerMsg::Commit)?),
                Progress::Done => Ok(()),
                Progress::Failed => {
                    state.schedule_retry(&me);
                    Ok(())
                }
            },
            LedgerMsg::Retry => {
                state.retrying = false;
                if state.inbox.tell() {
                    me.cast(LedgerMsg::Commit)?;
                }
                Ok(())
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
    /// What nobody waits for is in the inbox again.
    Failed,
}

impl<S: Store> State<S> {
    fn schedule_retry(&mut self, me: &ActorRef<LedgerMsg>) {
        if !self.retrying && self.inbox.has_any() {
            self.retrying = true;
            me.send_after(LEDGER_RETRY, || LedgerMsg::Retry);
        }
    }

    async fn commit(&mut self) -> Result<Progress, ActorProcessingErr> {
        let (writes, ports): (Vec<Write>, Vec<Option<Port>>) = self.inbox.take().into_iter().unzip();
        let error = match self.store.commit(&writes, now_ms()).await {
            Ok(answers) => {
                for ((done, port), write) in answers.into_iter().zip(ports).zip(writes) {
                    answer(port, done.map_err(LedgerError::from), &write);
                }
                return Ok(Progress::Done);
            }
            Err(error) => error,
        };
        tracing::error!(%error, writes = writes.len(), "the ledger could not commit");
        // Everybody who waits is told at once; the others keep their order.
        for port in self.inbox.put_back(writes.into_iter().zip(ports).collect()) {
            let _ = port.send(Err(LedgerError::Store(error.clone())));
        }
        if is_final(&error) { Err(error.into()) } else { Ok(Progress::Failed) }
    }
}

/// However the actor ends, nobody waits for it any more.
impl<S> Drop for State<S> {
    fn drop(&mut self) {
        self.inbox.close();
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

    use tokio::sync::oneshot;

    use super::super::books::tests::{client, deposit, hold, request};
    use super::super::store::stub::Stub;
    use super::super::write::tests::{append, open, release, write};
    use super::super::{Command, LEDGER_BATCH_MAX, LEDGER_WRITES_MAX, Outcome};
    use super::*;

    /// The actor, as the handle uses it.
    #[derive(Clone)]
    struct Door(ActorRef<LedgerMsg>, Arc<Inbox>);

    impl Door {
        fn push(&self, write: Write, port: Option<Port>) {
            if self.1.push(write, port).unwrap() {
                self.0.cast(LedgerMsg::Commit).unwrap();
            }
        }
    }

    async fn start() -> (Arc<Stub>, Door) {
        let (store, inbox) = (Arc::new(Stub::default()), Arc::new(Inbox::default()));
        let (actor, _) = Actor::spawn(None, Ledger::default(), (store.clone(), inbox.clone())).await.unwrap();
        (store, Door(actor, inbox))
    }

    async fn ask(actor: &Door, command: Command) -> Result<Outcome, LedgerError> {
        let (port, answer) = oneshot::channel();
        actor.push(write(command), Some(port));
        answer.await.unwrap().map(|done| match done {
            Done::Money(outcome) => outcome,
            Done::Appended => panic!("a command was answered as tokens are"),
        })
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
        actor.push(open(1, 10), None);
        for first in 0..5_000 {
            actor.push(append(1, 1, first, &[first]), None);
        }
        ask(&actor, deposit(2, 1, 1_000)).await.unwrap();
        let sizes: Vec<usize> = store.batches.lock().iter().map(Vec::len).collect();
        assert_eq!((sizes.iter().sum::<usize>(), sizes.iter().max()), (5_003, Some(&LEDGER_WRITES_MAX)), "{sizes:?}");
        assert_eq!(store.journal.lock().row(&request(1)).unwrap().tokens, (0..5_000).collect::<Vec<u32>>());
        // What is long waits for the next one.
        for n in 10..30 {
            let spec = vec![1; crate::journal::SPEC_BYTES_MAX];
            actor.push(Write::open(request(n), client(1), 1, spec), None);
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
        actor.push(release(1), None);
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

    #[tokio::test]
    async fn nobody_waits_for_an_actor_that_is_gone() {
        let (_store, actor) = start().await;
        let (port, answer) = oneshot::channel();
        actor.push(write(deposit(1, 1, 1_000)), Some(port));
        actor.0.kill();
        assert!(answer.await.is_err(), "it was killed before it could commit");
        assert_eq!(actor.1.push(write(deposit(2, 1, 1_000)), None), Err(LedgerError::Stopped));
    }
}
