//! The store on real files: what a lost connection, a torn log or a full disk leaves, and what is not opened. Every ledger
//! lies in a directory that vanishes.
#![allow(clippy::unwrap_used)]

use sqlx::AssertSqlSafe;

use super::super::super::books::tests::{deposit, failover, hold, peer, request};
use super::super::super::books::{Command, Outcome};
use super::super::super::write::tests::{append, release, write};
use super::super::SEGMENTS_MAX;
use super::super::suite::{ME, all, commit, history, patiently};
use super::*;
use crate::journal::{Append, Entry, Epoch, Refused};

async fn open(dir: &Path) -> Result<SqliteStore, StoreError> {
    patiently(async || SqliteStore::open(dir, peer(ME)).await).await
}

#[tokio::test]
async fn a_connection_lost_inside_a_transaction_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    commit(&store, &history()).await;
    let before = store.trial_balance().await.unwrap();
    let mut connection = store.pen.lock().await.take().unwrap().connection;
    let tx = connection.begin_with("BEGIN IMMEDIATE").await.unwrap();
    std::mem::forget(tx); // no rollback is asked for: the connection just ends
    sqlx::query("UPDATE account SET balance = balance + 1 WHERE name = 'net:fee'")
        .execute(&mut connection)
        .await
        .unwrap();
    drop(connection);
    assert_eq!(store.trial_balance().await.unwrap(), before);
    assert_eq!(commit(&store, &[write(hold(4, 1, 10))]).await, [Ok(Done::Money(Outcome::Held))]);
    store.trial_balance().await.unwrap();
}

#[tokio::test]
async fn a_torn_log_is_cut_back_to_a_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    all(&store, &[write(deposit(1, 1, 1_000_000))]).await;
    for n in 0..10 {
        let settle = write(Command::Settle(failover(n)));
        all(&store, &[super::super::super::write::tests::open(n, 84_000), append(n, 1, 0, &[1; 250]), settle]).await;
    }
    // The files as a crash would leave them: nothing closed, the log cut anywhere.
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let (database, log) = (read(FILE), read("ledger.db-wal"));
    assert!(log.len() > 4_096, "the log is empty: the test shows nothing");
    let mut seen = std::collections::BTreeSet::new();
    for cut in (0..=48).map(|i| log.len() * i / 48) {
        let crashed = tempfile::tempdir().unwrap();
        std::fs::write(crashed.path().join(FILE), &database).unwrap();
        std::fs::write(crashed.path().join("ledger.db-wal"), &log[..cut]).unwrap();
        let store = open(crashed.path()).await.unwrap();
        let trial = store.trial_balance().await.unwrap();
        assert!(trial.postings == 0 || trial.postings % 8 == 1, "{} postings are part of a batch", trial.postings);
        for n in 0..10 {
            let whole = u64::from(n) < trial.postings / 8;
            let tokens = store.request(request(n)).await.unwrap().map(|kept| kept.tokens.len());
            assert_eq!(tokens, whole.then_some(250), "request {n} of a log of {cut} bytes");
        }
        seen.insert(trial.postings);
    }
    assert!(seen.len() > 8 && seen.contains(&81), "cuts fell between batches: {seen:?}");
}

/// A ledger with two requests open whose tokens are in the log: five appends of two tokens each to the first.
async fn with_a_log(dir: &Path) -> SqliteStore {
    let store = open(dir).await.unwrap();
    let opened = |n| super::super::super::write::tests::open(n, 1_000);
    all(&store, &[write(deposit(1, 1, 1_000_000)), opened(1), opened(2)]).await;
    for n in 0..5 {
        logged(&store, append(1, 1, 2 * n, &[2 * n, 2 * n + 1]));
    }
    store
}

/// Accepts tokens, if that takes no transaction.
fn accept(store: &SqliteStore, tokens: &Write) -> Option<Result<(), Refused>> {
    let Some(Entry::Append { request, epoch, first, tokens, by }) = tokens.entry() else { panic!("{tokens:?}") };
    store.accept(Append { request: *request, epoch: *epoch, first: *first, tokens, by: *by })
}

/// Accepts tokens, and writes them down.
fn logged(store: &SqliteStore, tokens: Write) {
    assert_eq!(accept(store, &tokens), Some(Ok(())));
    store.flush().unwrap();
}

async fn tokens(store: &SqliteStore, n: u8) -> Vec<u32> {
    store.request(request(n)).await.unwrap().unwrap().tokens
}

