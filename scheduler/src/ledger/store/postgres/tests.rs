//! The store on a real server, with more schedulers than one: who is fenced off, who pays whom, and what a server that
//! stops or stands still leaves.
#![allow(clippy::unwrap_used)]

use sqlx::Row;

use super::super::super::books::tests::{client, deposit, failover, peer, request};
use super::super::super::books::{Outcome, Settlement};
use super::super::super::write::End;
use super::super::super::write::tests::{append, finished, open, write};
use super::super::NOTES_MAX;
use super::super::suite::{ME, OnServer, Place, all, balance_of, commit, take_over};
use super::server::{Server, shared};
use super::*;
use crate::journal::{Epoch, Refused};

const OTHER: u8 = 88;

/// Makes a scheduler's lease run out, without the wait.
async fn run_out(place: &OnServer) {
    let sql = "UPDATE scheduler SET expires = clock_timestamp() - interval '1 s' WHERE peer = decode(repeat('4d', 32), 'hex')";
    assert_eq!(ME, 0x4d);
    assert_eq!(place.tamper(sql).await, 1);
}

#[tokio::test]
async fn the_requests_of_a_scheduler_that_is_gone_go_on_elsewhere_and_it_is_fenced_off() {
    let place = OnServer::make().await;
    let (first, second) = (place.reopen().await, place.open(peer(OTHER)).await.unwrap());
    all(&first, &[write(deposit(1, 1, 1_000_000)), open(1, 84_000), open(2, 10), append(1, 1, 0, &[3; 100])]).await;
    first.tend(1_000).await.unwrap();
    assert_eq!(take_over(&second, Takeover::Expired).await, [], "its lease runs");
    run_out(&place).await;
    let taken = take_over(&second, Takeover::Expired).await;
    assert_eq!(
        taken.iter().map(|r| (r.request, r.tokens.len(), r.epoch)).collect::<Vec<_>>(),
        [(request(1), 100, Epoch(2)), (request(2), 0, Epoch(2)),]
    );
    // The first one was only slow. What it still writes of these changes nothing; what is new is its own.
    let fenced = |n| Err(Refused::Fenced(request(n)).into());
    let late = [append(1, 1, 100, &[9]), Write::settle(failover(1), finished()), append(2, 1, 0, &[9]), open(4, 20)];
    assert_eq!(commit(&first, &late).await, [fenced(1), fenced(1), fenced(2), Ok(Done::Money(Outcome::Held))]);
    first.tend(1_000).await.unwrap();
    assert_eq!(take_over(&second, Takeover::Expired).await, [], "it has renewed its lease");
    // The second one goes on where the first one was, and is paid for all of it.
    let end = End { epoch: Epoch(2), ..finished() };
    all(&second, &[append(1, 2, 100, &[4; 150]), Write::settle(failover(1), end)]).await;
    let kept = first.request(request(1)).await.unwrap().unwrap();
    assert_eq!((kept.tokens, kept.owner), ([vec![3; 100], vec![4; 150]].concat(), peer(OTHER)));
    let trial = first.trial_balance().await.unwrap();
    assert_eq!((trial.holds_open, trial.totals.requests), (2, 1));
}

#[tokio::test]
async fn a_developer_who_asks_elsewhere_takes_the_request_along_and_may_come_back() {
    let place = OnServer::make().await;
    let (first, second) = (place.reopen().await, place.open(peer(OTHER)).await.unwrap());
    all(&first, &[write(deposit(1, 1, 1_000_000)), open(1, 84_000), open(2, 10)]).await;
    let mut tokens = Vec::new();
    for n in 0..6_u32 {
        let (has, asked) = if n % 2 == 0 { (&first, &second) } else { (&second, &first) };
        let next = [n, n + 1, n + 2];
        all(has, &[append(1, n + 1, tokens.len() as u32, &next)]).await;
        tokens.extend(next);
        let claimed = asked.take_over(Takeover::Request(request(1))).await.unwrap().pop().unwrap();
        assert_eq!((claimed.epoch, &claimed.tokens), (Epoch(n + 2), &tokens));
        let late = commit(has, &[append(1, n + 1, tokens.len() as u32, &[9])]).await;
        assert_eq!(late, [Err(Refused::Fenced(request(1)).into())]);
        // Logs are cut meanwhile: of a request that came back only the newest part counts.
        has.tend(1_000).await.unwrap();
        asked.tend(1_000).await.unwrap();
    }
    assert_eq!(second.request(request(1)).await.unwrap().unwrap().tokens, tokens);
    drop(first);
    let again = place.reopen().await;
    let taken = take_over(&again, Takeover::Earlier).await;
    assert_eq!(taken.iter().find(|r| r.request == request(1)).unwrap().tokens, tokens);
    again.trial_balance().await.unwrap();
}

