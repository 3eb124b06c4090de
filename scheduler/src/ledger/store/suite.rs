//! What every store does, asked of each of them: the same list over a file that vanishes and over a schema of a server.
#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::task::{Context, Poll, Waker};

use cuckoo_wire::message::FinishReason;
use sqlx::{AssertSqlSafe, ConnectOptions};

use super::super::books::tests::{client, deposit, failover, hold, peer, request};
use super::super::books::{Books, Command, Outcome, Rejection};
use super::super::write::End;
use super::super::write::tests::{append, finished, open, write};
use super::*;
use crate::journal::{Append, Entry, Journal, Refused};

mod model;

/// Somewhere to keep a ledger, which is empty at first.
pub(in super::super) trait Place: Sized {
    type Store: Store;
    async fn make() -> Self;
    /// A process's first step. Where only one may be, the one before must be gone.
    async fn open(&self, me: PeerId) -> Result<Self::Store, StoreError>;
    /// Runs SQL as somebody with a database shell would, and answers how many rows it touched.
    async fn tamper(&self, sql: &'static str) -> u64;
    async fn reopen(&self) -> Self::Store {
        self.open(peer(ME)).await.unwrap()
    }
}

/// The scheduler of these tests.
pub(super) const ME: u8 = 77;

pub(super) struct InFile(pub(super) tempfile::TempDir);

impl Place for InFile {
    type Store = SqliteStore;

    async fn make() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    async fn open(&self, me: PeerId) -> Result<SqliteStore, StoreError> {
        patiently(async || SqliteStore::open(self.0.path(), me).await).await
    }