/// Copies a ledger as a crash would leave it, nothing closed, with this log.
fn crashed(from: &Path, log: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in [FILE, "ledger.db-wal"] {
        std::fs::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join(LOG_FILE), log).unwrap();
    dir
}

#[tokio::test]
async fn tokens_alone_take_no_transaction_before_the_log_is_long() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_a_log(dir.path()).await;
    let count = async || -> i64 {
        let mut reader = store.reader().await.unwrap();
        sqlx::query_scalar("SELECT count(*) FROM segment").fetch_one(&mut *reader).await.unwrap()
    };
    assert_eq!((count().await, tokens(&store, 1).await), (0, (0..10).collect()));
    store.trial_balance().await.unwrap();
    all(&store, &[write(deposit(2, 1, 1))]).await;
    store.tend(1).await.unwrap();
    assert_eq!((count().await, tokens(&store, 1).await), (0, (0..10).collect()), "money leaves them where they are");
    all(&store, &[write(deposit(3, 1, 1)), append(2, 1, 0, &[70])]).await;
    assert_eq!((count().await, tokens(&store, 1).await, tokens(&store, 2).await), (1, (0..10).collect(), vec![70]));
    let is_empty = || Tail::read(&store.log).unwrap().owner().is_none();
    for n in 0..100 {
        logged(&store, append(2, 1, 1 + n, &[n]));
    }
    assert!(!is_empty());
    store.tend(1).await.unwrap();
    assert_eq!((count().await, tokens(&store, 2).await.len(), is_empty()), (2, 101, true));
    // What nobody needs any more is not taken along; the newest segment stays, and with it its number.
    logged(&store, append(1, 1, 10, &[10; 1_000]));
    logged(&store, append(2, 1, 101, &[101]));
    all(&store, &[release(1), release(2)]).await;
    store.tend(1).await.unwrap();
    assert_eq!((count().await, tokens(&store, 2).await.len(), is_empty()), (1, 102, true));
    all(&store, &[super::super::super::write::tests::open(3, 1_000)]).await;
    logged(&store, append(3, 1, 0, &[3]));
    let read = |store: &SqliteStore| {
        (Tail::read(&store.log).unwrap(), store.live.lock().as_ref().unwrap().journal.next_segment())
    };
    let (tail, next) = read(&store);
    assert_eq!((tail.segment(3).unwrap().0.len(), next), (1, 3));
    all(&store, &[release(3)]).await;
    store.tend(1).await.unwrap();
    // The log has what has ended, and nobody misses what was before it.
    store.trial_balance().await.unwrap();
    drop(store);
    let store = open(dir.path()).await.unwrap();
    assert_eq!((tokens(&store, 3).await, read(&store).1), (vec![3], 4));
    store.trial_balance().await.unwrap();
}

#[tokio::test]
async fn a_request_that_says_nothing_for_long_loses_nothing_then() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_a_log(dir.path()).await;
    all(&store, &[super::super::super::write::tests::open(3, 1_000), release(1)]).await;
    for n in 0..=SEGMENTS_MAX as u32 {
        all(&store, &[append(2, 1, n, &[n])]).await;
    }
    all(&store, &[release(2)]).await;
    // What runs is written anew, and there is nothing of it.
    store.tend(1).await.unwrap();
    logged(&store, append(3, 1, 0, &[30]));
    store.trial_balance().await.unwrap();
    drop(store);
    assert_eq!(tokens(&open(dir.path()).await.unwrap(), 3).await, [30]);
}

