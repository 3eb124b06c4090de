//! The store on real files: what a lost connection, a torn log or a full disk leaves, and what is not opened. Every ledger
//! lies in a directory that vanishes.
#![allow(clippy::unwrap_used)]

use sqlx::AssertSqlSafe;

use super::super::super::books::tests::{deposit, failover, hold, peer, request};
use super::super::super::books::{Command, Outcome};
use super::super::super::write::tests::{append, write};
use super::super::suite::{ME, all, commit, history, patiently};
use super::*;

async fn open(dir: &Path) -> Result<SqliteStore, StoreError> {
    patiently(async || SqliteStore::open(dir, peer(ME)).await).await
}

#[tokio::test]
async fn a_connection_lost_inside_a_transaction_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    commit(&store, &history()).await;
    let before = store.trial_balance().await.unwrap();
    let mut connection = store.writer.lock().await.take().unwrap().connection;
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

#[tokio::test]
async fn a_full_disk_is_said_so_and_forgotten_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    commit(&store, &history()).await;
    let before = store.trial_balance().await.unwrap();
    let holds: Vec<Write> = (10..200).map(|n| write(hold(n, 1, 1_000))).collect();
    {
        let mut slot = store.writer.lock().await;
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
