//! Members of a market with a machine each, on a real network: cables that are pulled, directions that are lost, addresses
//! that change, packets that are too long. Every answer is whole and the same as without it, and is paid once.

mod net;

use std::io::Read;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cuckoo::{ApiKey, Client, Generation, Identity, Request, Sampling, Usage};

use super::MINER;
use crate::market::{Market, sum};
use crate::resume::{Answer, begun, finished, paid_once, take};
use crate::support::{MODEL, Process, cuckoo, eventually, metric, shelf};
use net::Network;

const SCHEDULER: &str = "scheduler";
const DEVELOPER: &str = "developer";
const MINERS: [&str; 2] = ["miner-1", "miner-2"];
/// Tokens of an answer here.
const ANSWER: u32 = 150;

/// Which of its addresses a scheduler listens at.
#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

/// A market whose members have a machine each. Whoever asks it is at the developer's.
struct Town<'a> {
    network: &'a Network,
    market: Market,
    /// Who the market's miners are, in their order; the first is at the first machine.
    peers: Vec<String>,
}

/// Runs a test at the developer's machine; nothing where there can be no machines.
fn in_town(family: Family, miners: usize, test: impl AsyncFnOnce(Town<'_>)) {
    // Fetched where there is a way to fetch it.
    shelf();
    let Some(network) = Network::of(&[SCHEDULER, DEVELOPER, MINERS[0], MINERS[1]]) else { return };
    network.run(DEVELOPER, async {
        let mut town = Town::of(&network, family);
        (0..miners).for_each(|_| town.add_miner());
        test(town).await;
    });
}

impl<'a> Town<'a> {
    fn of(network: &'a Network, family: Family) -> Self {
        let at = SocketAddr::new(network.addresses(SCHEDULER)[family as usize], 0).to_string();
        let args = ["schedule", "--quic", &at, "--http", "127.0.0.1:0"];
        let market = network.within(SCHEDULER, || Market::of(Process::start(&args), &[]));
        Self { network, market, peers: Vec::new() }
    }

    /// At the next machine.
    fn add_miner(&mut self) {
        let start = || self.market.start_miner(&self.market.join(), tempfile::tempdir().unwrap(), MINER);
        let miner = self.network.within(MINERS[self.peers.len()], start);
        self.peers.push(miner.ready()["peer"].as_str().unwrap().to_owned());
        self.market.miners.push(miner);
        self.offers(self.peers.len());
    }

    /// A figure, as whoever runs the scheduler sees it.
    fn metric(&self, name: &str) -> f64 {
        self.network.within(SCHEDULER, || metric(self.market.http(), name))
    }

    fn offers(&self, replicas: usize) {
        eventually("as many replicas", || self.metric("cuckoo_replicas") as usize == replicas);
    }

    fn balances(&self) -> std::collections::HashMap<String, i64> {
        self.network.within(SCHEDULER, || self.market.balances())
    }

    async fn client(&self) -> Client {
        Client::connect(&self.market.join(), &Identity::generate()).await.unwrap()
    }

    fn request(&self, seed: u64) -> Request {
        let sampling = Sampling { temperature: 0.9, seed: Some(seed), ..Sampling::default() };
        self.market.request("Tell me a story about the sea.", ANSWER).sampling(sampling)
    }

    /// What this request gets where nothing is wrong.
    async fn undisturbed(&self, request: Request) -> Answer {
        let stream = self.client().await.generate(request).await.unwrap();
        finished((stream, Answer::default())).await.0
    }

    /// The miners that a stream was placed on so far, by their places.
    async fn way(&self, client: &Client, stream: &Generation) -> Vec<usize> {
        let key = ApiKey(self.market.key().to_owned());
        let placements = client.explain(key, stream.request()).await.unwrap().placements;
        let taken = placements.iter().map(|placement| placement.candidates[0].miner.to_string());
        taken.map(|peer| self.peers.iter().position(|known| *known == peer).unwrap()).collect()
    }
}

/// What is wrong with a miner's network.
#[derive(Clone, Copy, Debug)]
enum Fault {
    PulledCable,
    /// What it says is lost.
    LostWords,
    /// What it is told is lost.
    LostOrders,
    /// The same, and the scheduler's system says so to the scheduler.
    RefusedOrders,
}

impl Fault {
    fn set(self, network: &Network, miner: &str, is_there: bool) {
        match self {
            Self::PulledCable => network.plug(miner, !is_there),
            Self::LostWords => network.lose(miner, SCHEDULER, is_there),
            Self::LostOrders => network.lose(SCHEDULER, miner, is_there),
            Self::RefusedOrders => network.refuse(SCHEDULER, miner, is_there),
        }
    }
}

/// Has a miner's network fail in the middle of an answer, each time in another of these ways, and come back. Says which
/// miner it was the last time.
async fn fails_and_comes_back(town: &Town<'_>, faults: &[Fault]) -> usize {
    let client = town.client().await;
    let expected = town.undisturbed(town.request(1)).await;
    let (before, mut usages, mut hit) = (town.balances(), Vec::new(), 0);
    for fault in faults {
        let (stream, answer) = begun(&client, town.request(1)).await;
        hit = *town.way(&client, &stream).await.last().unwrap();
        fault.set(town.network, MINERS[hit], true);
        let (answer, usage, stream) = finished((stream, answer)).await;
        let way = town.way(&client, &stream).await;
        println!("{fault:?} of {}: {} moves, placed on {way:?}", MINERS[hit], usage.migrations);
        assert_eq!((&answer, usage.migrations > 0), (&expected, true), "{fault:?}");
        assert_ne!(*way.last().unwrap(), hit, "{fault:?}: the other one went on");
        eventually("its link is lost", || town.metric("cuckoo_replicas") == 1.0);
        fault.set(town.network, MINERS[hit], false);
        // It comes again by itself.
        town.offers(2);
        usages.push(usage);
    }
    paid_once(&before, &town.balances(), &usages);
    hit
}

#[test]
fn a_miner_whose_cable_is_pulled_is_left_and_used_again_when_it_is_back() {
    in_town(Family::V4, 2, async |mut town| {
        let hit = fails_and_comes_back(&town, &[Fault::PulledCable]).await;
        let expected = town.undisturbed(town.request(1)).await;
        // Now it is asked because there is nobody else.
        assert!(town.market.miners[1 - hit].interrupt().success());
        town.offers(1);
        let client = town.client().await;
        let stream = client.generate(town.request(1)).await.unwrap();
        let (answer, _, stream) = finished((stream, Answer::default())).await;
        assert_eq!((answer, town.way(&client, &stream).await), (expected, vec![hit]));
    });
}

#[test]
fn a_direction_that_is_lost_costs_nobody_a_token_whether_the_sender_is_told_or_not() {
    in_town(Family::V4, 2, async |town| {
        fails_and_comes_back(&town, &[Fault::LostWords, Fault::LostOrders, Fault::RefusedOrders]).await;
    });
}

#[test]
fn a_miner_that_gets_another_address_goes_on_with_its_answer() {
    in_town(Family::V4, 1, async |town| {
        let client = town.client().await;
        let expected = town.undisturbed(town.request(1)).await;
        let before = town.balances();
        let (mut stream, mut answer) = begun(&client, town.request(1)).await;
        town.network.renumber(MINERS[0]);
        take(&mut stream, &mut answer, 60).await;
        let (answer, usage, stream) = finished((stream, answer)).await;
        assert_eq!(answer, expected);
        println!("another address: placed on {:?}", town.way(&client, &stream).await);
        assert!(!town.market.miners[0].has_line(), "it never lost its link");
        assert_eq!((usage.migrations, town.metric("cuckoo_replicas")), (0, 1.0));
        paid_once(&before, &town.balances(), &[usage]);
    });
}

/// A `cuckoo ask` that runs, and what it has printed of its answer. Killed when dropped.
struct Ask {
    child: Child,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Ask {
    fn start(town: &Town<'_>, home: &std::path::Path) -> Self {
        let (join, tokens) = (town.market.join().to_string(), (2 * ANSWER).to_string());
        let mut command = cuckoo();
        command.args(["ask", "Tell me a story about a hill.", "--scheduler", &join, "--api-key", town.market.key()]);
        command.args(["--ask-model", MODEL, "--ignore-eos", "--max-tokens", &tokens, "--home"]).arg(home);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (said, mut out) = (Arc::new(Mutex::new(Vec::new())), child.stdout.take().unwrap());
        let heard = said.clone();
        std::thread::spawn(move || {
            let mut piece = [0; 256];
            while let Ok(length @ 1..) = out.read(&mut piece) {
                heard.lock().unwrap().extend_from_slice(&piece[..length]);
            }
        });
        Self { child, said }
    }

    /// All that it says, when it has ended well.
    fn answer(mut self) -> String {
        let mut ended = None;
        eventually("it ends", || {
            ended = self.child.try_wait().unwrap();
            // Nobody else holds it once the reader has come to the end.
            ended.is_some() && Arc::strong_count(&self.said) == 1
        });
        assert!(ended.unwrap().success());
        String::from_utf8(self.said.lock().unwrap().clone()).unwrap()
    }
}

impl Drop for Ask {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_developer_that_moves_and_is_off_for_seconds_has_its_answers_whole() {
    in_town(Family::V4, 1, async |town| {
        let (client, home) = (town.client().await, tempfile::tempdir().unwrap());
        let start = town.balances();
        let said = Ask::start(&town, home.path()).answer();
        let ask_cost = sum(&start, "client:") - sum(&town.balances(), "client:");
        let expected = town.undisturbed(town.request(1)).await;
        let before = town.balances();

        let ask = Ask::start(&town, home.path());
        eventually("it has begun", || !ask.said.lock().unwrap().is_empty());
        let (mut stream, mut answer) = begun(&client, town.request(1)).await;
        town.network.renumber(DEVELOPER);
        take(&mut stream, &mut answer, 60).await;
        assert_eq!((stream.resumed(), town.metric("cuckoo_num_requests_running")), (0, 2.0), "both go on as they were");
        town.network.switch(DEVELOPER, false);
        eventually("nobody works for who is gone", || town.metric("cuckoo_num_requests_running") == 0.0);
        town.network.switch(DEVELOPER, true);
        let (answer, usage, stream) = finished((stream, answer)).await;
        assert_eq!((&answer, stream.resumed()), (&expected, 1));
        assert_eq!(ask.answer(), said);
        let spent = sum(&before, "client:") - sum(&town.balances(), "client:");
        println!("{} characters of `ask` and {} tokens, {spent} spent", said.chars().count(), answer.tokens.len());
        assert_eq!(spent, ask_cost + usage.cost as i64, "each token was paid once, and nothing is held");
    });
}

/// A request whose assignment and whose answer take many full packets.
fn bulky(town: &Town<'_>) -> Request {
    let mut request = town.request(2).logprobs(20).prompt_logprobs(20);
    request.0.sampling.logit_bias = (1_000..2_000).map(|token| (token, 0.5)).collect();
    request
}

#[test]
fn a_path_that_gets_too_narrow_for_what_it_carried_is_found_out() {
    in_town(Family::V6, 1, async |mut town| {
        let client = town.client().await;
        let expected = town.undisturbed(bulky(&town)).await;
        let (before, mut usages): (_, Vec<Usage>) = (town.balances(), Vec::new());
        // In the middle of an answer, and before the next one.
        let running = begun(&client, bulky(&town)).await;
        town.network.limit(MINERS[0], 1_280);
        let next = client.generate(bulky(&town)).await.unwrap();
        for stream in [running, (next, Answer::default())] {
            let (answer, usage, stream) = finished(stream).await;
            assert_eq!(answer, expected);
            println!("a narrow path: placed on {:?}", town.way(&client, &stream).await);
            usages.push(usage);
        }
        let lost = town.network.lost(MINERS[0]);
        println!("a narrow path: {lost} packets of the miner were lost");
        assert!(lost > 0, "it sent longer ones than get through");
        assert!(!town.market.miners[0].has_line(), "it never lost its link");
        // From the start.
        town.network.limit(MINERS[1], 1_280);
        town.add_miner();
        assert!(town.market.miners[0].interrupt().success());
        town.offers(1);
        let stream = client.generate(bulky(&town)).await.unwrap();
        let (answer, usage, stream) = finished((stream, Answer::default())).await;
        assert_eq!((answer, town.way(&client, &stream).await), (expected, vec![1]));
        usages.push(usage);
        paid_once(&before, &town.balances(), &usages);
    });
}

#[test]
fn the_network_fails_as_it_is_told() {
    let [one, two] = MINERS;
    let Some(network) = Network::of(&[one, two]) else { return };
    let own = |host| network.within(host, || network.addresses(host).map(|at| UdpSocket::bind((at, 0)).unwrap()));
    let (from, to, sent) = (own(one), own(two), std::cell::Cell::new(0u8));
    let gets_through = |family: usize, bytes: usize, (from, to): (&[UdpSocket; 2], &[UdpSocket; 2])| {
        // Each is another one: what was held back somewhere may come later.
        let number = sent.replace(sent.get() + 1);
        let _ = from[family].send_to(&vec![number; bytes], to[family].local_addr().unwrap());
        to[family].set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut came = [0; 2_000];
        while to[family].recv(&mut came).is_ok() {
            if came[0] == number {
                return true;
            }
        }
        false
    };
    let there = |family, bytes| gets_through(family, bytes, (&from, &to));
    let back = |family, bytes| gets_through(family, bytes, (&to, &from));
    let well = || (0..2).all(|family| there(family, 1_400) && back(family, 1_400));
    assert!(well(), "nothing is wrong");
    network.plug(one, false);
    assert!(!there(0, 1) && !back(1, 1), "a pulled cable");
    network.plug(one, true);
    eventually("it is plugged in again", well);
    network.lose(one, two, true);
    assert!(!there(0, 1) && back(0, 1) && there(1, 1), "one direction, one family");
    network.lose(one, two, false);
    network.refuse(two, one, true);
    assert!(there(0, 1) && !back(0, 1));
    network.refuse(two, one, false);
    network.limit(two, 1_280);
    assert!(there(0, 1_252) && back(1, 1_232) && !there(0, 1_400) && !back(1, 1_400), "what is longer is lost");
    network.limit(two, 1_500);
    network.renumber(one);
    assert!(!back(0, 1) && back(1, 1), "nobody is there any more");
    network.switch(two, false);
    assert!(!there(1, 1));
}