#[tokio::test]
async fn tokens_do_not_wait_for_others_money() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_a_log(dir.path()).await;
    all(&store, &[super::super::super::write::tests::open(3, 1_000)]).await;
    // Somebody else has the database, so that a transaction waits inside.
    let mut stranger = store.connect().await.unwrap();
    let waits = async |commit: std::pin::Pin<&mut dyn Future<Output = _>>| {
        let done: Result<Result<Vec<_>, StoreError>, _> = tokio::time::timeout(BUSY_WAIT / 50, commit).await;
        assert!(done.is_err(), "{done:?}");
    };
    let theirs = stranger.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let ends = [release(2)];
    {
        let mut commit = std::pin::pin!(store.commit(&ends, 1));
        waits(commit.as_mut()).await;
        logged(&store, append(1, 1, 10, &[10]));
        assert_eq!(accept(&store, &append(2, 1, 0, &[20])), None, "what it is about waits for it");
        assert_eq!(tokens(&store, 1).await.len(), 11);
        theirs.rollback().await.unwrap();
        assert!(matches!(commit.await.unwrap()[..], [Ok(Done::Money(Outcome::Released(1_000)))]));
    }
    assert_eq!(store.commit(&[append(2, 1, 0, &[20])], 1).await.unwrap(), [Err(Refused::Ended(request(2)).into())]);

    // Nobody waits any more, and nobody knows what became of it: what it is not about goes on.
    let theirs = stranger.begin_with("BEGIN IMMEDIATE").await.unwrap();
    {
        let ends = [release(3)];
        waits(std::pin::pin!(store.commit(&ends, 1)).as_mut()).await;
    }
    logged(&store, append(1, 1, 11, &[11]));
    assert_eq!(accept(&store, &append(3, 1, 0, &[30])), None);
    assert_eq!(accept(&store, &append(1, 1, 12, &[12])), Some(Ok(())));
    theirs.rollback().await.unwrap();
    all(&store, &[append(3, 1, 0, &[30])]).await;
    logged(&store, append(3, 1, 1, &[31]));
    for _ in 0..2 {
        assert_eq!((tokens(&store, 1).await, tokens(&store, 3).await), ((0..13).collect(), vec![30, 31]));
        all(&store, &[write(deposit(2, 1, 1))]).await;
        store.tend(1).await.unwrap();
    }
    drop(store);
    let store = open(dir.path()).await.unwrap();
    assert_eq!((tokens(&store, 1).await, tokens(&store, 3).await), ((0..13).collect(), vec![30, 31]));
    store.trial_balance().await.unwrap();
}

#[tokio::test]
async fn a_torn_log_of_tokens_is_cut_back_to_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_a_log(dir.path()).await;
    let log = std::fs::read(dir.path().join(LOG_FILE)).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for cut in (0..=24).map(|i| log.len() * i / 24) {
        let torn = crashed(dir.path(), &log[..cut]);
        // Twice: what is read is moved, and there is nothing else to be read afterwards.
        for again in [false, true] {
            let store = open(torn.path()).await.unwrap();
            let found = tokens(&store, 1).await;
            assert!(found.len() % 2 == 0 && found == (0..found.len() as u32).collect::<Vec<u32>>(), "{found:?}");
            store.trial_balance().await.unwrap();
            if again {
                // It goes on from there, and what is written again counts once.
                logged(&store, append(1, 1, found.len() as u32, &[9]));
                assert_eq!(tokens(&store, 1).await.len(), found.len() + 1);
            }
            seen.insert(found.len());
        }
    }
    assert_eq!(seen, (0..=5).map(|n| 2 * n).collect(), "cuts fell between batches");
    assert_eq!(tokens(&store, 1).await.len(), 10);
}

#[tokio::test]
async fn what_comes_after_something_lost_is_lost_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_a_log(dir.path()).await;
    for n in 10..12 {
        let (slot, mut writer) = store.writer().await.unwrap();
        assert!(journal::take_along(&mut writer).await.is_ok());
        store.put(slot, writer);
        logged(&store, append(1, 1, n, &[n]));
    }
    store.trial_balance().await.unwrap();
    // A loss of power: the log was on the disk already, what went to the database a moment before it was not.
    sqlx::query("DELETE FROM segment WHERE seq = 2").execute(&mut store.connect().await.unwrap()).await.unwrap();
    let StoreError::OutOfBalance(why) = store.trial_balance().await.unwrap_err() else { panic!("it is not noticed") };
    assert!(why.contains("segment 3 where 2 is due"), "{why}");
    drop(store);
    let store = open(dir.path()).await.unwrap();
    assert_eq!(tokens(&store, 1).await, (0..10).collect::<Vec<u32>>());
    logged(&store, append(1, 1, 10, &[60, 70]));
    drop(store);
    let store = open(dir.path()).await.unwrap();
    assert_eq!(tokens(&store, 1).await, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 60, 70]);
    store.trial_balance().await.unwrap();
}

#[tokio::test]
async fn a_log_is_its_ledgers_and_its_owners() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(with_a_log(dir.path()).await);
    let log = std::fs::read(dir.path().join(LOG_FILE)).unwrap();
    // A scheduler with a new key takes in what the one before it left.
    let store = patiently(async || SqliteStore::open(dir.path(), peer(99)).await).await.unwrap();
    assert_eq!(tokens(&store, 1).await, (0..10).collect::<Vec<u32>>());
    let taken = store.take_over(Takeover::Expired).await.unwrap();
    assert_eq!(taken.iter().map(|r| r.tokens.len()).collect::<Vec<_>>(), [10, 0]);
    // Beside a ledger that does not wait for it, or that has no such scheduler, it is nobody's.
    std::fs::write(other.path().join(LOG_FILE), &log).unwrap();
    open(other.path()).await.unwrap().trial_balance().await.unwrap();
    let mut strange = Log::begin(&other.path().join(LOG_FILE), 9).unwrap();
    strange.add(&Append { request: request(1), epoch: Epoch::FIRST, first: 0, tokens: &[1], by: None });
    strange.flush(1).unwrap();
    open(other.path()).await.unwrap().trial_balance().await.unwrap();
}

