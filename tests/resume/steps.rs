//! A scheduler that is killed at every step of every write that a request takes: before, inside and after each of them. Its
//! client gets the whole answer from the next one, and the books agree to the unit.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cuckoo::{Address, ApiKey, Client, Identity, Request, Usage};
use cuckoo_scheduler::{ScheduleConfig, schedule};
use serde_json::{Value, json};

use super::{Answer, MINER, finished, server};
use crate::support::{MODEL, PATIENCE, Process, shelf};

/// Tells a process of this test's program to be a scheduler, and how.
const ROLE: &str = "CUCKOO_TEST_SCHEDULER";
/// Tokens of an answer: the first, more of the same, and the last, which ends it.
const ANSWER: u32 = 5;
/// Schedulers that are killed at a time: each of them mostly waits for others to notice.
const LANES: usize = 4;
const DEPOSIT: u64 = 1_000_000_000_000;

/// Steps at which a request's writes can be interrupted, by the names that the stores give them: each of them each time that
/// it comes, whatever else is written between.
const STEPS: [&str; 12] = [
    "batch: begun",
    "batch: accounts are written",
    "batch: postings are written",
    "batch: holds are written",
    "batch: requests are opened",
    "batch: requests are ended",
    "batch: committed",
    "batch: totals are written",
    // Where they are written apart.
    "batch: balances are written",
    "the segment is written",
    // Where tokens are written without others.
    "tokens: accepted",
    "tokens: flushed",
];
/// Of these, those that every store has.
const EVERYWHERE: usize = 8;
/// And those that a file has.
const IN_A_FILE: [&str; 2] = ["tokens: accepted", "tokens: flushed"];

/// The process that is killed. It stands still at a step, when it is told so.
#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_stops_where_it_is_told() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let role: Value = serde_json::from_str(&role).unwrap();
    let text = |name: &str| role[name].as_str().unwrap();
    let identity = Identity::load_or_create(&PathBuf::from(text("identity"))).unwrap();
    let scheduler = schedule(ScheduleConfig {
        identity,
        name: "steps".to_owned(),
        quic: text("quic").parse().unwrap(),
        http: None,
        ledger_dir: text("ledger").into(),
        database: role["store"].as_str().map(|url| url.parse().unwrap()),
        shelf_dir: shelf().to_owned(),
        miners_allowed: None,
    })
    .await
    .unwrap();
    let key = match role["key"].as_str() {
        Some(key) => key.to_owned(),
        None => scheduler.create_key("steps", DEPOSIT).await.unwrap().0,
    };
    println!("\nready {}", json!({"address": scheduler.address().to_string(), "key": key}));
    for line in std::io::stdin().lock().lines() {
        match line.unwrap().as_str() {
            "audit" => {
                scheduler.audit_books().await.unwrap();
                println!("\naudited");
            }
            stop => {
                let (times, name) = stop.split_once(' ').unwrap();
                cuckoo_scheduler::ledger::stop_at_step(name, times.parse().unwrap());
            }
        }
    }
}

/// Such a process.
struct Scheduler {
    child: Child,
    orders: ChildStdin,
    said: Receiver<String>,
    address: Address,
    key: String,
}

