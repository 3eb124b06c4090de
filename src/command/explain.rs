//! `cuckoo explain`: why a request went to the miner that it went to.

use cuckoo::{Candidate, FoundBy, PlacementReasons};
use serde_json::{Value, json};

use super::ask;
use crate::args::{Common, ExplainArgs};
use crate::home::Home;

pub(super) async fn run(common: &Common, args: ExplainArgs) -> anyhow::Result<()> {
    let home = Home::open(common)?;
    let (client, key) = ask::connect(&home, &args.target).await?;
    let explanation = client.explain(ask::paying(key)?, args.request).await?;
    match common.json {
        true => {
            let placements: Vec<Value> = explanation.placements.iter().map(as_json).collect();
            println!("{}", json!({"request": explanation.request.to_string(), "placements": placements}));
        }
        false => explanation.placements.iter().enumerate().for_each(|(at, placement)| print(at + 1, placement)),
    }
    client.close();
    Ok(())
}

fn print(number: usize, placement: &PlacementReasons) {
    let PlacementReasons {
        waited_ms,
        waiting,
        replicas,
        other_numerics,
        class,
        served_tokens,
        prompt_tokens,
        candidates,
    } = placement;
    println!("placement {number}: {prompt_tokens} tokens, class {}", word(class));
    println!("  waited {waited_ms:.1} ms, while {waiting} others went on waiting; {replicas} replicas of the model");
    if *other_numerics > 0 {
        println!(
            "  {other_numerics} of these left out: they compute in another way than those that made its beginning"
        );
    }
    println!("  its account had been given {served_tokens} tokens in this class");
    println!(
        "  {:<14} {:>8} {:>7} {:>9} = {:>7} {:>7} {:>8} {:>8} {:>8} {:>7} {:>6}  {:>9} {:>7}  meets  found by",
        "miner",
        "cached",
        "",
        "cost ms",
        "network",
        "queue",
        "prefill",
        "decode",
        "crowding",
        "price",
        "risk",
        "TTFT p95",
        "ITL"
    );
    for (at, Candidate { miner, cached_tokens, terms, ttft_p95_ms, itl_ms, meets, found_by, .. }) in
        candidates.iter().enumerate()
    {
        println!(
            "  {:<14} {:>8} {:>7} {:>9.1} = {:>7.1} {:>7.1} {:>8.1} {:>8.1} {:>8.1} {:>7.1} {:>6.1}  {:>9.1} {:>7.1}  {:<5}  {}",
            miner.short().to_string(),
            cached_tokens,
            if at == 0 { "taken" } else { "" },
            terms.total(),
            terms.network,
            terms.queue,
            terms.prefill,
            terms.decode,
            terms.crowding,
            terms.price,
            terms.risk,
            ttft_p95_ms,
            itl_ms,
            if *meets { "yes" } else { "no" },
            reason(*found_by),
        );
    }
}

fn word(class: &cuckoo::ServiceClass) -> &'static str {
    match class {
        cuckoo::ServiceClass::Interactive => "interactive",
        cuckoo::ServiceClass::Standard => "standard",
        cuckoo::ServiceClass::Batch => "batch",
    }
}

fn reason(found_by: FoundBy) -> &'static str {
    match found_by {
        FoundBy::Prefix => "its cache",
        FoundBy::Ring => "where prompts of this beginning go",
        FoundBy::Chance => "chance",
        FoundBy::Search => "search",
        FoundBy::Kept => "room kept for it",
    }
}

fn as_json(placement: &PlacementReasons) -> Value {
    let candidate = |c: &Candidate| {
        json!({
            "miner": c.miner.to_string(), "replica": c.replica.0, "cached_tokens": c.cached_tokens,
            "cost_ms": c.terms.total(), "network": c.terms.network, "queue": c.terms.queue,
            "prefill": c.terms.prefill, "decode": c.terms.decode, "crowding": c.terms.crowding,
            "price": c.terms.price, "risk": c.terms.risk, "ttft_p95_ms": c.ttft_p95_ms, "itl_ms": c.itl_ms,
            "meets": c.meets, "found_by": reason(c.found_by),
        })
    };
    json!({
        "waited_ms": placement.waited_ms, "waiting": placement.waiting, "replicas": placement.replicas,
        "other_numerics": placement.other_numerics,
        "class": word(&placement.class), "served_tokens": placement.served_tokens,
        "prompt_tokens": placement.prompt_tokens,
        "candidates": placement.candidates.iter().map(candidate).collect::<Vec<_>>(),
    })
}
