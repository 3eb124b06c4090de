//! Processes that are killed at every step of every kind of write. A process of its own opens the store, does one thing and
//! stops where it is told to; it is killed there (`SIGKILL`), and the store is opened again. What it was about to do is done
//! exactly if its transaction had been committed, nothing is half done, and it can be done again.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use super::super::account::ClientId;
use super::super::books::tests::{client, deposit, failover, peer, request};
use super::super::write::tests::{append, finished, open, release, write};
use super::suite::{InFile, ME, OnServer, Place, all, patiently, take_over};
use super::*;

/// What the process that is killed was about to do.
const DEEDS: [&str; 12] = [
    "first start",
    "start",
    "deposit",
    "open",
    "append",
    "settle",
    "release",
    "batch",
    "tend",
    "take over",
    "claim",
    "key",
];
/// What leads a process that is to be killed to its deed.
const PLAN: &str = "crash-plan:";
const DAY: i64 = 86_400_001;

/// A place that another process can find.
trait Shared: Place {
    fn path(&self) -> PathBuf;
    async fn open_at(path: &Path) -> Self::Store;
}

impl Shared for InFile {
    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    async fn open_at(path: &Path) -> SqliteStore {
        patiently(async || SqliteStore::open(path, peer(ME)).await).await.unwrap()
    }
}

impl Shared for OnServer {
    fn path(&self) -> PathBuf {
        std::fs::write(self.dir.path().join("url"), self.url().as_str()).unwrap();
        self.dir.path().to_owned()
    }

    async fn open_at(path: &Path) -> PostgresStore {
        let url = std::fs::read_to_string(path.join("url")).unwrap().parse().unwrap();
        patiently(async || PostgresStore::open(&url, path, peer(ME)).await).await.unwrap()
    }
}

/// A request that waits to be paid, one that runs, one that ended a day ago, and a log that is due to be written anew.
async fn set_up(store: &impl Store) {
    let ended = [write(deposit(1, 1, 1_000_000)), open(3, 70), append(3, 1, 0, &[1]), release(3)];
    all(store, &ended).await;
    all(store, &[open(1, 84_000), append(1, 1, 0, &[7; 250]), open(2, 500)]).await;
    for n in 0..10 {
        all(store, &[append(2, 1, n, &[n])]).await;
    }
}

async fn act(store: &impl Store, deed: &str) {
    let settle = || Write::settle(failover(1), finished());
    let batch = || {
        let begun = [write(deposit(2, 1, 500)), open(6, 50), append(6, 1, 0, &[1, 2]), release(2)];
        begun.into_iter().chain([settle(), open(7, 60), release(7)]).collect::<Vec<Write>>()
    };
    match deed {
        "deposit" => all(store, &[write(deposit(2, 1, 500))]).await,
        "open" => all(store, &[open(5, 1_000)]).await,
        "append" => all(store, &[append(2, 1, 10, &[9, 9])]).await,
        "settle" => all(store, &[settle()]).await,
        "release" => all(store, &[release(2)]).await,
        "batch" => drop(store.commit(&batch(), 1_000).await.unwrap()),
        "tend" => store.tend(DAY).await.unwrap(),
        "take over" => drop(take_over(store, Takeover::Earlier).await),
        "claim" => drop(store.take_over(Takeover::Request(request(2))).await.unwrap()),
        "key" => {
            let (prefix, label) = ("abcdefgh".to_owned(), "k".to_owned());
            let key = StoredKey { hash: [5; 32], prefix, client: ClientId([55; 8]), label, created_ms: 1 };
            store.add_key(&key).await.unwrap();
        }
        _ => {}
    }
}

