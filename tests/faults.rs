//! Miners that die, freeze, vanish, are slow or leave: streams go on elsewhere with the same tokens, and the books balance.

mod chaos;
#[cfg(target_os = "linux")]
mod namespaces;
pub(crate) mod proxy;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cuckoo::{Address, Client, Generation, Identity, Request, Sampling, Usage};
use cuckoo_wire::message::{Assign, End, StepItem, ToMiner};

use crate::hostile::FakeMiner;
use crate::market::{Market, sum};
use crate::support::{eventually, metric};
use proxy::{Path, Proxy};

const MINER: &[&str] = &["--batch", "8", "--kv-mib", "64"];
/// Tokens of an answer here.
const ANSWER: u32 = 120;

/// Drawn by a coin of its own.
fn request(market: &Market, seed: u64) -> Request {
    let sampling = Sampling { temperature: 0.9, seed: Some(seed), ..Sampling::default() };
    market.request("Tell me a story.", ANSWER).sampling(sampling)
}

/// What is left of a stream, behind `tokens`, and what it cost.
async fn rest_of(mut stream: Generation, mut tokens: Vec<u32>) -> (Vec<u32>, Usage) {
    while let Some(delta) = stream.next().await.unwrap() {
        assert_eq!(delta.first as usize, tokens.len(), "no token twice or missing");
        tokens.extend(delta.tokens);
    }
    let usage = stream.usage().unwrap().clone();
    assert_eq!(
        (usage.completion_tokens as usize, usage.cost),
        (tokens.len(), usage.miner + usage.author + usage.network)
    );
    (tokens, usage)
}

/// A stream that has begun, and what it began with.
async fn begun(client: &Client, request: Request) -> (Generation, Vec<u32>) {
    let mut stream = client.generate(request).await.unwrap();
    let mut tokens = Vec::new();
    while tokens.len() < 8 {
        tokens.extend(stream.next().await.unwrap().unwrap().tokens);
    }
    (stream, tokens)
}

/// What the streams of these seeds say where nothing is wrong.
async fn undisturbed(market: &Market, seeds: std::ops::Range<u64>) -> Vec<Vec<u32>> {
    let client = market.client().await;
    let mut all = Vec::new();
    for seed in seeds {
        let stream = client.generate(request(market, seed)).await.unwrap();
        all.push(rest_of(stream, Vec::new()).await.0);
    }
    all
}

