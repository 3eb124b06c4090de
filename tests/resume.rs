//! Developers, schedulers and their stores that go away in the middle of an answer: it goes on with the same tokens, none
//! missing and none twice, each paid once.

mod events;
/// The server that the scheduler's own tests use.
#[path = "../scheduler/src/ledger/store/postgres/server.rs"]
pub(crate) mod server;
mod steps;

use std::collections::HashMap;
use std::time::Duration;

use cuckoo::{ChatMessage, Client, ClientError, Generation, Identity, Prompt, RefusalCode, Request, Sampling, Usage};

use crate::faults::proxy::Proxy;
use crate::market::{Market, sum};
use crate::support::{Process, eventually, metric};

const MINER: &[&str] = &["--batch", "8", "--kv-mib", "64"];
/// Tokens of an answer here.
const ANSWER: u32 = 150;

/// Every other one is drawn by a coin of its own.
fn request(market: &Market, seed: u64) -> Request {
    let temperature = if seed.is_multiple_of(2) { 0.0 } else { 0.9 };
    let sampling = Sampling { temperature, seed: Some(seed), ..Sampling::default() };
    market.request(&format!("Tell me a story about the number {seed}."), ANSWER).sampling(sampling)
}

/// An answer, as far as it has come.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) tokens: Vec<u32>,
    pub(crate) text: String,
}

/// Takes what comes until there are so many tokens, or the end.
pub(crate) async fn take(stream: &mut Generation, answer: &mut Answer, tokens: usize) {
    while answer.tokens.len() < tokens {
        let Some(delta) = stream.next().await.unwrap() else { return };
        assert_eq!(delta.first as usize, answer.tokens.len(), "no token twice or missing");
        answer.tokens.extend(delta.tokens);
        answer.text.push_str(&delta.text);
    }
}

pub(crate) async fn begun(client: &Client, request: Request) -> (Generation, Answer) {
    let (mut stream, mut answer) = (client.generate(request).await.unwrap(), Answer::default());
    take(&mut stream, &mut answer, 8).await;
    (stream, answer)
}

pub(crate) async fn finished((mut stream, mut answer): (Generation, Answer)) -> (Answer, Usage, Generation) {
    take(&mut stream, &mut answer, usize::MAX).await;
    let usage = stream.usage().unwrap().clone();
    assert_eq!(usage.completion_tokens as usize, answer.tokens.len(), "paid is what came");
    (answer, usage, stream)
}

/// What streams cost that say what they would have said, though the connection of some of them broke.
async fn all_finished(streams: Vec<(Generation, Answer)>, expected: &[Answer]) -> Vec<Usage> {
    let (mut usages, mut resumed) = (Vec::new(), 0);
    for (stream, expected) in streams.into_iter().zip(expected) {
        let (answer, usage, stream) = finished(stream).await;
        assert_eq!(&answer, expected);
        resumed += stream.resumed();
        usages.push(usage);
    }
    assert!(resumed > 0, "somebody had not finished");
    usages
}

/// What streams of these seeds say where nothing is wrong.
async fn undisturbed(market: &Market, seeds: std::ops::Range<u64>) -> Vec<Answer> {
    let client = market.client().await;
    let mut all = Vec::new();
    for seed in seeds {
        let stream = client.generate(request(market, seed)).await.unwrap();
        all.push(finished((stream, Answer::default())).await.0);
    }
    all
}

