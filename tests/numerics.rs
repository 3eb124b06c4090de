//! Miners that keep keys and values in other formats give other tokens: what one began goes on only on its like, through losses,
//! false alarms and takeovers, and is what it would have been.

use cuckoo::{ApiKey, Client, ClientError, Identity, PlacementReasons, RefusalCode, Request, Sampling};
use cuckoo_wire::message::{End, KvFormat, StepItem, ToMiner};

use crate::hostile::FakeMiner;
use crate::market::Market;
use crate::resume::{Answer, begun, finished};
use crate::support::{eventually, metric};

const F16: &[&str] = &["--batch", "8", "--kv-mib", "64", "--kv-type", "f16"];
const Q8_0: &[&str] = &["--batch", "8", "--kv-mib", "64", "--kv-type", "q8_0"];

/// Tokens of an answer: it is not whole before another miner has started.
const TOKENS: u32 = 600;

fn request(market: &Market) -> Request {
    let sampling = Sampling { temperature: 0.9, seed: Some(1), ..Sampling::default() };
    market.request("Tell me a story.", TOKENS).sampling(sampling)
}

/// What is said where nothing is wrong.
async fn undisturbed(market: &Market) -> Answer {
    let stream = market.client().await.generate(request(market)).await.unwrap();
    finished((stream, Answer::default())).await.0
}

fn offers(market: &Market, replicas: usize) {
    eventually("as many replicas", || metric(market.http(), "cuckoo_replicas") as usize == replicas);
}

/// Why a request went where it went.
async fn ways(market: &Market, client: &Client, request: cuckoo::RequestId) -> Vec<PlacementReasons> {
    client.explain(ApiKey(market.key().to_owned()), request).await.unwrap().placements
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_miner_dies_waits_for_one_that_computes_alike() {
    let mut market = Market::start(1, F16);
    let expected = undisturbed(&market).await;
    let client = market.client().await;
    let begun = begun(&client, request(&market)).await;
    market.add_miner(Q8_0);
    offers(&market, 2);
    market.miners.remove(0).kill();
    market.add_miner(F16);
    let (answer, usage, stream) = finished(begun).await;
    assert_eq!((&answer, usage.migrations), (&expected, 1));
    let ways = ways(&market, &client, stream.request()).await;
    let left_out: Vec<u32> = ways.iter().map(|way| way.other_numerics).collect();
    assert_eq!(left_out, [0, 1], "new ones go anywhere, and the rest where it was computed alike");
    assert!(ways[1].candidates.iter().all(|candidate| candidate.miner != ways[0].candidates[0].miner));
    // The one that was left out would have gone on with other tokens.
    market.miners.remove(1).kill();
    offers(&market, 1);
    assert_ne!(undisturbed(&market).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_none_computes_alike_the_stream_ends_and_says_why() {
    let mut market = Market::start(1, Q8_0);
    let client = market.client().await;
    let (mut stream, answer) = begun(&client, request(&market)).await;
    market.add_miner(F16);
    offers(&market, 2);
    market.miners.remove(0).kill();
    let mut tokens = answer.tokens;
    let why = loop {
        match stream.next().await {
            Ok(delta) => tokens.extend(delta.expect("it has no good end").tokens),
            Err(ClientError::Refused(refusal)) => break refusal,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(why.code, RefusalCode::NoCapacity, "{why}");
    assert!(why.message.contains("in another way") && why.message.contains("q8_0"), "{why}");
    assert!(tokens.len() < TOKENS as usize, "it was not whole");
    // Who begins anew is served by who is there.
    assert_eq!(undisturbed(&market).await.tokens.len(), TOKENS as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_run_of_a_scheduler_knows_how_a_stream_was_computed() {
    let mut market = Market::start(1, F16);
    let expected = undisturbed(&market).await;
    let begun = begun(&market.client().await, request(&market)).await;
    market.add_miner(Q8_0);
    market.miners.remove(0).kill();
    let mut market = market.restart_scheduler();
    offers(&market, 1);
    market.add_miner(F16);
    let (answer, usage, stream) = finished(begun).await;
    assert_eq!((&answer, usage.migrations, stream.resumed()), (&expected, 1, 1));
}

/// Waits until a miner is told to leave its sequence.
async fn cancelled(miner: &mut FakeMiner) {
    while !matches!(miner.control.next::<ToMiner>().await.unwrap().unwrap(), ToMiner::Cancel { .. }) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_asked_before_the_first_token_is_left_if_another_way_of_computing_gave_it() {
    let market = Market::start(0, &[]);
    let client = market.client().await;
    let join = async |kv| FakeMiner::keeping(&market.join(), &Identity::generate(), kv, 4).await;
    let mut first = join(KvFormat::F16).await;
    let mut stream = client.generate(market.request("Hi.", 10)).await.unwrap();
    let begun = first.assigned().await;
    // It says nothing, and there is nothing of the answer yet: anybody will do.
    let mut other = join(KvFormat::Q8_0).await;
    assert_eq!(other.assigned().await.tokens, begun.tokens);
    first.step(vec![StepItem::new(begun.sequence, 0, vec![100, 101], None)]).await;
    assert_eq!(stream.next().await.unwrap().unwrap().tokens, [100, 101]);
    cancelled(&mut other).await;
    // It says nothing again, and only its like is asked.
    let mut like = join(KvFormat::F16).await;
    let rest = like.assigned().await;
    assert_eq!(rest.tokens, [&begun.tokens[..], &[100, 101]].concat());
    like.step(vec![StepItem::new(rest.sequence, 0, (102..110).collect(), Some(End::Length))]).await;
    let mut tokens = vec![100, 101];
    while let Some(delta) = stream.next().await.unwrap() {
        tokens.extend(delta.tokens);
    }
    assert_eq!(tokens, (100..110).collect::<Vec<u32>>());
    let left_out: Vec<u32> =
        ways(&market, &client, stream.request()).await.iter().map(|way| way.other_numerics).collect();
    assert_eq!(left_out, [0, 0, 1]);
}