fn offers(market: &Market, replicas: usize) {
    eventually("as many replicas", || metric(market.http(), "cuckoo_replicas") as usize == replicas);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_miner_is_left_while_it_is_frozen_and_its_late_words_are_nobodys() {
    let mut market = Market::start(1, MINER);
    let expected = undisturbed(&market, 0..3).await;
    let client = market.client().await;
    let mut streams = Vec::new();
    for seed in 0..3 {
        streams.push(begun(&client, request(&market, seed)).await);
    }
    let frozen = market.miners.remove(0);
    frozen.signal("STOP");
    market.add_miner(MINER);
    for ((stream, tokens), expected) in streams.into_iter().zip(&expected) {
        let (tokens, usage) = rest_of(stream, tokens).await;
        assert_eq!((&tokens, usage.migrations > 0), (expected, true), "somebody else went on");
    }
    // New requests do not wait for it either; and when it speaks again, nobody listens to what it says of the old ones.
    assert_eq!(undisturbed(&market, 0..1).await, expected[..1]);
    frozen.signal("CONT");
    assert_eq!(undisturbed(&market, 0..3).await, expected);
    eventually("nothing runs", || metric(market.http(), "cuckoo_num_requests_running") == 0.0);
    offers(&market, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miner_that_runs_a_tenth_of_the_time_is_left() {
    let mut market = Market::start(1, MINER);
    let expected = undisturbed(&market, 0..1).await;
    let client = market.client().await;
    let (stream, tokens) = begun(&client, request(&market, 0)).await;
    let slow = market.miners.remove(0);
    let is_over = Arc::new(AtomicBool::new(false));
    let slowing = std::thread::spawn({
        let is_over = is_over.clone();
        move || {
            while !is_over.load(Ordering::Relaxed) {
                slow.signal("STOP");
                std::thread::sleep(Duration::from_millis(450));
                slow.signal("CONT");
                std::thread::sleep(Duration::from_millis(45));
            }
            slow
        }
    });
    market.add_miner(MINER);
    let (tokens, usage) = rest_of(stream, tokens).await;
    is_over.store(true, Ordering::Relaxed);
    assert_eq!((tokens, usage.migrations > 0), (expected[0].clone(), true));
    drop(slowing.join().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_in_either_or_both_directions_costs_nobody_a_token() {
    let mut market = Market::start(1, MINER);
    let expected = undisturbed(&market, 0..2).await;
    let client = market.client().await;
    let proxy = Proxy::start(&market.join(), 1).await;
    let far = market.start_miner(proxy.address(), tempfile::tempdir().unwrap(), MINER);
    far.ready();
    offers(&market, 2);
    let cut = Path { is_cut: true, ..Path::default() };
    let open = Path::default();
    for (to_scheduler, from_scheduler) in [(cut, cut), (cut, open), (open, cut)] {
        let mut streams = Vec::new();
        for seed in 0..2 {
            streams.push(begun(&client, request(&market, seed)).await);
        }
        proxy.set(to_scheduler, from_scheduler);
        for ((stream, tokens), expected) in streams.into_iter().zip(&expected) {
            assert_eq!(rest_of(stream, tokens).await.0, *expected, "{to_scheduler:?} {from_scheduler:?}");
        }
        eventually("its link is lost", || metric(market.http(), "cuckoo_replicas") == 1.0);
        proxy.cut(false);
        // It comes again by itself, with nothing of what it ran before.
        offers(&market, 2);
    }
    // Alone, it serves.
    market.miners.remove(0).interrupt();
    assert_eq!(undisturbed(&market, 0..2).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_loses_repeats_delays_and_damages_changes_no_token() {
    let mut market = Market::start(1, MINER);
    let expected = undisturbed(&market, 0..4).await;
    let bad = Path {
        loss: 30,
        duplicate: 10,
        corrupt: 5,
        reorder: 20,
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(10),
        rate: Some(2 << 20),
        ..Path::default()
    };
    let mut proxies = Vec::new();
    let mut far = Vec::new();
    for seed in 0..2 {
        let proxy = Proxy::start(&market.join(), seed).await;
        far.push(market.start_miner(proxy.address(), tempfile::tempdir().unwrap(), MINER));
        far[seed as usize].ready();
        proxies.push(proxy);
    }
    // The one that is near leaves.
    market.miners.remove(0).interrupt();
    proxies.iter().for_each(|proxy| proxy.set(bad, bad));
    let client = market.client().await;
    let mut streams = Vec::new();
    for seed in 0..4 {
        streams.push(client.generate(request(&market, seed)).await.unwrap());
    }
    for (stream, expected) in streams.into_iter().zip(&expected) {
        assert_eq!(rest_of(stream, Vec::new()).await.0, *expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaving_miner_hands_over_what_it_has_and_does_not_wait_for_its_end() {
    let mut market = Market::start(1, MINER);
    let long = |market: &Market| {
        let mut request = request(market, 7);
        request.0.max_tokens = Some(600);
        request
    };
    let client = market.client().await;
    let expected = rest_of(client.generate(long(&market)).await.unwrap(), Vec::new()).await.0;
    let before = market.balances();
    let (mut stream, mut tokens) = begun(&client, long(&market)).await;
    market.add_miner(MINER);
    let mut leaving = market.miners.remove(0);
    let left = tokio::task::spawn_blocking(move || (leaving.interrupt(), leaving));
    while !left.is_finished() {
        let delta = stream.next().await.unwrap().expect("it is gone before the answer ends");
        assert_eq!(delta.first as usize, tokens.len());
        tokens.extend(delta.tokens);
    }
    let (status, leaving) = left.await.unwrap();
    assert!(status.success());
    let (tokens, usage) = rest_of(stream, tokens).await;
    assert_eq!((tokens == expected, usage.migrations > 0), (true, true));
    market.miners.push(leaving);
    let after = market.balances();
    assert_eq!(sum(&after, "miner:") - sum(&before, "miner:"), usage.miner as i64, "both were paid, and once");
}

/// Tokens billed after a developer has gone, by `vanish`, in the middle of an answer.
async fn billed_after<T>(market: &Market, at: &Address, vanish: impl FnOnce(Client, Generation) -> T) -> f64 {
    let client = Client::connect(at, &Identity::generate()).await.unwrap();
    let mut long = request(market, 3);
    long.0.max_tokens = Some(4_000);
    let billed = || metric(market.http(), "cuckoo_tokens_total");
    let (stream, _) = begun(&client, long).await;
    let ended = metric(market.http(), "cuckoo_requests_total");
    let (before, prompt) = (billed(), f64::from(stream.prompt_tokens()));
    assert!(before >= 8.0, "they are counted");
    let _gone = vanish(client, stream);
    eventually("nothing runs", || metric(market.http(), "cuckoo_num_requests_running") == 0.0);
    // Who left without a word may come back for a while.
    eventually("it is over", || metric(market.http(), "cuckoo_requests_total") == ended + 1.0);
    eventually("its blocks are free", || metric(market.http(), "cuckoo_replica_kv_blocks_used") == 0.0);
    // Those of the prompt are counted at the end.
    billed() - before - prompt
}

#[tokio::test(flavor = "multi_thread")]
async fn a_developer_that_vanishes_pays_for_what_it_took_and_little_more() {
    let market = Market::start(1, &["--batch", "8"]);
    let after = billed_after(&market, &market.join(), |client, stream| drop((client, stream))).await;
    assert!((0.0..=64.0).contains(&after), "{after} tokens after it had left");
    // Without a word: nobody knows that it has gone before its connection times out.
    let proxy = Proxy::start(&market.join(), 1).await;
    let cut = |client, stream| {
        proxy.cut(true);
        (client, stream)
    };
    let after = billed_after(&market, proxy.address(), cut).await;
    assert!((0.0..=96.0).contains(&after), "{after} tokens after it was cut off");
    println!("{after} tokens after it was cut off");
}

/// Waits until a miner is told to leave its sequence.
async fn cancelled(miner: &mut FakeMiner) {
    while !matches!(miner.control.next::<ToMiner>().await.unwrap().unwrap(), ToMiner::Cancel { .. }) {}
}

/// A request that a mute miner has begun with two tokens, and the second miner that was asked for the rest.
async fn hedged(market: &Market, client: &Client) -> (Generation, (FakeMiner, Assign), (FakeMiner, Assign)) {
    let mut first = FakeMiner::join(&market.join(), &Identity::generate(), 4).await;
    let mut stream = client.generate(market.request("Hi.", 10)).await.unwrap();
    let begun = first.assigned().await;
    first.step(vec![StepItem::new(begun.sequence, 0, vec![100, 101], None)]).await;
    assert_eq!(stream.next().await.unwrap().unwrap().tokens, [100, 101]);
    let mut second = FakeMiner::join(&market.join(), &Identity::generate(), 4).await;
    let rest = second.assigned().await;
    assert_eq!(rest.tokens, [&begun.tokens[..], &[100, 101]].concat());
    assert_eq!((rest.prompt_tokens, rest.max_new, rest.seed), (begun.prompt_tokens, 8, begun.seed));
    (stream, (first, begun), (second, rest))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_the_next_token_goes_on_and_the_other_is_fenced() {
    let market = Market::start(0, &[]);
    let client = market.client().await;
    let (mut stream, (mut first, begun), (mut second, rest)) = hedged(&market, &client).await;
    second.step(vec![StepItem::new(rest.sequence, 0, vec![102], None)]).await;
    assert_eq!(stream.next().await.unwrap().unwrap().tokens, [102]);
    cancelled(&mut first).await;
    // Too late: nobody listens, and it is no fault to have said it.
    first.step(vec![StepItem::new(begun.sequence, 2, vec![7, 8, 9], None)]).await;
    second.step(vec![StepItem::new(rest.sequence, 1, (103..110).collect(), Some(End::Length))]).await;
    let (tokens, usage) = rest_of(stream, vec![100, 101, 102]).await;
    assert_eq!((tokens, usage.migrations), ((100..110).collect(), 1));
    assert!(first.connection.close_reason().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_alarm_is_over_when_the_first_miner_is_ahead() {
    let market = Market::start(0, &[]);
    let client = market.client().await;
    let (mut stream, (mut first, begun), (mut second, rest)) = hedged(&market, &client).await;
    first.step(vec![StepItem::new(begun.sequence, 2, (102..106).collect(), None)]).await;
    assert_eq!(stream.next().await.unwrap().unwrap().tokens, [102, 103, 104, 105]);
    second.step(vec![StepItem::new(rest.sequence, 0, vec![102], None)]).await;
    cancelled(&mut second).await;
    first.step(vec![StepItem::new(begun.sequence, 6, (106..110).collect(), Some(End::Length))]).await;
    let (tokens, usage) = rest_of(stream, (100..106).collect()).await;
    assert_eq!((tokens, usage.migrations), ((100..110).collect(), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_miners_that_disagree_are_not_mixed() {
    let market = Market::start(0, &[]);
    let client = market.client().await;
    let (mut stream, (mut first, begun), (mut second, rest)) = hedged(&market, &client).await;
    // It is but one token behind, and that is another one than the developer has.
    first.step(vec![StepItem::new(begun.sequence, 2, vec![102], None)]).await;
    assert_eq!(stream.next().await.unwrap().unwrap().tokens, [102]);
    second.step(vec![StepItem::new(rest.sequence, 0, vec![7, 8], None)]).await;
    cancelled(&mut second).await;
    cancelled(&mut first).await;
    // Somebody begins anew, behind what the developer has.
    let again = tokio::select! {
        again = first.assigned() => again,
        again = second.assigned() => again,
    };
    assert_eq!(again.tokens[again.prompt_tokens as usize..], [100, 101, 102]);
}
