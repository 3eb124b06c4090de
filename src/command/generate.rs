//! Streams one answer to standard output and says what it took.

use std::io::Write;
use std::time::{Duration, Instant};

use cuckoo::{ApiKey, Client, FinishReason, Prompt, Request, Usage};
use serde_json::json;

use super::credits;
use crate::args::GenerationArgs;

/// One answer and its figures.
pub(super) struct Answer {
    pub(super) text: String,
    first_token: Duration,
    total: Duration,
    reason: FinishReason,
    usage: Usage,
}

/// The model to ask: the one named, or the first in the catalog.
pub(super) async fn model(client: &Client, args: &GenerationArgs) -> anyhow::Result<String> {
    if let Some(name) = &args.ask_model {
        return Ok(name.clone());
    }
    let models = client.models().await?;
    let served = models.iter().find(|m| m.replicas > 0).or(models.first());
    served.map(|m| m.name.clone()).ok_or_else(|| anyhow::anyhow!("the scheduler offers no model"))
}

/// Asks, prints the answer as it comes (unless as JSON), and waits for its end.
pub(super) async fn stream(
    client: &Client,
    key: &ApiKey,
    model: &str,
    prompt: Prompt,
    args: &GenerationArgs,
    json: bool,
) -> anyhow::Result<Answer> {
    let request = Request::new(key.0.clone(), model, prompt).max_tokens(args.max_tokens).sampling(args.sampling());
    let began = Instant::now();
    let mut generation = client.generate(request).await?;
    let (mut text, mut first_token) = (String::new(), None);
    while let Some(delta) = generation.next().await? {
        first_token.get_or_insert_with(|| began.elapsed());
        text.push_str(&delta.text);
        if !json {
            let mut out = std::io::stdout().lock();
            out.write_all(delta.text.as_bytes())?;
            out.flush()?;
        }
    }
    if !json {
        println!();
    }
    let total = began.elapsed();
    let reason = generation.finish_reason().unwrap_or(FinishReason::Stop);
    let usage = generation.usage().cloned().unwrap_or_default();
    Ok(Answer { text, first_token: first_token.unwrap_or(total), total, reason, usage })
}

impl Answer {
    /// Generated tokens per second after the first.
    fn tokens_per_second(&self) -> f64 {
        let decoding = (self.total - self.first_token).as_secs_f64();
        match decoding > 0.0 && self.usage.completion_tokens > 1 {
            true => f64::from(self.usage.completion_tokens - 1) / decoding,
            false => 0.0,
        }
    }

    /// Prints the figures: for people on standard error, for machines on standard output.
    pub(super) fn report(&self, json: bool) {
        let (u, ttft_ms) = (&self.usage, self.first_token.as_secs_f64() * 1e3);
        if json {
            let reason = match self.reason {
                FinishReason::Stop => "stop",
                FinishReason::Length => "length",
                FinishReason::ToolCalls => "tool_calls",
            };
            let line = json!({
                "event": "answer", "text": self.text, "finish_reason": reason,
                "prompt_tokens": u.prompt_tokens, "completion_tokens": u.completion_tokens,
                "ttft_ms": ttft_ms, "tokens_per_second": self.tokens_per_second(),
                "total_ms": self.total.as_secs_f64() * 1e3,
                "cost_nano": u.cost, "miner_nano": u.miner, "author_nano": u.author, "network_nano": u.network,
                "migrations": u.migrations,
            });
            println!("{line}");
            return;
        }
        let amount = |nano: u64| credits(i64::try_from(nano).unwrap_or(i64::MAX));
        eprintln!(
            "\n{} + {} tokens · first after {:.0} ms · {:.1} tokens/s · cost {} credits: the miner earned {}, the author {}, the network {}",
            u.prompt_tokens,
            u.completion_tokens,
            ttft_ms,
            self.tokens_per_second(),
            amount(u.cost),
            amount(u.miner),
            amount(u.author),
            amount(u.network),
        );
    }
}
