//! Streams one answer to standard output and says what it took.

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cuckoo::{ApiKey, Client, Constraint, FinishReason, Prompt, Request, RequestId, Usage};
use cuckoo_wire::limits::CONSTRAINT_BYTES_MAX;
use cuckoo_wire::message::{TokenLogprob, TokenLogprobs};
use serde_json::{Value, json};

use super::credits;
use crate::args::{GenerationArgs, Shape};

/// One answer and its figures.
pub(super) struct Answer {
    pub(super) text: String,
    first_token: Duration,
    total: Duration,
    request: RequestId,
    reason: FinishReason,
    usage: Usage,
    logprobs: Vec<TokenLogprobs>,
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
    let mut request = Request::new(key.0.clone(), model, prompt);
    args.fill(&mut request.0);
    request.0.constraint = constraint(args)?;
    let began = Instant::now();
    let mut generation = client.generate(request).await?;
    let (mut text, mut first_token, mut logprobs) = (String::new(), None, Vec::new());
    while let Some(delta) = generation.next().await? {
        first_token.get_or_insert_with(|| began.elapsed());
        text.push_str(&delta.text);
        logprobs.extend(delta.logprobs);
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
    let (request, first_token) = (generation.request(), first_token.unwrap_or(total));
    Ok(Answer { text, first_token, total, request, reason, usage, logprobs })
}

/// What the output must look like, read from the files that were named.
fn constraint(args: &GenerationArgs) -> anyhow::Result<Option<Constraint>> {
    let shape = &args.shape;
    Ok(match shape {
        Shape { json_object: true, .. } => Some(Constraint::JsonObject),
        Shape { json_schema: Some(file), .. } => Some(Constraint::JsonSchema(small_text(file)?)),
        Shape { grammar: Some(file), .. } => Some(Constraint::Grammar(small_text(file)?)),
        Shape { regex: Some(regex), .. } => Some(Constraint::Regex(regex.clone())),
        Shape { choices, .. } if !choices.is_empty() => Some(Constraint::Choice(choices.clone())),
        Shape { .. } => None,
    })
}

/// A text file, if it is no longer than a constraint may be.
fn small_text(path: &Path) -> anyhow::Result<String> {
    let failed = || format!("{}", path.display());
    let file = std::fs::File::open(path).with_context(failed)?;
    let (mut text, most) = (String::new(), CONSTRAINT_BYTES_MAX as u64);
    file.take(most + 1).read_to_string(&mut text).with_context(failed)?;
    ensure!(text.len() as u64 <= most, "{}: longer than the {most} bytes that a constraint may have", path.display());
    Ok(text)
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
            let mut line = json!({
                "event": "answer", "request": self.request.to_string(), "text": self.text, "finish_reason": reason,
                "prompt_tokens": u.prompt_tokens, "completion_tokens": u.completion_tokens,
                "ttft_ms": ttft_ms, "tokens_per_second": self.tokens_per_second(),
                "total_ms": self.total.as_secs_f64() * 1e3,
                "cost_nano": u.cost, "miner_nano": u.miner, "author_nano": u.author, "network_nano": u.network,
                "migrations": u.migrations,
            });
            if !self.logprobs.is_empty() {
                line["logprobs"] = self.logprobs.iter().map(scored).collect();
            }
            println!("{line}");
            return;
        }
        self.logprobs.iter().for_each(|token| eprintln!("{}", row(token)));
        let amount = |nano: u64| credits(i64::try_from(nano).unwrap_or(i64::MAX));
        eprintln!(
            "\n{} + {} tokens · first after {:.0} ms · {:.1} tokens/s · cost {} credits: the miner earned {}, the author {}, the network {}\n{}",
            u.prompt_tokens,
            u.completion_tokens,
            ttft_ms,
            self.tokens_per_second(),
            amount(u.cost),
            amount(u.miner),
            amount(u.author),
            amount(u.network),
            self.request,
        );
    }
}

/// A token with those that could have stood in its place, for machines.
fn scored(token: &TokenLogprobs) -> Value {
    let one = |t: &TokenLogprob| json!({"token": t.token, "text": spelled(t), "logprob": t.logprob});
    let mut all = one(&token.chosen);
    all["rank"] = token.rank.into();
    all["top"] = token.top.iter().map(one).collect();
    all
}

/// The same for people: its logarithm of probability, its place, and the others.
fn row(token: &TokenLogprobs) -> String {
    let number = |t: &TokenLogprob| t.logprob.map_or_else(|| "-".to_owned(), |logprob| format!("{logprob:.3}"));
    let chosen = format!("{:>9}  #{:<6} {:?}", number(&token.chosen), token.rank, spelled(&token.chosen));
    let top: Vec<String> = token.top.iter().map(|t| format!("{:?} {}", spelled(t), number(t))).collect();
    if top.is_empty() { chosen } else { format!("{chosen:<40} of {}", top.join(", ")) }
}

fn spelled(token: &TokenLogprob) -> String {
    String::from_utf8_lossy(&token.bytes).into_owned()
}