#[tokio::test]
async fn a_scheduler_that_stands_still_inside_a_transaction_is_not_waited_for_for_ever() {
    let place = OnServer::make().await;
    let (first, second) = (place.reopen().await, place.open(peer(OTHER)).await.unwrap());
    all(&first, &[write(deposit(1, 1, 1_000_000)), open(1, 84_000)]).await;
    // Stopped after it has locked its row and the developer's account.
    let mut paused = first.writer.lock().await.take().unwrap();
    let mut tx = paused.connection.begin().await.unwrap();
    paused.lease.hold(&mut tx, &mut paused.journal).await.ok().unwrap();
    sqlx::query("SELECT id FROM account FOR NO KEY UPDATE").fetch_all(&mut *tx).await.unwrap();
    // The same developer's next request waits for the account, and not for longer than the server lets anybody stand still.
    all(&second, &[open(2, 10)]).await;
    run_out(&place).await;
    assert_eq!(take_over(&second, Takeover::Expired).await.len(), 1);
    // It wakes up, and its transaction is no more.
    assert!(sqlx::query("UPDATE account SET balance = 0").execute(&mut *tx).await.is_err());
    drop(tx);
    assert_eq!(commit(&first, &[append(1, 1, 0, &[1])]).await, [Err(Refused::Fenced(request(1)).into())]);
    first.trial_balance().await.unwrap();
}

#[tokio::test]
async fn two_processes_are_not_one_scheduler() {
    let place = OnServer::make().await;
    let first = place.reopen().await;
    all(&first, &[write(deposit(1, 1, 1_000))]).await;
    let twice = PostgresStore::open(&place.url(), &place.dir.path().join(peer(ME).to_string()), peer(ME)).await;
    assert!(matches!(twice, Err(StoreError::InUse { .. })), "the data directory is in use");
    // A copy of the data directory, on another machine.
    let copy = PostgresStore::open(&place.url(), &place.dir.path().join("copy"), peer(ME)).await.unwrap();
    let lost = StoreError::LeaseLost(peer(ME));
    assert_eq!(first.commit(&[open(1, 10)], 1).await.unwrap_err(), lost);
    assert_eq!(first.tend(1).await.unwrap_err(), lost);
    assert_eq!(first.commit(&[open(1, 10)], 1).await.unwrap_err(), lost, "nor with a new connection");
    all(&copy, &[open(1, 10)]).await;
}

/// Two schedulers, one developer, the same miners: nobody overspends and nobody loses a unit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedulers_that_write_at_once_keep_every_unit() {
    let place = OnServer::make().await;
    let stores = [place.reopen().await, place.open(peer(OTHER)).await.unwrap()];
    all(&stores[0], &[write(deposit(1, 1, 30 * 84_000))]).await;
    let id = |n: u8, store: usize| RequestId([n + 100 * store as u8; 16]);
    let work = async |store: &PostgresStore, which: usize| {
        let mut held = 0_u64;
        for n in 0..40_u8 {
            let request = id(n, which);
            let opened = store.commit(&[Write::open(request, client(1), 84_000, Vec::new())], 1).await.unwrap();
            if opened[0].is_err() {
                continue;
            }
            held += 1;
            let settlement = Settlement { request, ..failover(0) };
            all(store, &[Write::settle(settlement, finished())]).await;
            if n % 8 == 0 {
                store.tend(1).await.unwrap();
            }
        }
        held
    };
    let (a, b) = tokio::join!(work(&stores[0], 0), work(&stores[1], 1));
    // Each costs 60,000 of the 84,000 that it holds: the developer has money for 41 and 42 holds at most.
    assert!((40..=42).contains(&(a + b)), "{a} and {b} were paid");
    let paid = (a + b) as i64;
    let trial = stores[0].trial_balance().await.unwrap();
    assert_eq!(trial.totals.requests, a + b);
    for store in &stores {
        assert_eq!(balance_of(store, Account::Client(client(1))).await, 30 * 84_000 - paid * 60_000);
        assert_eq!(balance_of(store, Account::MinerPending(peer(2))).await, paid * 36_080);
        assert_eq!(balance_of(store, Account::NetFee).await, paid * 3_000);
    }
    stores[0].tend(1).await.unwrap();
    let left = shared().connect(&place.schema).await;
    let mut left = left;
    let row = sqlx::query("SELECT count(*) FROM income").fetch_one(&mut left).await.unwrap();
    assert_eq!(row.get::<i64, _>(0), 0, "all of it is added up");
    assert_eq!(stores[1].trial_balance().await.unwrap(), trial);
}