    async fn tamper(&self, sql: &'static str) -> u64 {
        let file = self.0.path().join("ledger.db");
        let mut connection = sqlx::sqlite::SqliteConnectOptions::new().filename(file).connect().await.unwrap();
        sqlx::query("PRAGMA ignore_check_constraints = ON").execute(&mut connection).await.unwrap();
        sqlx::query(sql).execute(&mut connection).await.unwrap().rows_affected()
    }
}

/// Opens what this process had open a moment ago: processes that are started by other tests have its locks too, until they
/// have become another program.
pub(in super::super) async fn patiently<T>(open: impl AsyncFn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    for _ in 0..400 {
        match open().await {
            Err(StoreError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            done => return done,
        }
    }
    open().await
}

pub(in super::super) struct OnServer {
    pub(super) schema: String,
    pub(in super::super) dir: tempfile::TempDir,
}

impl OnServer {
    pub(in super::super) fn url(&self) -> PostgresUrl {
        postgres::server::shared().address(&self.schema).parse().unwrap()
    }
}

impl Place for OnServer {
    type Store = PostgresStore;

    async fn make() -> Self {
        Self { schema: postgres::server::shared().schema().await, dir: tempfile::tempdir().unwrap() }
    }

    async fn open(&self, me: PeerId) -> Result<PostgresStore, StoreError> {
        patiently(async || PostgresStore::open(&self.url(), &self.dir.path().join(me.to_string()), me).await).await
    }

    async fn tamper(&self, sql: &'static str) -> u64 {
        let mut connection = postgres::server::shared().connect(&self.schema).await;
        sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap().rows_affected()
    }
}

macro_rules! suite {
    ($($fact:ident),* $(,)?) => {
        mod in_file { use super::Place as _; $(#[tokio::test] async fn $fact() { super::$fact(super::InFile::make().await).await; })* }
        mod on_server { use super::Place as _; $(#[tokio::test] async fn $fact() { super::$fact(super::OnServer::make().await).await; })* }
    };
}

suite![
    what_was_committed_is_there_after_a_restart,
    a_wallet_has_the_newest_entries_first,
    a_commit_that_nobody_waits_for_is_whole_or_not_at_all,
    a_trial_balance_finds_what_was_changed_behind_its_back,
    tables_and_books_that_disagree_stop_everything,
    tokens_are_there_while_a_request_runs_after_a_restart_and_after_its_end,
    an_earlier_run_is_fenced_off_and_its_requests_go_on,
    one_request_can_be_claimed_by_force,
    a_long_request_does_not_keep_everybodys_tokens,
    what_has_ended_is_forgotten_after_a_day,
    a_lost_answer_is_the_same_when_tried_again,
    who_is_alone_hears_nothing,
];

pub(super) async fn commit(store: &impl Store, writes: &[Write]) -> Vec<Result<Done, Rejected>> {
    store.commit(writes, 1_000).await.unwrap()
}

pub(super) async fn all(store: &impl Store, writes: &[Write]) {
    for (done, write) in commit(store, writes).await.into_iter().zip(writes) {
        assert!(done.is_ok(), "{write:?}: {done:?}");
    }
}

/// A deposit, a settled and a released request, and an open hold.
pub(super) fn history() -> Vec<Write> {
    let commands = [
        deposit(1, 1, 1_000_000),
        hold(1, 1, 84_000),
        hold(2, 1, 5_000),
        hold(3, 1, 7_000),
        Command::Settle(failover(1)),
        Command::Release { request: request(2) },
    ];
    commands.into_iter().map(write).collect()
}

pub(super) async fn balance_of(store: &impl Store, account: Account) -> i64 {
    store.wallet(&[account], 0).await.unwrap().balances[0].1
}

async fn tokens_of(store: &impl Store, n: u8) -> Vec<u32> {
    store.request(request(n)).await.unwrap().unwrap().tokens
}

/// Everything that `which` finds, until there is no more.
pub(super) async fn take_over(store: &impl Store, which: Takeover) -> Vec<Reopened> {
    let mut all = Vec::new();
    loop {
        let taken = store.take_over(which).await.unwrap();
        if taken.is_empty() {
            return all;
        }
        all.extend(taken);
    }
}

async fn what_was_committed_is_there_after_a_restart(place: impl Place) {
    let store = place.reopen().await;
    let first = commit(&store, &history()).await;
    assert!(first.iter().all(Result::is_ok), "{first:?}");
    let trial = store.trial_balance().await.unwrap();
    // Deposit 1, holds 3, settlement 4 shares + void + 2 miners, release 1.
    assert_eq!((trial.postings, trial.holds_open, trial.deposited), (12, 1, 1_000_000));
    let split = Settled { cost: 60_000, miner: 49_200, author: 4_800, network: 6_000 };
    assert_eq!(trial.totals, Totals { requests: 1, split });
    drop(store);

    let store = place.reopen().await;
    assert_eq!(store.trial_balance().await.unwrap(), trial);
    assert_eq!(balance_of(&store, Account::Client(client(1))).await, 1_000_000 - 60_000 - 7_000);
    assert_eq!(balance_of(&store, Account::MinerPending(peer(2))).await, 36_080);
    let again = commit(&store, &history()).await;
    assert_eq!(again[0], first[0]);
    assert_eq!(again[3..], first[3..], "the open hold, the settlement and the release have their first outcome");
    let over = [Rejection::AlreadySettled(request(1)), Rejection::AlreadyReleased(request(2))];
    assert_eq!(again[1..3], over.map(|r| Err(Rejected::Money(r))));
    assert_eq!(store.trial_balance().await.unwrap(), trial, "tried again, nothing moved");
    store.tend(1_000).await.unwrap();
    assert_eq!(store.trial_balance().await.unwrap(), trial, "adding incomes up moves nothing");
}

async fn a_wallet_has_the_newest_entries_first(place: impl Place) {
    let store = place.reopen().await;
    commit(&store, &history()).await;
    let wallet = store.wallet(&[Account::Client(client(1)), Account::NetInsurance], 3).await.unwrap();
    assert_eq!(wallet.balances, [(Account::Client(client(1)).to_string(), 933_000), ("net:insurance".to_owned(), 0)]);
    let lines: Vec<_> = wallet.entries.iter().map(|e| (e.kind.as_str(), e.amount, e.request)).collect();
    assert_eq!(
        lines,
        [("release", 5_000, Some(request(2))), ("void", 24_000, Some(request(1))), ("hold", -7_000, Some(request(3))),]
    );
    assert_eq!(wallet.entries[0].counterparty, format!("hold:{}", request(2)));
    assert_eq!(wallet.entries[0].at_ms, 1_000);
    let miner = store.wallet(&Account::of_peer(peer(2)), u32::MAX).await.unwrap();
    assert_eq!(miner.entries.len(), 1);
    assert_eq!(miner.balances.iter().map(|b| b.1).sum::<i64>(), 36_080);
}

async fn a_commit_that_nobody_waits_for_is_whole_or_not_at_all(place: impl Place) {
    let store = place.reopen().await;
    all(&store, &[write(deposit(1, 1, 1_000_000))]).await;
    let mut whole = 0;
    for n in 0..40_u8 {
        let writes = [open(n, 1_000), open(100 + n, 1_000), append(n, 1, 0, &[1, 2])];
        {
            let mut work = Box::pin(store.commit(&writes, 1));
            // Polled n times, then dropped where it stands.
            for _ in 0..n {
                let mut context = Context::from_waker(Waker::noop());
                if let Poll::Ready(done) = work.as_mut().poll(&mut context) {
                    done.unwrap();
                    break;
                }
                tokio::time::sleep(Duration::from_micros(300)).await;
            }
        }
        // On a server the transaction ends when the connection is seen to be gone; whoever writes next waits for it.
        store.tend(1).await.unwrap();
        let trial = store.trial_balance().await.unwrap();
        assert_eq!((trial.holds_open - whole) % 2, 0, "half a batch was written");
        assert_eq!(
            store.request(request(n)).await.unwrap().map(|kept| kept.tokens),
            (trial.holds_open > whole).then(|| vec![1, 2])
        );
        whole = trial.holds_open;
    }
    assert!(whole > 0, "no batch got through");
}

async fn a_trial_balance_finds_what_was_changed_behind_its_back<P: Place>(_: P) {
    // What a CHECK lets through, too: a server's cannot be switched off.
    let changes = [
        "UPDATE account SET balance = balance + 1 WHERE name = 'client:0101010101010101'",
        "UPDATE account SET name = 'net:insurance' WHERE name = 'net:fee'",
        "UPDATE account SET name = 'nobody' WHERE name = 'net:fee'",
        "UPDATE posting SET amount = amount + 1 WHERE seq = 3",
        "UPDATE posting SET at_ms = 7 WHERE seq = 3",
        "UPDATE posting SET credit = debit, debit = credit WHERE seq = 3",
        "UPDATE posting SET chain = (SELECT p.chain FROM posting AS p WHERE p.seq = 4) WHERE seq = 3",
        "DELETE FROM posting WHERE seq = 3",
        "DELETE FROM posting WHERE seq = 12",
        "UPDATE hold SET cost = cost - 1, miner = miner - 1 WHERE state = 'settled'",
        "UPDATE hold SET state = 'open' WHERE state = 'released'",
        "UPDATE hold SET amount = amount + 1 WHERE state = 'open'",
        "UPDATE total SET cost = cost + 1, network = network + 1",
        "DELETE FROM request WHERE ended_ms IS NULL",
        "UPDATE request SET ended_ms = NULL, output = NULL, ending = NULL",
        "DELETE FROM segment WHERE seq = 1",
        "UPDATE segment SET seq = 9 WHERE seq = 1",
    ];
    for sql in changes {
        let place = P::make().await;
        let store = place.reopen().await;
        all(&store, &history()).await;
        all(&store, &[open(4, 100), append(4, 1, 0, &[1, 2])]).await;
        // With money, so that they are where they are tampered with.
        all(&store, &[write(deposit(9, 1, 1)), append(4, 1, 2, &[3, 4])]).await;
        store.trial_balance().await.unwrap();
        assert!(place.tamper(sql).await > 0, "{sql}");
        let found = store.trial_balance().await;
        assert!(matches!(found, Err(StoreError::OutOfBalance(_))), "{sql}: {found:?}");
    }
}

async fn tables_and_books_that_disagree_stop_everything(place: impl Place) {
    let store = place.reopen().await;
    commit(&store, &history()).await;
    // The settled hold looks open again: paying it twice would make money, and is refused as a bug.
    place.tamper("UPDATE hold SET state = 'open', cost = 0, miner = 0, author = 0, network = 0 WHERE cost > 0").await;
    place.tamper("UPDATE request SET ended_ms = NULL, output = NULL, ending = NULL").await;
    let error = store.commit(&[write(Command::Settle(failover(1)))], 1).await.unwrap_err();
    assert!(matches!(error, StoreError::Broken(_)), "{error}");
    // A transfer that is there already, though the hold is not.
    place.tamper("DELETE FROM request").await;
    place.tamper("DELETE FROM hold WHERE state = 'open' AND amount = 7000").await;
    let error = store.commit(&[write(hold(3, 1, 100))], 1).await.unwrap_err();
    assert!(matches!(error, StoreError::Broken(_)), "{error}");
}

async fn tokens_are_there_while_a_request_runs_after_a_restart_and_after_its_end(place: impl Place) {
    let store = place.reopen().await;
    all(&store, &[write(deposit(1, 1, 100_000)), open(1, 84_000), open(2, 100), append(1, 1, 0, &[10, 11])]).await;
    all(&store, &[append(2, 1, 0, &[70_000]), append(1, 1, 2, &[12])]).await;
    assert_eq!(tokens_of(&store, 1).await, [10, 11, 12]);
    let gap = Refused::OutOfOrder { request: request(1), accepted: 3, first: 4 };
    assert_eq!(commit(&store, &[append(1, 1, 4, &[14])]).await, [Err(Rejected::Journal(gap))]);
    drop(store);

    let store = place.reopen().await;
    assert_eq!((tokens_of(&store, 1).await, tokens_of(&store, 2).await), (vec![10, 11, 12], vec![70_000]));
    let rest: Vec<u32> = (13..260).collect();
    all(&store, &[append(1, 1, 3, &rest), Write::settle(failover(1), finished())]).await;
    let ended = store.request(request(1)).await.unwrap().unwrap();
    assert_eq!(ended.tokens, (10..260).collect::<Vec<u32>>());
    assert_eq!((ended.ending, ended.spec, ended.client), (Some(finished().ending), vec![1, 1, 2], client(1)));
    assert!(matches!(ended.hold, HoldState::Settled { completion_tokens: 250, .. }));
    let late = commit(&store, &[append(1, 1, 250, &[9]), append(3, 1, 0, &[9])]).await;
    assert_eq!(late, [Err(Refused::Ended(request(1)).into()), Err(Refused::Unknown(request(3)).into())]);
    store.trial_balance().await.unwrap();
}

async fn an_earlier_run_is_fenced_off_and_its_requests_go_on(place: impl Place) {
    let store = place.reopen().await;
    let many: Vec<Write> = (0..100).flat_map(|n| [open(n, 10), append(n, 1, 0, &[u32::from(n), 7])]).collect();
    all(&store, &[write(deposit(1, 1, 100_000))]).await;
    all(&store, &many).await;
    assert_eq!(take_over(&store, Takeover::Earlier).await, [], "what this run opened is its own");
    drop(store);
    let store = place.reopen().await;
    let mut taken = take_over(&store, Takeover::Earlier).await;
    taken.sort_by_key(|reopened| reopened.request);
    assert_eq!(taken.len(), 100);
    for (n, reopened) in (0..100_u8).zip(&taken) {
        let Reopened { request: id, client: whose, spec, tokens, epoch, .. } = reopened;
        assert_eq!((*id, *whose, *epoch), (request(n), client(1), Epoch(2)));
        assert_eq!((spec.as_slice(), tokens.as_slice()), ([n, 1, 2].as_slice(), [u32::from(n), 7].as_slice()));
    }
    let fenced = Err(Rejected::Journal(Refused::Fenced(request(1))));
    let old = [append(1, 1, 2, &[8]), Write::release(request(1), finished()), open(1, 10)];
    assert_eq!(commit(&store, &old).await, [fenced.clone(), fenced.clone(), fenced]);
    let end = End { epoch: Epoch(2), ..finished() };
    all(&store, &[append(1, 2, 2, &[8]), Write::release(request(1), end)]).await;
    assert_eq!(tokens_of(&store, 1).await, [1, 7, 8]);
    assert_eq!(store.trial_balance().await.unwrap().holds_open, 99);
}

async fn one_request_can_be_claimed_by_force(place: impl Place) {
    let store = place.reopen().await;
    all(&store, &[write(deposit(1, 1, 1_000)), open(1, 10), open(2, 10), append(1, 1, 0, &[5, 6])]).await;
    let claimed = store.take_over(Takeover::Request(request(1))).await.unwrap();
    assert_eq!(claimed.len(), 1);
    assert_eq!((claimed[0].tokens.clone(), claimed[0].epoch), (vec![5, 6], Epoch(2)));
    let answers = commit(&store, &[append(1, 1, 2, &[7]), append(1, 2, 2, &[7]), append(2, 1, 0, &[7])]).await;
    let fenced = Err(Refused::Fenced(request(1)).into());
    assert_eq!(answers, [fenced, Ok(Done::Appended), Ok(Done::Appended)]);
    all(&store, &[Write::release(request(2), finished())]).await;
    assert_eq!(store.take_over(Takeover::Request(request(2))).await.unwrap(), [], "it has ended");
    assert_eq!(store.take_over(Takeover::Request(request(9))).await.unwrap(), [], "there is none");
    assert_eq!(store.request(request(9)).await.unwrap(), None);
}

async fn a_long_request_does_not_keep_everybodys_tokens(place: impl Place) {
    let store = place.reopen().await;
    all(&store, &[write(deposit(1, 1, 1_000)), open(1, 10), open(2, 10)]).await;
    for n in 0..40 {
        all(&store, &[append(1, 1, n, &[n]), append(2, 1, n, &[100 + n])]).await;
        if n % 5 == 0 {
            store.tend(1_000).await.unwrap();
        }
    }
    let kept = place.tamper("UPDATE segment SET seq = seq").await;
    assert!(kept <= 12, "{kept} segments are kept of 40");
    drop(store);
    let store = place.reopen().await;
    assert_eq!(tokens_of(&store, 1).await, (0..40).collect::<Vec<u32>>());
    let taken = take_over(&store, Takeover::Earlier).await;
    assert_eq!(taken.iter().find(|r| r.request == request(2)).unwrap().tokens, (100..140).collect::<Vec<u32>>());
    let end = || End { epoch: Epoch(2), ..finished() };
    all(&store, &[Write::release(request(1), end()), Write::release(request(2), end())]).await;
    store.tend(1_000).await.unwrap();
    let kept = place.tamper("UPDATE segment SET seq = seq").await;
    assert!(kept <= 1, "nobody needs any, but for the number of the newest");
    // The log goes on behind that, or behind what requests remember of it.
    all(&store, &[open(3, 10), append(3, 1, 0, &[1])]).await;
    drop(store);
    assert_eq!(tokens_of(&place.reopen().await, 3).await, [1]);
}

async fn what_has_ended_is_forgotten_after_a_day(place: impl Place) {
    let store = place.reopen().await;
    all(&store, &history()).await;
    let day = i64::try_from(ENDED_KEPT.as_millis()).unwrap();
    store.tend(1_000 + day).await.unwrap();
    assert!(store.request(request(1)).await.unwrap().is_some(), "not before a day has passed");
    store.tend(1_001 + day).await.unwrap();
    assert_eq!(store.request(request(1)).await.unwrap(), None);
    assert!(store.request(request(3)).await.unwrap().is_some(), "what runs is never forgotten");
    let again = commit(&store, &history()).await;
    assert_eq!(again[1], Err(Rejected::Money(Rejection::AlreadySettled(request(1)))), "an id is never used again");
    assert!(matches!(again[4], Ok(Done::Money(Outcome::Settled(_)))), "the books keep the outcome: {:?}", again[4]);
    store.trial_balance().await.unwrap();
}

async fn a_lost_answer_is_the_same_when_tried_again(place: impl Place) {
    let store = place.reopen().await;
    let refusal = cuckoo_wire::message::Refusal::new(cuckoo_wire::message::RefusalCode::MinerFailed, "x".repeat(4_000));
    let failed = End { ending: Ending::Failed(refusal), ..finished() };
    let length = End { ending: Ending::Finished { reason: FinishReason::Length, migrations: 0 }, ..finished() };
    let writes = [
        write(deposit(1, 1, 100_000)),
        open(1, 84_000),
        append(1, 1, 0, &[3; 200]),
        append(1, 1, 200, &[4; 50]),
        Write::settle(failover(1), length.clone()),
        open(2, 10),
        Write::release(request(2), failed.clone()),
    ];
    let first: Vec<_> = commit(&store, &writes).await;
    let trial = store.trial_balance().await.unwrap();
    for again in [false, true] {
        let answers = commit(&store, &writes).await;
        for i in [0, 4, 6] {
            assert_eq!(answers[i], first[i], "{:?}", writes[i]);
        }
        let kept =
            (store.request(request(1)).await.unwrap().unwrap(), store.request(request(2)).await.unwrap().unwrap());
        assert_eq!((kept.0.ending, kept.1.ending), (Some(length.ending.clone()), Some(failed.ending.clone())));
        assert_eq!(store.trial_balance().await.unwrap(), trial, "{again}");
    }
    all(&store, &[open(3, 10), append(3, 1, 0, &[1, 2]), append(3, 1, 2, &[3])]).await;
    all(&store, &[append(3, 1, 0, &[1, 2]), append(3, 1, 2, &[3]), append(3, 1, 0, &[1, 2, 3])]).await;
    assert_eq!(tokens_of(&store, 3).await, [1, 2, 3]);
    let other = Refused::OutOfOrder { request: request(3), accepted: 3, first: 2 };
    assert_eq!(commit(&store, &[append(3, 1, 2, &[4])]).await, [Err(Rejected::Journal(other))]);
}

async fn who_is_alone_hears_nothing(place: impl Place) {
    let store = place.reopen().await;
    all(&store, &history()).await;
    let trial = store.trial_balance().await.unwrap();
    for number in [1, 1, 2] {
        let note = Note { number, body: vec![7; NOTE_BYTES_MAX] };
        assert_eq!(store.exchange(Some(&note)).await.unwrap(), Vec::<Vec<u8>>::new(), "not itself either");
    }
    drop(store);
    let store = place.reopen().await;
    assert_eq!(store.exchange(None).await.unwrap(), Vec::<Vec<u8>>::new(), "nor its earlier run");
    assert_eq!(store.trial_balance().await.unwrap(), trial);
}