impl Scheduler {
    fn start(role: &Value) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "resume::steps::a_scheduler_that_stops_where_it_is_told", "--nocapture"])
            .env(ROLE, role.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let (said_in, said) = channel();
        std::thread::spawn(move || lines.for_each(|line| _ = said_in.send(line)));
        let orders = child.stdin.take().unwrap();
        let ready = hears(&said, "ready ");
        let ready: Value = serde_json::from_str(&ready).unwrap();
        let text = |name: &str| ready[name].as_str().unwrap();
        let (address, key) = (text("address").parse().unwrap(), text("key").to_owned());
        Self { child, orders, said, address, key }
    }

    fn order(&mut self, what: &str) {
        writeln!(self.orders, "{what}").unwrap();
    }

    /// Where it stands still, if it does.
    fn stopped(&self) -> Option<String> {
        self.said.try_iter().find_map(|line| line.strip_prefix("stopped at ").map(str::to_owned))
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a line says that begins like this.
#[track_caller]
fn hears(said: &Receiver<String>, what: &str) -> String {
    loop {
        let line = said.recv_timeout(PATIENCE).expect("it says so in time");
        if let Some(rest) = line.strip_prefix(what) {
            return rest.to_owned();
        }
    }
}

fn request(key: &str) -> Request {
    let mut request = Request::chat(key, MODEL, "Count to three.").max_tokens(ANSWER);
    request.0.ignore_eos = true;
    request.0.sampling.seed = Some(1);
    request
}

/// One scheduler after the other at one address, and a miner that finds each of them.
struct Lane {
    dir: tempfile::TempDir,
    _miner: Process,
    address: Address,
    on_server: bool,
    expected: Answer,
    usage: Usage,
}

impl Lane {
    async fn start(on_server: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut scheduler = Scheduler::start(&role(dir.path(), "first", None, None, on_server).await);
        let address = scheduler.address.clone();
        let miner = Process::start(&[&["mine", "--join", &address.to_string(), "--threads", "1"], MINER].concat());
        miner.ready();
        let client = Client::connect(&address, &Identity::generate()).await.unwrap();
        let stream = client.generate(request(&scheduler.key)).await.unwrap();
        let (expected, usage, _) = finished((stream, Answer::default())).await;
        scheduler.order("audit");
        hears(&scheduler.said, "audited");
        Self { dir, _miner: miner, address, on_server, expected, usage }
    }

    /// A client, as soon as there is a scheduler.
    async fn connect(&self) -> Client {
        loop {
            match Client::connect(&self.address, &Identity::generate()).await {
                Ok(client) => return client,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Kills a scheduler when it comes to a step for the time after so many `times` from the request on: where that was;
    /// `None` if it does not come there so often.
    async fn survives(&self, step: usize, times: usize) -> Option<String> {
        let name = format!("at-{step}-{times}");
        let quic = self.address.to_string().rsplit_once('@').unwrap().1.to_owned();
        let mut first = role(self.dir.path(), &name, Some(&quic), None, self.on_server).await;
        let mut scheduler = Scheduler::start(&first);
        let key = scheduler.key.clone();
        let client = self.connect().await;
        scheduler.order(&format!("{times} {}", STEPS[step]));
        let asked = tokio::spawn({
            let (client, request) = (client.clone(), request(&key));
            async move {
                match client.generate(request).await {
                    Ok(stream) => Some(finished((stream, Answer::default())).await),
                    // Nobody has said that it is taken on.
                    Err(_) => None,
                }
            }
        });
        let at = loop {
            if let Some(at) = scheduler.stopped() {
                break at;
            }
            if asked.is_finished() {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        drop(scheduler);
        first["key"] = json!(key);
        let mut scheduler = Scheduler::start(&first);
        let answered = asked.await.unwrap();
        let cost = answered.as_ref().map_or(0, |(_, usage, _)| usage.cost) as i64;
        if let Some((answer, usage, _)) = &answered {
            assert_eq!((answer, &Usage { migrations: 0, ..usage.clone() }), (&self.expected, &self.usage), "{at}");
        }
        let client = self.connect().await;
        // What nobody comes back for is let go after a while.
        let held = async {
            while available(&client, &key).await != DEPOSIT as i64 - cost {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(PATIENCE, held).await.unwrap_or_else(|_| panic!("{at}: money is held, or was paid twice"));
        scheduler.order("audit");
        hears(&scheduler.said, "audited");
        Some(at)
    }
}

async fn role(dir: &Path, name: &str, quic: Option<&str>, key: Option<&str>, on_server: bool) -> Value {
    let store = match on_server {
        true => Some(server::shared().address(&server::shared().schema().await)),
        false => None,
    };
    let (identity, ledger) = (dir.join("scheduler.key"), dir.join(name));
    json!({"identity": identity, "ledger": ledger, "store": store, "quic": quic.unwrap_or("127.0.0.1:0"), "key": key})
}

/// What a key has to spend.
async fn available(client: &Client, key: &str) -> i64 {
    let wallet = client.wallet(Some(ApiKey(key.to_owned())), 1).await.unwrap();
    let balances: HashMap<String, i64> = wallet.balances.into_iter().collect();
    balances.iter().filter(|(account, _)| account.starts_with("client:")).map(|(_, nano)| *nano).sum()
}

/// What is to be tried yet: for each step the next time, unless it came no more.
struct Plan(Mutex<[Option<usize>; STEPS.len()]>);

impl Plan {
    fn next(&self) -> Option<(usize, usize)> {
        let mut left = self.0.lock().unwrap();
        let (step, next) = left.iter_mut().enumerate().find_map(|(step, next)| Some((step, next.as_mut()?)))?;
        *next += 1;
        Some((step, *next - 1))
    }

    fn came_no_more(&self, step: usize) {
        self.0.lock().unwrap()[step] = None;
    }
}

/// Kills schedulers at every step, several at a time.
fn survives_everywhere(on_server: bool) {
    let plan = Arc::new(Plan(Mutex::new([Some(0); STEPS.len()])));
    let seen: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let lanes = (0..LANES).map(|_| {
        let (plan, seen) = (plan.clone(), seen.clone());
        // What waits for a process blocks its thread.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async {
                let lane = Lane::start(on_server).await;
                while let Some((step, times)) = plan.next() {
                    match lane.survives(step, times).await {
                        Some(at) => *seen.lock().unwrap().entry(at).or_default() += 1,
                        None => plan.came_no_more(step),
                    }
                }
            });
        })
    });
    for lane in lanes.collect::<Vec<_>>() {
        lane.join().unwrap();
    }
    let seen = seen.lock().unwrap();
    println!("killed at {} steps: {seen:?}", seen.values().sum::<usize>());
    let own: &[&str] = if on_server { &[] } else { &IN_A_FILE };
    let due = STEPS[..EVERYWHERE].iter().chain(own);
    let missing: Vec<&&str> = due.filter(|step| !seen.contains_key(**step)).collect();
    assert!(missing.is_empty(), "never killed at {missing:?}: {seen:?}");
    // Opened, appended once at least, and ended.
    let written = seen["batch: committed"] + seen.get("tokens: flushed").unwrap_or(&0);
    assert!(written >= 3, "each write was committed and then killed: {seen:?}");
}

#[test]
fn a_request_survives_the_death_of_its_scheduler_at_every_step_in_a_file() {
    survives_everywhere(false);
}

#[test]
fn a_request_survives_the_death_of_its_scheduler_at_every_step_on_a_server() {
    survives_everywhere(true);
}