#[tokio::test]
async fn a_server_that_is_away_is_said_so_and_found_again() {
    let server = Server::start();
    let schema = server.schema().await;
    let (dir, url) = (tempfile::tempdir().unwrap(), server.address(&schema).parse::<PostgresUrl>().unwrap());
    let store = PostgresStore::open(&url, dir.path(), peer(ME)).await.unwrap();
    let other = PostgresStore::open(&url, &dir.path().join("other"), peer(OTHER)).await.unwrap();
    all(&store, &[write(deposit(1, 1, 1_000)), open(1, 10), append(1, 1, 0, &[1, 2])]).await;
    store.exchange(Some(&note(1))).await.unwrap();
    server.stop();
    for _ in 0..2 {
        let away = store.commit(&[open(2, 10)], 1).await.unwrap_err();
        assert!(matches!(away, StoreError::Away { .. }), "{away}");
        assert!(!away.to_string().contains("secret"), "{away}");
        assert!(matches!(store.tend(1).await.unwrap_err(), StoreError::Away { .. }));
    }
    assert!(matches!(store.totals().await.unwrap_err(), StoreError::Away { .. }));
    assert!(matches!(store.exchange(Some(&note(2))).await.unwrap_err(), StoreError::Away { .. }));
    let code = cuckoo_wire::message::Refusal::from(super::super::super::LedgerError::Store(StoreError::Away {
        url: url.to_string(),
        detail: String::new(),
    }));
    assert_eq!(code.code, cuckoo_wire::message::RefusalCode::Unavailable);
    server.resume();
    drop(server.connect(&schema).await);
    all(&store, &[open(2, 10), append(1, 1, 2, &[3])]).await;
    assert_eq!(store.request(request(1)).await.unwrap().unwrap().tokens, [1, 2, 3]);
    store.trial_balance().await.unwrap();
    store.exchange(Some(&note(2))).await.unwrap();
    assert_eq!(other.exchange(None).await.unwrap(), [[1], [2]], "of notes none is lost");
}

fn note(number: u8) -> Note {
    Note { number: i64::from(number), body: vec![number] }
}

#[tokio::test]
async fn a_note_is_heard_once_by_each_other_scheduler_and_in_its_order() {
    let place = OnServer::make().await;
    let (first, second) = (place.reopen().await, place.open(peer(OTHER)).await.unwrap());
    assert_eq!(first.exchange(Some(&note(1))).await.unwrap(), Vec::<Vec<u8>>::new());
    assert_eq!(second.exchange(Some(&note(7))).await.unwrap(), [[1]]);
    // Its answer was lost, so it is told again; what was heard meanwhile is not heard again.
    assert_eq!(first.exchange(Some(&note(1))).await.unwrap(), [[7]]);
    assert_eq!(first.exchange(Some(&note(2))).await.unwrap(), Vec::<Vec<u8>>::new());
    let third = place.open(peer(99)).await.unwrap();
    drop(first);
    // The next run counts anew, and so does what it has heard.
    let again = place.reopen().await;
    assert_eq!(again.exchange(Some(&note(1))).await.unwrap(), Vec::<Vec<u8>>::new());
    assert_eq!(again.exchange(Some(&note(2))).await.unwrap(), Vec::<Vec<u8>>::new());
    assert_eq!(second.exchange(None).await.unwrap(), [[2], [1], [2]]);
    assert_eq!(third.exchange(None).await.unwrap(), [[1], [2]], "what was told before it came is not for it");
    for heard in [&second, &third, &again] {
        assert_eq!(heard.exchange(None).await.unwrap(), Vec::<Vec<u8>>::new());
    }
}