#[tokio::test]
async fn a_log_of_a_newer_program_is_not_thrown_away() {
    let dir = tempfile::tempdir().unwrap();
    drop(with_a_log(dir.path()).await);
    let log = dir.path().join(LOG_FILE);
    let newer = log::tests::newer(&std::fs::read(&log).unwrap());
    std::fs::write(&log, &newer).unwrap();
    let StoreError::OutOfBalance(why) = open(dir.path()).await.err().unwrap() else { panic!("it opens") };
    assert!(why.contains("update it"), "{why}");
    assert_eq!(std::fs::read(&log).unwrap(), newer);
}

#[tokio::test]
async fn a_log_that_cannot_be_written_is_said_so_and_nothing_of_the_batch_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_a_log(dir.path()).await;
    let log = dir.path().join(LOG_FILE);
    std::fs::remove_file(&log).unwrap();
    // A directory in its place, so that a log cannot be begun anew: who comes next hears so as well.
    std::fs::create_dir(&log).unwrap();
    drop(store.pen.lock().await.take());
    let refused = store.commit(&[append(1, 1, 10, &[10])], 1).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unusable { .. }), "{refused}");
    std::fs::remove_dir(&log).unwrap();
    // What was only in the file that is gone is gone: it is written again.
    let rest: Vec<u32> = (0..11).collect();
    all(&store, &[append(1, 1, 0, &rest)]).await;
    assert_eq!(tokens(&store, 1).await, rest);
}

#[tokio::test]
async fn what_can_be_accepted_at_once_is_and_the_rest_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_a_log(dir.path()).await;
    assert_eq!(accept(&store, &append(1, 1, 10, &[10])), Some(Ok(())));
    assert_eq!(accept(&store, &append(1, 1, 10, &[10])), Some(Ok(())), "it counts once");
    assert_eq!(tokens(&store, 1).await.len(), 10, "it is not written down yet");
    let gap = Refused::OutOfOrder { request: request(1), accepted: 11, first: 12 };
    assert_eq!(accept(&store, &append(1, 1, 12, &[12])), Some(Err(gap)));
    assert_eq!(accept(&store, &append(1, 2, 11, &[11])), Some(Err(Refused::Fenced(request(1)))));
    assert_eq!(accept(&store, &append(9, 1, 0, &[1])), None, "it takes a look at the database");
    store.flush().unwrap();
    assert_eq!(tokens(&store, 1).await, (0..11).collect::<Vec<u32>>());
    // A transaction writes down what was accepted before it, and nothing is accepted beside it.
    assert_eq!(accept(&store, &append(2, 1, 0, &[7])), Some(Ok(())));
    let (slot, writer) = store.writer().await.unwrap();
    assert_eq!((accept(&store, &append(1, 1, 11, &[11])), store.flush()), (None, Ok(())));
    store.put(slot, writer);
    assert_eq!(tokens(&store, 2).await, [7]);
    logged(&store, append(1, 1, 11, &[11]));
    // A transaction that fails takes nothing with it.
    drop(store.writer().await.unwrap());
    assert_eq!(accept(&store, &append(1, 1, 12, &[12])), None, "it takes a new connection");
    all(&store, &[append(1, 1, 12, &[12])]).await;
    logged(&store, append(1, 1, 13, &[13]));
    drop(store);
    assert_eq!(tokens(&open(dir.path()).await.unwrap(), 1).await, (0..14).collect::<Vec<u32>>());
}

#[tokio::test]
async fn what_cannot_be_flushed_is_kept_and_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_a_log(dir.path()).await;
    store.live.lock().as_mut().unwrap().log.fail(true);
    assert_eq!(accept(&store, &append(1, 1, 10, &[10])), Some(Ok(())));
    assert!(matches!(store.flush(), Err(StoreError::Full { .. })), "it is not written down");
    assert!(store.commit(&[append(2, 1, 0, &[20])], 1).await.is_err(), "and no tokens are before it is");
    all(&store, &[write(deposit(2, 1, 1))]).await;
    assert_eq!(accept(&store, &append(1, 1, 11, &[11])), Some(Ok(())));
    assert_eq!(tokens(&store, 1).await.len(), 10);
    store.live.lock().as_mut().unwrap().log.fail(false);
    store.flush().unwrap();
    assert_eq!(tokens(&store, 1).await, (0..12).collect::<Vec<u32>>());
    all(&store, &[write(deposit(3, 1, 1)), append(2, 1, 0, &[20])]).await;
    store.trial_balance().await.unwrap();
}

