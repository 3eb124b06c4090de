//! `cuckoo bench online`: many requests at once to an OpenAI-compatible endpoint, ours or another's.
//!
//! With a rate, a request's clock starts when it was due and not when it could be sent: an endpoint that falls behind must
//! not look quicker for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Spread;
use super::endpoint::Endpoint;
use crate::args::{BenchOnlineArgs, Common};

const MILLISECOND: Duration = Duration::from_millis(1);

/// Common words, about a token each; prompts differ from the first on, so that no cache of prefixes helps.
const WORDS: [&str; 32] = [
    "river", "stone", "light", "garden", "winter", "paper", "music", "window", "forest", "market", "silver", "morning",
    "harbor", "letter", "bridge", "engine", "summer", "island", "mountain", "kitchen", "shadow", "village", "ocean",
    "machine", "story", "travel", "flower", "castle", "metal", "animal", "road", "cloud",
];

/// What became of one request.
struct Outcome {
    first_token: Duration,
    /// Between chunks of text.
    gaps: Vec<Duration>,
    total: Duration,
    prompt_tokens: u64,
    output_tokens: u64,
}

pub(super) async fn run(common: &Common, args: BenchOnlineArgs) -> anyhow::Result<()> {
    let endpoint = Arc::new(Endpoint::new(&args.url, args.api_key.clone())?);
    // One that is not counted: a wrong key or name ends the run here, and whatever loads lazily has loaded.
    request(&endpoint, &body(&args, u64::MAX), Instant::now()).await?;
    let slots = Arc::new(Semaphore::new(args.concurrency as usize));
    let (began, mut due, mut random) = (Instant::now(), 0.0, 0);
    let mut running = JoinSet::new();
    for number in 0..args.requests {
        if let Some(rate) = args.rate {
            due -= (1.0 - uniform(&mut random)).ln() / rate;
            tokio::time::sleep_until((began + Duration::from_secs_f64(due)).into()).await;
        }
        let slot = slots.clone().acquire_owned().await?;
        let clock = match args.rate {
            Some(_) => began + Duration::from_secs_f64(due),
            None => Instant::now(),
        };
        let (endpoint, body) = (endpoint.clone(), body(&args, u64::from(number)));
        running.spawn(async move {
            let outcome = request(&endpoint, &body, clock).await;
            drop(slot);
            outcome
        });
    }
    let outcomes = running.join_all().await;
    let duration = began.elapsed();
    let (done, failed): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    let summary = Summary {
        duration,
        done: done.into_iter().flatten().collect(),
        errors: failed.into_iter().filter_map(Result::err).map(|e| format!("{e:#}")).collect(),
    };
    summary.print(&args, common.json);
    Ok(())
}

fn body(args: &BenchOnlineArgs, number: u64) -> Value {
    let mut random = number.wrapping_mul(0x2545_f491_4f6c_dd1d);
    let word = |_| WORDS[(uniform(&mut random) * WORDS.len() as f64) as usize];
    let prompt: Vec<&str> = (0..args.prompt).map(word).collect();
    let mut body = Map::new();
    body.insert("model".to_owned(), json!(args.model));
    body.insert("messages".to_owned(), json!([{"role": "user", "content": prompt.join(" ")}]));
    body.insert("max_tokens".to_owned(), json!(args.generate));
    body.insert("temperature".to_owned(), json!(0));
    body.insert("stream".to_owned(), json!(true));
    body.insert("stream_options".to_owned(), json!({"include_usage": true}));
    body.extend(args.extra.clone().unwrap_or_default());
    Value::Object(body)
}

/// A number in 0..1 (SplitMix64): prompts and moments are the same in every run.
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