#[tokio::test]
async fn notes_are_heard_so_many_at_a_time_and_forgotten_in_the_end() {
    let place = OnServer::make().await;
    let (first, second) = (place.reopen().await, place.open(peer(OTHER)).await.unwrap());
    let insert = "INSERT INTO note (scheduler, run, number, at, body) SELECT s.id, s.run, n, clock_timestamp(), \
                  decode(to_hex(n % 16 + 16), 'hex') FROM scheduler AS s, generate_series(1, 300) AS n \
                  WHERE s.peer = decode(repeat('4d', 32), 'hex')";
    assert_eq!(place.tamper(insert).await, 300);
    let (some, rest) = (second.exchange(None).await.unwrap(), second.exchange(None).await.unwrap());
    assert_eq!((some.len(), rest.len()), (NOTES_MAX as usize, 300 - NOTES_MAX as usize));
    let all: Vec<u8> = some.into_iter().chain(rest).flatten().collect();
    assert_eq!(all, (1..=300_u32).map(|n| (n % 16 + 16) as u8).collect::<Vec<u8>>());
    first.tend(1).await.unwrap();
    assert_eq!(place.tamper("UPDATE note SET at = at - interval '9 minutes'").await, 300);
    place.tamper("UPDATE note SET at = at - interval '2 minutes' WHERE number <= 200").await;
    second.tend(1).await.unwrap();
    assert_eq!(place.tamper("UPDATE note SET at = at").await, 100);
    // What is forgotten is not told anew, and what may be told once more is not forgotten.
    place.tamper("UPDATE note SET at = at - interval '1 day'").await;
    second.tend(1).await.unwrap();
    assert_eq!(place.tamper("UPDATE note SET at = at").await, 1);
    first.exchange(Some(&Note { number: 300, ..note(1) })).await.unwrap();
    assert_eq!(second.exchange(None).await.unwrap(), Vec::<Vec<u8>>::new());
}

#[tokio::test]
async fn tables_of_the_first_version_get_what_they_lack() {
    let place = OnServer::make().await;
    let first = place.reopen().await;
    all(&first, &[write(deposit(1, 1, 1_000_000)), open(1, 10)]).await;
    let trial = first.trial_balance().await.unwrap();
    drop(first);
    place.tamper("DROP TABLE note").await;
    place.tamper("UPDATE store SET version = 1").await;
    let (first, second) = (place.reopen().await, place.open(peer(OTHER)).await.unwrap());
    assert_eq!(first.trial_balance().await.unwrap(), trial);
    first.exchange(Some(&note(1))).await.unwrap();
    assert_eq!(second.exchange(None).await.unwrap(), [[1]]);
}

#[tokio::test]
async fn what_is_no_ledger_is_not_opened() {
    let place = OnServer::make().await;
    place.tamper("CREATE TABLE theirs (x integer)").await;
    assert!(matches!(place.open(peer(ME)).await, Err(StoreError::Foreign { .. })));
    let newer = OnServer::make().await;
    drop(newer.reopen().await);
    newer.tamper("UPDATE store SET version = 3").await;
    let Err(StoreError::Foreign { detail, .. }) = newer.open(peer(ME)).await else { panic!("a newer one opens") };
    assert!(detail.contains("version 3"), "{detail}");
    let nowhere: PostgresUrl = "postgresql://cuckoo:secret@127.0.0.1:1/x".parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let away = PostgresStore::open(&nowhere, dir.path(), peer(ME)).await.err().unwrap().to_string();
    assert!(away.contains("postgresql://cuckoo:***@127.0.0.1:1/x"), "{away}");
}