#[tokio::test]
async fn a_full_disk_is_said_so_and_forgotten_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    commit(&store, &history()).await;
    let before = store.trial_balance().await.unwrap();
    let holds: Vec<Write> = (10..200).map(|n| write(hold(n, 1, 1_000))).collect();
    {
        let mut slot = store.pen.lock().await;
        let writer = &mut slot.as_mut().unwrap().connection;
        let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&mut *writer).await.unwrap();
        let limit = AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
        sqlx::query(limit).execute(&mut *writer).await.unwrap();
    }
    let full = store.commit(&holds, 1).await.unwrap_err();
    assert_eq!(full, StoreError::Full { path: dir.path().join(FILE) });
    assert_eq!(store.trial_balance().await.unwrap(), before, "nothing of the batch is there");
    assert!(commit(&store, &holds).await.iter().all(Result::is_ok));
    assert_eq!(store.trial_balance().await.unwrap().holds_open, before.holds_open + 190);
}

#[tokio::test]
async fn what_is_no_ledger_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"x").unwrap();
    let refused = |path: PathBuf| async move { open(&path).await.err().unwrap() };
    assert!(matches!(refused(file).await, StoreError::Unusable { .. }));

    let garbage = tempfile::tempdir().unwrap();
    std::fs::write(garbage.path().join(FILE), [0x5A; 8_192]).unwrap();
    assert!(matches!(refused(garbage.path().to_owned()).await, StoreError::Damaged { .. }));

    for sql in ["CREATE TABLE theirs (x)", "PRAGMA user_version = 1"] {
        let foreign = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new().filename(foreign.path().join(FILE)).create_if_missing(true);
        sqlx::query(sql).execute(&mut options.connect().await.unwrap()).await.unwrap();
        assert!(matches!(refused(foreign.path().to_owned()).await, StoreError::Foreign { .. }), "{sql}");
    }

    let newer = tempfile::tempdir().unwrap();
    let store = open(newer.path()).await.unwrap();
    sqlx::query("PRAGMA user_version = 3").execute(&mut store.connect().await.unwrap()).await.unwrap();
    drop(store);
    let StoreError::Foreign { detail, .. } = refused(newer.path().to_owned()).await else {
        panic!("a newer one opens")
    };
    assert!(detail.contains("version 3"), "{detail}");
}

#[tokio::test]
async fn a_ledger_from_before_the_journal_gets_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    all(&store, &history()).await;
    let before = store.trial_balance().await.unwrap();
    let old = "DROP TABLE segment; DROP TABLE request; DROP TABLE scheduler; PRAGMA user_version = 1";
    sqlx::raw_sql(old).execute(&mut store.connect().await.unwrap()).await.unwrap();
    drop(store);
    let store = open(dir.path()).await.unwrap();
    assert_eq!(store.trial_balance().await.unwrap(), before);
    let taken = store.take_over(Takeover::Earlier).await.unwrap();
    assert_eq!(taken.iter().map(|r| (r.request, r.spec.len())).collect::<Vec<_>>(), [(request(3), 0)]);
}

#[tokio::test]
async fn one_process_has_the_ledger_and_another_scheduler_may_have_it_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).await.unwrap();
    let second = SqliteStore::open(dir.path(), peer(ME)).await.err().unwrap();
    assert_eq!(second, StoreError::InUse { path: dir.path().join(LOCK_FILE) });
    all(&first, &[write(deposit(1, 1, 100)), super::super::super::write::tests::open(1, 10), append(1, 1, 0, &[4, 5])])
        .await;
    drop(first);
    // With a new key it is another scheduler; whoever wrote before is gone, for only one process can have the file.
    let other = patiently(async || SqliteStore::open(dir.path(), peer(99)).await).await.unwrap();
    assert_eq!(other.take_over(Takeover::Earlier).await.unwrap(), []);
    let taken = other.take_over(Takeover::Expired).await.unwrap();
    assert_eq!(taken.iter().map(|r| (r.request, r.tokens.clone())).collect::<Vec<_>>(), [(request(1), vec![4, 5])]);
    other.tend(1).await.unwrap();
    other.trial_balance().await.unwrap();
}