/// That every account moved by what these answers cost, and nothing is held.
pub(crate) fn paid_once(before: &HashMap<String, i64>, after: &HashMap<String, i64>, usages: &[Usage]) {
    let total = |part: fn(&Usage) -> u64| usages.iter().map(part).sum::<u64>() as i64;
    assert_eq!(total(|u| u.cost), total(|u| u.miner) + total(|u| u.author) + total(|u| u.network));
    assert_eq!(sum(before, "client:") - sum(after, "client:"), total(|u| u.cost), "nothing is held any more");
    assert_eq!(sum(after, "miner:") - sum(before, "miner:"), total(|u| u.miner), "each token was paid once");
    assert_eq!(sum(after, "author:") - sum(before, "author:"), total(|u| u.author));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_cut_off_goes_on_where_it_was() {
    let market = Market::start(1, MINER);
    let expected = undisturbed(&market, 0..3).await;
    let before = market.balances();
    let proxy = Proxy::start(&market.join(), 1).await;
    let client = Client::connect(proxy.address(), &Identity::generate()).await.unwrap();
    let mut streams = Vec::new();
    for seed in 0..3 {
        streams.push(begun(&client, request(&market, seed)).await);
    }
    proxy.cut(true);
    eventually("nobody works for who is gone", || metric(market.http(), "cuckoo_num_requests_running") == 0.0);
    eventually("nor keeps its blocks", || metric(market.http(), "cuckoo_replica_kv_blocks_used") == 0.0);
    proxy.cut(false);
    let mut usages = Vec::new();
    for (stream, expected) in streams.into_iter().zip(&expected) {
        let (answer, usage, stream) = finished(stream).await;
        assert_eq!((&answer, stream.resumed()), (expected, 1));
        usages.push(usage);
    }
    paid_once(&before, &market.balances(), &usages);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_can_be_had_again_by_whose_it_is_and_costs_nothing() {
    let market = Market::start(1, MINER);
    let client = market.client().await;
    let key = || cuckoo::ApiKey(market.key().to_owned());
    let (answer, usage, stream) =
        finished((client.generate(request(&market, 1)).await.unwrap(), Answer::default())).await;
    let before = market.balances();
    let id = stream.request();
    for after in [0, 40, ANSWER] {
        let mut again = client.resume(key(), id, after).await.unwrap();
        assert_eq!((again.request(), again.prompt_tokens()), (id, usage.prompt_tokens));
        let mut tokens = answer.tokens[..after as usize].to_vec();
        while let Some(delta) = again.next().await.unwrap() {
            assert_eq!(delta.first as usize, tokens.len());
            tokens.extend(delta.tokens);
        }
        assert_eq!((&tokens, again.usage()), (&answer.tokens, Some(&usage)));
    }
    assert_eq!(market.balances(), before);
    let refused = async |key, id, after| match client.resume(key, id, after).await {
        Err(ClientError::Refused(refusal)) => (refusal.code, refusal.param.unwrap_or_default()),
        other => panic!("{:?}", other.err()),
    };
    let invalid = |param: &str| (RefusalCode::InvalidRequest, param.to_owned());
    assert_eq!(refused(key(), id, ANSWER + 1).await, invalid("after"));
    assert_eq!(refused(key(), cuckoo::RequestId([1; 16]), 0).await, invalid("request"));
    assert_eq!(refused(cuckoo::ApiKey("ck_live_no".into()), id, 0).await.0, RefusalCode::InvalidApiKey);
    // What is not kept cannot be had.
    let mut scored = client.generate(request(&market, 1).logprobs(1)).await.unwrap();
    assert!(scored.text().await.is_ok());
    assert_eq!(refused(key(), scored.request(), 0).await, invalid("request"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_a_stream_over_has_it_alone() {
    let market = Market::start(1, MINER);
    let expected = undisturbed(&market, 1..2).await.remove(0);
    let (mut first, answer) = begun(&market.client().await, request(&market, 1)).await;
    let key = cuckoo::ApiKey(market.key().to_owned());
    let resumed = market.client().await.resume(key, first.request(), answer.tokens.len() as u32).await.unwrap();
    let (again, ..) = finished((resumed, answer)).await;
    assert_eq!(again, expected);
    // The first one is told, and finds its answer when it asks again.
    while let Ok(Some(_)) = first.next().await {}
}

/// A scheduler is killed while streams run, and comes back.
async fn survives_a_kill(market: Market) {
    let expected = undisturbed(&market, 0..4).await;
    let before = market.balances();
    let client = market.client().await;
    let mut streams = Vec::new();
    for seed in 0..4 {
        streams.push(begun(&client, request(&market, seed)).await);
    }
    let market = market.restart_scheduler();
    let usages = all_finished(streams, &expected).await;
    paid_once(&before, &market.balances(), &usages);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_is_killed_costs_nobody_a_token() {
    survives_a_kill(Market::start(1, MINER)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_does_one_whose_books_are_on_a_server() {
    let url = server::shared().address(&server::shared().schema().await);
    survives_a_kill(Market::start_with(&["--store", &url], 1, MINER)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_come_back_pays_for_what_it_took() {
    let market = Market::start(1, MINER);
    let before = market.balances();
    let proxy = Proxy::start(&market.join(), 1).await;
    let client = Client::connect(proxy.address(), &Identity::generate()).await.unwrap();
    let (stream, answer) = begun(&client, request(&market, 1)).await;
    proxy.cut(true);
    let market = market.restart_scheduler();
    let ended = |market: &Market| sum(&market.balances(), "miner:") > 0;
    eventually("its miner is paid", || ended(&market));
    let after = market.balances();
    let (spent, earned) = (sum(&before, "client:") - sum(&after, "client:"), sum(&after, "miner:"));
    assert!(spent > earned && earned > 0, "{spent} {earned}");
    let key = cuckoo::ApiKey(market.key().to_owned());
    let mut gone = market.client().await.resume(key, stream.request(), 0).await.unwrap();
    let mut kept = Answer::default();
    let why = loop {
        match gone.next().await {
            Ok(delta) => kept.tokens.extend(delta.expect("it has no good end").tokens),
            Err(ClientError::Refused(refusal)) => break refusal,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(why.code, RefusalCode::Stalled, "{why}");
    assert!(kept.tokens.starts_with(&answer.tokens) && kept.tokens.len() < answer.tokens.len() + 130);
}

/// Two schedulers with one store, and miners that work for both.
pub(crate) struct Pair {
    pub(crate) first: Market,
    pub(crate) second: Market,
    /// The second one's first API key; both markets use the first one's.
    pub(crate) other_key: String,
}

impl Pair {
    async fn start() -> Self {
        Self::start_with(2, MINER).await
    }

    pub(crate) async fn start_with(miners: usize, options: &[&str]) -> Self {
        let url = server::shared().address(&server::shared().schema().await);
        let first = Market::start_with(&["--store", &url], 0, &[]);
        let home = tempfile::tempdir().unwrap();
        let pepper = std::path::Path::new("ledger").join("ledger.pepper");
        std::fs::create_dir(home.path().join("ledger")).unwrap();
        std::fs::copy(first.home().join(&pepper), home.path().join(&pepper)).unwrap();
        let args = ["schedule", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0", "--store", &url];
        let second = Market::of(Process::start_in(home, &args), &["--store", &url]);
        let other_key = second.key().to_owned();
        let mut second = second.with_key_of(&first);
        let joins = format!("{},{}", first.join(), second.join());
        for _ in 0..miners {
            let miner = Process::start(&[&["mine", "--join", &joins, "--threads", "1"], options].concat());
            miner.ready();
            second.miners.push(miner);
        }
        for market in [&first, &second] {
            eventually("all miners work for both", || metric(market.http(), "cuckoo_replicas") as usize == miners);
        }
        Self { first, second, other_key }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_scheduler_that_is_killed_go_on_through_another() {
    let mut pair = Pair::start().await;
    let Pair { first, second, .. } = &pair;
    let expected = undisturbed(first, 0..4).await;
    eventually("what was earned is added up", || sum(&second.balances(), "miner:") > 0);
    let before = second.balances();
    let client = Client::connect_any(&[first.join(), second.join()], &Identity::generate()).await.unwrap();
    let mut streams = Vec::new();
    for seed in 0..4 {
        streams.push(begun(&client, request(first, seed)).await);
    }
    pair.first.kill();
    let second = &pair.second;
    let mut usages = all_finished(streams, &expected).await;
    // New requests go there too.
    let stream = client.generate(request(second, 0)).await.unwrap();
    let (answer, usage, _) = finished((stream, Answer::default())).await;
    assert_eq!(answer, expected[0]);
    usages.push(usage);
    let earned = |balances: &HashMap<String, i64>| sum(balances, "miner:") - sum(&before, "miner:");
    let due = usages.iter().map(|u| u.miner as i64).sum::<i64>();
    eventually("what was earned is added up", || earned(&second.balances()) == due);
    paid_once(&before, &second.balances(), &usages);
}

/// Conversations whose turns go through these schedulers, one after the other: how many tokens of their prompts were known to
/// be in a cache.
async fn cached_of_conversations(schedulers: &[(&Market, Client)], topic: &str) -> u32 {
    let mut cached = 0;
    for talk in 0..4 {
        let rules = format!("You know all about {topic} number {talk}. ").repeat(12);
        let mut turns = vec![ChatMessage::new("system", rules)];
        for turn in 0..4 {
            let (market, client) = &schedulers[turn % schedulers.len()];
            turns.push(ChatMessage::new("user", format!("Tell me more about it, part {turn}.")));
            let key = || cuckoo::ApiKey(market.key().to_owned());
            let request = Request::new(key().0, crate::support::MODEL, Prompt::Chat(turns.clone())).max_tokens(16);
            let (answer, _, stream) = finished((client.generate(request).await.unwrap(), Answer::default())).await;
            turns.push(ChatMessage::new("assistant", answer.text));
            let explained = client.explain(key(), stream.request()).await.unwrap();
            // What is known of caches. Where it went is the board's choice, which a machine that is busy with other things sways.
            let known = explained.placements[0].candidates.iter().map(|candidate| candidate.cached_tokens).max();
            cached += known.unwrap();
        }
    }
    cached
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_scheduler_knows_what_the_first_ones_requests_left_in_caches() {
    let pair = Pair::start().await;
    let first = (&pair.first, pair.first.client().await);
    let second = (&pair.second, pair.second.client().await);
    let alone = cached_of_conversations(std::slice::from_ref(&first), "owls").await;
    let both = cached_of_conversations(&[first, second], "cows").await;
    println!("tokens found in caches: {alone} through one scheduler, {both} through two in turns");
    assert!(alone > 1_000 && f64::from(both) >= 0.95 * f64::from(alone), "{alone} {both}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_for_seconds_costs_nobody_a_token() {
    let server = server::Server::start();
    let url = server.address("public");
    let market = Market::start_with(&["--store", &url], 1, MINER);
    let expected = undisturbed(&market, 0..2).await;
    let before = market.balances();
    let client = market.client().await;
    let mut streams = Vec::new();
    for seed in 0..2 {
        streams.push(begun(&client, request(&market, seed)).await);
    }
    server.stop();
    // Nobody new is taken on, and is told so at once.
    match client.generate(request(&market, 5)).await {
        Err(ClientError::Refused(refusal)) => assert_eq!(refusal.code, RefusalCode::Unavailable, "{refusal}"),
        other => panic!("{:?}", other.err()),
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.resume();
    let mut usages = Vec::new();
    for (stream, expected) in streams.into_iter().zip(&expected) {
        let (answer, usage, _) = finished(stream).await;
        assert_eq!(&answer, expected);
        usages.push(usage);
    }
    let due = usages.iter().map(|u| u.miner as i64).sum::<i64>();
    eventually("what was earned is added up", || sum(&market.balances(), "miner:") - sum(&before, "miner:") == due);
    paid_once(&before, &market.balances(), &usages);
}
