//! A real scheduler, miners and clients over loopback QUIC, as processes of their own.

use std::collections::HashMap;

use cuckoo::{Address, Client, ClientError, FinishReason, Identity, Price, RefusalCode, Request, Sampling, Usage};

use crate::market::{Market, sum};
use crate::support::{MODEL, Process, Up, eventually, get, metric};

/// Runs a request to its end: tokens in order, text, usage.
async fn run(client: &Client, request: Request) -> (Vec<u32>, String, FinishReason, Usage) {
    let mut generation = client.generate(request).await.unwrap();
    let (mut tokens, mut text) = (Vec::new(), String::new());
    while let Some(delta) = generation.next().await.unwrap() {
        assert_eq!(delta.first as usize, tokens.len(), "no token twice or missing");
        tokens.extend(delta.tokens);
        text.push_str(&delta.text);
    }
    assert!(generation.next().await.unwrap().is_none(), "a stream ends once");
    (tokens, text, generation.finish_reason().unwrap(), generation.usage().unwrap().clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_streams_fill_two_miners_and_the_books_balance() {
    let market = Market::start(2, &["--batch", "8", "--price-input", "0.01", "--price-output", "0.04"]);
    let before = market.balances();
    let client = market.client().await;
    let streams = (0..64u32).map(|i| {
        let (client, request) = (client.clone(), market.request(&format!("Count from {i}."), 10));
        tokio::spawn(async move { run(&client, request).await })
    });
    let mut usages = Vec::new();
    for stream in streams.collect::<Vec<_>>() {
        let (tokens, _, reason, usage) = stream.await.unwrap();
        assert_eq!((tokens.len(), reason), (10, FinishReason::Length));
        assert_eq!(usage.completion_tokens, 10);
        usages.push(usage);
    }
    both_batches_were_full(&market, 8);

    // One request by hand: prices are 0.01 and 0.04 credits a million, so 10,000 and 40,000 nano-credits a thousand.
    let u = &usages[0];
    let cost = u64::from(u.prompt_tokens) * 10 + 10 * 40;
    let (author, fee, audit, reliability) =
        (cost * 800 / 10_000, cost * 500 / 10_000, cost * 300 / 10_000, cost * 200 / 10_000);
    assert_eq!((u.cost, u.author, u.network), (cost, author, fee + audit + reliability));
    assert_eq!(u.miner, cost - author - fee - audit - reliability);

    // All of them: what developers paid is what miners, author and network got, to the unit.
    let total = |part: fn(&Usage) -> u64| usages.iter().map(part).sum::<u64>() as i64;
    assert_eq!(total(|u| u.cost), total(|u| u.miner) + total(|u| u.author) + total(|u| u.network));
    let after = market.balances();
    assert_eq!(sum(&before, "client:") - sum(&after, "client:"), total(|u| u.cost));
    assert_eq!(sum(&after, "miner:") - sum(&before, "miner:"), total(|u| u.miner));
    assert_eq!(sum(&after, "author:") - sum(&before, "author:"), total(|u| u.author));
    assert!(market.miners.iter().all(|m| sum_of(&after, m) > 0), "both earned: {after:?}");
    let settled = get(market.http(), "/metrics");
    assert!(
        settled.contains(&format!("cuckoo_settled_nanocredits_total{{party=\"developer\"}} {}", total(|u| u.cost)))
    );
}

/// What one miner earned.
fn sum_of(balances: &HashMap<String, i64>, miner: &Process) -> i64 {
    let identity = Identity::load_or_create(&miner.home.path().join("identity.key")).unwrap();
    sum(balances, &format!("miner:{}", identity.peer_id()))
}

/// Steps with a full batch, by miner, from the histogram of batch sizes.
fn both_batches_were_full(market: &Market, batch: u32) {
    let metrics = get(market.http(), "/metrics");
    let mut above: HashMap<String, f64> = HashMap::new();
    for line in metrics.lines().filter(|l| l.starts_with("cuckoo_replica_batch_size_")) {
        let (key, value) = line.rsplit_once(' ').unwrap();
        let miner = key.split("miner=\"").nth(1).and_then(|m| m.split('"').next()).unwrap().to_owned();
        let value: f64 = value.parse().unwrap();
        if key.contains("_count") {
            *above.entry(miner).or_default() += value;
        } else if key.contains(&format!("le=\"{}.0\"", batch / 2)) {
            *above.entry(miner).or_default() -= value;
        }
    }
    assert_eq!(above.len(), 2, "{metrics}");
    assert!(above.values().all(|steps| *steps >= 8.0), "steps with more than half a batch: {above:?}\n{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_miner_costs_nobody_a_token() {
    let mut market = Market::start(1, &["--batch", "8"]);
    let client = market.client().await;
    // Every other one draws by what came before and by a coin of its own.
    let sampling = |seed| {
        let odd = if seed % 2 == 1 { 0.6 } else { 0.0 };
        let (dry_multiplier, xtc_probability) = (odd, odd);
        Sampling { temperature: 0.9, seed: Some(seed), dry_multiplier, xtc_probability, ..Sampling::default() }
    };
    let request = |market: &Market, seed| {
        market.request("Tell me a story.", 48).sampling(sampling(seed)).logprobs(2).prompt_logprobs(1)
    };
    let mut undisturbed = Vec::new();
    for seed in 0..4 {
        let mut stream = client.generate(request(&market, seed)).await.unwrap();
        let (mut tokens, mut logprobs) = (Vec::new(), Vec::new());
        while let Some(delta) = stream.next().await.unwrap() {
            tokens.extend(delta.tokens);
            logprobs.extend(delta.logprobs);
        }
        let prompt = stream.prompt().clone();
        assert_eq!((prompt.logprobs.len(), logprobs.len()), (stream.prompt_tokens() as usize, 48));
        undisturbed.push((tokens, logprobs, prompt));
    }
    market.add_miner(&["--batch", "8"]);
    eventually("both miners offer", || metric(market.http(), "cuckoo_replicas") as usize == 2);
    let mut streams: Vec<_> = Vec::new();
    for seed in 0..4 {
        streams.push(client.generate(request(&market, seed)).await.unwrap());
    }
    // Everybody has begun when the first miner dies without a word.
    let mut begun = Vec::new();
    for stream in &mut streams {
        let delta = stream.next().await.unwrap().unwrap();
        begun.push((delta.tokens, delta.logprobs));
    }
    market.miners.remove(0).kill();
    let mut migrations = 0;
    for ((mut stream, (mut tokens, mut logprobs)), expected) in streams.into_iter().zip(begun).zip(undisturbed) {
        while let Some(delta) = stream.next().await.unwrap() {
            assert_eq!(delta.first as usize, tokens.len());
            tokens.extend(delta.tokens);
            logprobs.extend(delta.logprobs);
        }
        let all = (tokens, logprobs, stream.prompt().clone());
        assert!(all == expected, "the same as without the fault, and nothing twice: {all:?} is not {expected:?}");
        let usage = stream.usage().unwrap();
        assert_eq!(usage.completion_tokens, 48);
        assert_eq!(usage.cost, usage.miner + usage.author + usage.network);
        migrations += usage.migrations;
    }
    assert!(migrations > 0, "somebody had to move");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miner_that_is_asked_to_stop_finishes_what_it_has() {
    let mut market = Market::start(1, &["--batch", "8"]);
    let client = market.client().await;
    let mut stream = client.generate(market.request("Tell me a story.", 40)).await.unwrap();
    assert!(stream.next().await.unwrap().is_some());
    let mut miner = market.miners.remove(0);
    let stopping = tokio::task::spawn_blocking(move || miner.interrupt());
    eventually("its replica is leaving", || metric(market.http(), "cuckoo_num_requests_running") <= 1.0);
    let text = stream.text().await;
    assert!(text.is_ok(), "{text:?}");
    let usage = stream.usage().unwrap();
    assert_eq!((usage.completion_tokens, usage.migrations), (40, 0));
    assert!(stopping.await.unwrap().success());
    eventually("it is gone", || metric(market.http(), "cuckoo_replicas") == 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_comes_back_finds_its_miners_and_its_books() {
    let market = Market::start(1, &["--batch", "8"]);
    let client = market.client().await;
    let (.., usage) = run(&client, market.request("Hello.", 5)).await;
    let before = market.balances();
    // Nobody could go on with this one.
    let mut stream = client.generate(market.request("Tell me a story.", 400).logprobs(1)).await.unwrap();
    assert!(stream.next().await.unwrap().is_some());
    assert!(sum(&market.balances(), "client:") < sum(&before, "client:"), "the worst case is held");
    let market = market.restart_scheduler();
    while let Ok(Some(_)) = stream.next().await {}
    assert!(stream.usage().is_none(), "it broke, and said so");
    eventually("the miner offers again", || metric(market.http(), "cuckoo_replicas") == 1.0);
    eventually("what was settled stands, what was held is back", || market.balances() == before);
    let (.., again) = run(&market.client().await, market.request("Hello.", 5)).await;
    assert_eq!(again, usage);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_or_never_reads_holds_nobody_up() {
    let up = Up::start();
    let client = up.client().await;
    let long = || {
        let mut request = Request::chat(&up.api_key, MODEL, "Tell me a very long story.").max_tokens(4_000);
        request.0.ignore_eos = true;
        request
    };
    let stuck = client.generate(long()).await.unwrap();
    let mut left = client.generate(long()).await.unwrap();
    assert!(left.next().await.unwrap().is_some());
    assert!(up.metric("cuckoo_replica_kv_blocks_used") > 0.0);
    drop(left);
    let mut short = client.generate(long().max_tokens(20)).await.unwrap();
    assert!(short.text().await.is_ok());
    assert_eq!(short.usage().unwrap().completion_tokens, 20);
    drop(stuck);
    eventually("all blocks are free again", || up.metric("cuckoo_replica_kv_blocks_used") == 0.0);
    eventually("nothing runs", || up.metric("cuckoo_num_requests_running") == 0.0);
    let settled = |party| {
        let text = get(&up.http, "/metrics");
        let key = format!("cuckoo_settled_nanocredits_total{{party=\"{party}\"}} ");
        text.lines().find_map(|l| l.strip_prefix(&key)).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0)
    };
    assert_eq!(settled("developer"), settled("miner") + settled("author") + settled("network"));
    assert!(up.interrupt().success(), "Ctrl-C ends it cleanly");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_is_wrong() {
    let up = Up::shared();
    let client = up.client().await;
    let base = || Request::chat(&up.api_key, MODEL, "hi");
    let refused = async |request: Request| match client.generate(request).await {
        Err(ClientError::Refused(refusal)) => refusal,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    };
    let mut unknown = base();
    unknown.0.model = "gpt-5".into();
    let refusal = refused(unknown).await;
    assert_eq!(refusal.code, RefusalCode::ModelNotFound);
    assert!(refusal.message.contains(MODEL), "{refusal}");

    let mut key = base();
    key.0.api_key = cuckoo::ApiKey("ck_live_wrong".into());
    assert_eq!(refused(key).await.code, RefusalCode::InvalidApiKey);

    let refusal = refused(Request::completion(&up.api_key, MODEL, "word ".repeat(9_000))).await;
    assert_eq!(refusal.code, RefusalCode::ContextLengthExceeded);
    assert!(refusal.message.contains("8192") && refusal.message.contains("9001"), "{refusal}");

    for (name, sampling) in [
        ("temperature", Sampling { temperature: -1.0, ..Sampling::default() }),
        ("temperature", Sampling { temperature: f32::NAN, ..Sampling::default() }),
        ("top_p", Sampling { top_p: 0.0, ..Sampling::default() }),
        ("min_p", Sampling { min_p: 1.5, ..Sampling::default() }),
        ("repetition_penalty", Sampling { repetition_penalty: f32::INFINITY, ..Sampling::default() }),
        ("logit_bias", Sampling { logit_bias: [(1_000_000, 1.0)].into(), ..Sampling::default() }),
    ] {
        let refusal = refused(base().sampling(sampling)).await;
        assert_eq!(refusal.code, RefusalCode::InvalidRequest);
        assert_eq!(refusal.param.as_deref(), Some(name), "{refusal}");
    }

    let mut cheap = base();
    cheap.0.max_price = Some(Price { input_per_mtok: 1, output_per_mtok: 1 });
    let refusal = refused_later(&client, cheap).await;
    assert_eq!(refusal.code, RefusalCode::NoCapacity);
    assert!(refusal.message.contains("price"), "{refusal}");
}

/// The refusal of a request that was accepted first.
async fn refused_later(client: &Client, request: Request) -> cuckoo::Refusal {
    let mut generation = client.generate(request).await.unwrap();
    match generation.next().await {
        Err(ClientError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_credit_pays_for_nothing() {
    let process = Process::start(&["up", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0", "--credit", "0.00001"]);
    let ready = process.ready();
    let address: Address = ready["quic"].as_str().unwrap().parse().unwrap();
    let client = Client::connect(&address, &Identity::generate()).await.unwrap();
    let key = ready["api_key"].as_str().unwrap();
    let ask = |max| client.generate(Request::chat(key, MODEL, "Count to ten.").max_tokens(max));
    match ask(4_000).await {
        Err(ClientError::Refused(refusal)) => {
            assert_eq!(refusal.code, RefusalCode::InsufficientCredit);
            assert!(refusal.message.contains("0.00001"), "{refusal}");
        }
        other => panic!("{:?}", other.err()),
    }
    // What it can pay for, it gets.
    assert!(ask(20).await.unwrap().text().await.is_ok());
}