/// All that can be seen of a store, in lines.
async fn image(store: &impl Store) -> Vec<String> {
    let mut accounts: Vec<Account> = (1..9).map(|n| Account::Hold(request(n))).collect();
    accounts.extend([1, 2, 200].into_iter().flat_map(|n| Account::of_peer(peer(n))));
    accounts.extend([Account::Client(client(1)), Account::NetFee, Account::ExtDeposit]);
    let (trial, wallet) = (store.trial_balance().await.unwrap(), store.wallet(&accounts, 100).await.unwrap());
    let mut lines = vec![format!("{trial:?}"), format!("{:?}", store.keys(None).await.unwrap())];
    lines.extend(wallet.balances.iter().map(|balance| format!("{balance:?}")));
    lines.extend(wallet.entries.iter().map(|entry| format!("{entry:?}")));
    for n in 1..9 {
        lines.push(format!("{n}: {:?}", store.request(request(n)).await.unwrap()));
    }
    lines
}

fn same(found: &[String], expected: &[String], what: &str) {
    let differ = found.iter().zip(expected).find(|(found, expected)| found != expected);
    assert!(differ.is_none() && found.len() == expected.len(), "{what}: {differ:?}");
}

/// Runs `deed` in a process that stops at step `stop`, and kills it there: where that was. `None` if it came to its end.
fn killed(test: &str, deed: &str, stop: usize, path: &Path) -> Option<String> {
    let mut child = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("ledger::store::crash::{test}"), "--nocapture"])
        .arg(format!("{PLAN}{deed}:{stop}:{}", path.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let mut lines = output.lines().map(Result::unwrap);
    let last = lines.find(|line| line.starts_with("stopped at ") || line == "came to its end");
    child.kill().unwrap();
    child.wait().unwrap();
    last.expect("it stops or comes to its end").strip_prefix("stopped at ").map(str::to_owned)
}

/// The part of the process that is killed.
async fn die<P: Shared>(plan: &str) {
    let (deed, rest) = plan.split_once(':').unwrap();
    let (stop, path) = rest.split_once(':').unwrap();
    let starts = deed.ends_with("start");
    if starts {
        step::stop_at_step("", stop.parse().unwrap());
    }
    let store = P::open_at(Path::new(path)).await;
    if !starts {
        step::stop_at_step("", stop.parse().unwrap());
    }
    act(&store, deed).await;
    println!("\ncame to its end");
}

/// Kills a process at every step of `deed`; how many there were.
async fn survives<P: Shared>(test: &str, deed: &str) -> usize {
    let first = deed == "first start";
    let make = async || {
        let place = P::make().await;
        if !first {
            set_up(&P::open_at(&place.path()).await).await;
        }
        place
    };
    let twin = make().await;
    let store = P::open_at(&twin.path()).await;
    let before = image(&store).await;
    act(&store, deed).await;
    let after = image(&store).await;
    let mut place = make().await;
    for stop in 0.. {
        let at = killed(test, deed, stop, &place.path()).unwrap_or_else(|| panic!("{deed} was never committed"));
        let store = P::open_at(&place.path()).await;
        let found = image(&store).await;
        if at.ends_with("committed") {
            same(&found, &after, &format!("{deed}, killed at {at}"));
            // A key is made once, and a takeover by the next run is another one.
            if !matches!(deed, "key" | "claim" | "take over") {
                act(&store, deed).await;
                same(&image(&store).await, &after, &format!("{deed}, done again"));
            }
            return stop + 1;
        }
        same(&found, &before, &format!("{deed}, killed at {at}"));
        // What is done in several transactions has fewer steps when it is done again.
        if first || deed == "tend" {
            place = make().await;
        }
    }
    unreachable!("a deed has an end")
}

async fn crashes<P: Shared>(test: &str) {
    if let Some(plan) = std::env::args().find_map(|arg| arg.strip_prefix(PLAN).map(str::to_owned)) {
        return die::<P>(&plan).await;
    }
    let mut steps = 0;
    for deed in DEEDS {
        steps += survives::<P>(test, deed).await;
    }
    println!("killed at {steps} steps");
    assert!(steps >= 50, "{steps} steps are not all");
}

#[tokio::test]
async fn a_file_survives_a_kill_at_every_step() {
    crashes::<InFile>("a_file_survives_a_kill_at_every_step").await;
}

#[tokio::test]
async fn a_server_survives_a_kill_at_every_step() {
    crashes::<OnServer>("a_server_survives_a_kill_at_every_step").await;
}