async fn request(endpoint: &Endpoint, body: &Value, clock: Instant) -> anyhow::Result<Outcome> {
    let mut events = endpoint.ask(body).await?;
    let (mut chunks, mut usage) = (Vec::new(), Value::Null);
    while let Some(event) = events.next().await? {
        if let Some(error) = event.get("error") {
            bail!("{error}");
        }
        let text = event["choices"][0]["delta"]["content"].as_str();
        if text.is_some_and(|t| !t.is_empty()) {
            chunks.push(Instant::now());
        }
        if event["usage"].is_object() {
            usage = event["usage"].clone();
        }
    }
    let Some(first) = chunks.first() else { bail!("an answer without text") };
    Ok(Outcome {
        first_token: *first - clock,
        gaps: chunks.windows(2).map(|pair| pair[1] - pair[0]).collect(),
        total: clock.elapsed(),
        prompt_tokens: usage["prompt_tokens"].as_u64().unwrap_or(0),
        // An endpoint that counts nothing sends a chunk a token.
        output_tokens: usage["completion_tokens"].as_u64().unwrap_or(chunks.len() as u64),
    })
}

struct Summary {
    duration: Duration,
    done: Vec<Outcome>,
    errors: Vec<String>,
}

impl Summary {
    fn spread(&self, of: impl Fn(&Outcome) -> Duration) -> Spread {
        Spread::of(&self.done.iter().map(of).collect::<Vec<_>>(), MILLISECOND)
    }

    fn print(&self, args: &BenchOnlineArgs, json: bool) {
        let total = |of: fn(&Outcome) -> u64| self.done.iter().map(of).sum::<u64>();
        let (input, output) = (total(|o| o.prompt_tokens), total(|o| o.output_tokens));
        let seconds = self.duration.as_secs_f64();
        let ttft = self.spread(|o| o.first_token);
        let gaps: Vec<Duration> = self.done.iter().flat_map(|o| o.gaps.iter().copied()).collect();
        let itl = Spread::of(&gaps, MILLISECOND);
        let e2el = self.spread(|o| o.total);
        let output_throughput = output as f64 / seconds;
        if json {
            // The keys of vLLM's serving benchmark.
            println!(
                "{}",
                json!({
                    "event": "online", "model_id": args.model, "num_prompts": args.requests, "request_rate": args.rate,
                    "max_concurrency": args.concurrency, "duration": seconds, "completed": self.done.len(),
                    "failed": self.errors.len(), "errors": self.errors.iter().take(3).collect::<Vec<_>>(),
                    "total_input_tokens": input, "total_output_tokens": output, "output_throughput": output_throughput,
                    "request_throughput": self.done.len() as f64 / seconds,
                    "mean_ttft_ms": ttft.mean(), "median_ttft_ms": ttft.median(), "p99_ttft_ms": ttft.quantile(0.99),
                    "mean_itl_ms": itl.mean(), "median_itl_ms": itl.median(), "p99_itl_ms": itl.quantile(0.99),
                    "mean_e2el_ms": e2el.mean(), "median_e2el_ms": e2el.median(), "p99_e2el_ms": e2el.quantile(0.99),
                })
            );
            return;
        }
        println!("{} answers in {seconds:.1} s, {} errors", self.done.len(), self.errors.len());
        println!("output   {output_throughput:>8.1} tokens/s ({output} tokens; prompts had {input})");
        for (name, spread) in [("first", ttft), ("between", itl), ("whole", e2el)] {
            println!("{name:<8} {:>8.1} ms p50, {:>8.1} ms p99", spread.median(), spread.quantile(0.99));
        }
        self.errors.iter().take(3).for_each(|e| eprintln!("error: {e}"));
    }
}

#[cfg(test)]
mod tests {
    use super::uniform;

    #[test]
    fn random_numbers_fill_their_range() {
        let mut state = 1;
        let numbers: Vec<f64> = (0..1_000).map(|_| uniform(&mut state)).collect();
        assert!(numbers.iter().all(|n| (0.0..1.0).contains(n)));
        assert!((numbers.iter().sum::<f64>() / 1e3 - 0.5).abs() < 0.05);
    }
}
