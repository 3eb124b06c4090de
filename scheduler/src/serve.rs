//! One request, from its prompt to its settlement: a function, shared by both doors.
//!
//! ```text
//! check ▶ whose key ▶ constraint ▶ template, tokens ▶ fits? ▶ hold ▶ Accepted
//!   ▶ place ▶ tokens ▶ text, stops ▶ settle ▶ Finished
//!       ▲         │ miner lost: prompt + accepted tokens
//!       └─────────┘
//! ```
//!
//! The developer may go at any point: what was delivered is settled, the rest of the hold returns. Nothing that a miner
//! claims is taken for granted: tokens are counted and held against the constraint, stops are recognized and limits are
//! kept here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cuckoo_models::Syntax;
use cuckoo_models::tools::Event;
use cuckoo_wire::BlockHash;
use cuckoo_wire::limits::BLOCK_TOKENS;
use cuckoo_wire::message::{
    Assign, Constraint, End, FinishReason, Generate, Price, Refusal, RefusalCode, ReplicaId, Reply, Sampling,
    SequenceId, ServiceClass, Task, TokenLogprobs, Usage,
};
use tokio::sync::mpsc;

use crate::catalog::Model;
use crate::constraint::{self, Judge};
use crate::dispatcher::{BlockName, Computes, Need, Order, Placed, Seat};
use crate::gateway::miner::News;
use crate::hold::{Delivered, Hold};
use crate::ledger::{Attempt, ClientId};
use crate::market::Market;
use crate::prompt;
use crate::spell::{self, Speller};
use crate::text::{CallReader, Output};
use crate::tools::{self, Caller, Calling};
use crate::words::{self, Words};

/// Placements of one request before it is given up.
pub(crate) const ATTEMPTS_MAX: usize = 4;
/// A miner that says nothing about a sequence for so long has lost it.
pub(crate) const PROGRESS_MAX: Duration = Duration::from_secs(120);

/// How a request ends.
pub(crate) enum Ending {
    /// As it should.
    Finished(FinishReason),
    /// The developer went away.
    Gone,
    /// Nobody could go on.
    Failed(Refusal),
}

/// What became of one placement.
enum Outcome {
    /// The request has ended.
    Ended(Ending),
    /// Somebody else must go on.
    Lost(String),
}

impl Market {
    /// Runs one request to its end. Replies go out in order: `Accepted`, `Delta`…, `Finished`; or `Refused` at any
    /// point. Dropping the receiver cancels the request.
    pub(crate) async fn serve(&self, request: Generate, replies: mpsc::Sender<Reply>) {
        let last = match self.job(request).await {
            Ok(job) => job.run(&replies).await,
            Err(refusal) => Some(Reply::Refused(refusal)),
        };
        self.conclude(last, &replies).await;
    }

    /// Counts a request that has ended, and says the last thing to whoever is still there.
    pub(crate) async fn conclude(&self, last: Option<Reply>, replies: &mpsc::Sender<Reply>) {
        if let Some(Reply::Refused(refusal)) = &last {
            tracing::debug!(code = ?refusal.code, refusal.message, "request refused");
        }
        self.metrics().ended(last.as_ref());
        if let Some(last) = last {
            let _ = replies.send(last).await;
        }
    }

    /// Everything up to the hold: nothing is owed before it, and nothing runs without it.
    async fn job(&self, request: Generate) -> Result<Job, Refusal> {
        let began = Instant::now();
        request.check()?;
        let client = self.client_of(&request.api_key).await?;
        let model = self.catalog().find(&request.model).ok_or_else(|| unknown_model(&request.model, self))?;
        prompt::check_task(&model)?;
        prompt::check_tokens(&model, &request)?;
        let held = held(self, &model, &request).await?;
        let tokens = prompt::tokens(self, &model, &request).await?;
        let prompt_tokens = tokens.len() as u32;
        let max_new = prompt::room(&model, prompt_tokens, request.max_tokens)?;
        prompt::check_least(request.sampling.min_tokens, max_new)?;
        let words = words::resolve(self, &model, &request).await?;
        let limit = self.price_limit(request.max_price, model.computes()).await;
        let speller = Speller::new(model.clone(), &request, &tokens)?;
        let echo = request.echo.then(|| prompt::text(&model, &request.prompt, &tokens));
        let hold = Hold::open(self, &client, limit, (prompt_tokens, max_new)).await?;
        Ok(Job {
            caller: held.syntax.map(|syntax| Caller::new(syntax, hold.request())),
            hold,
            output: Output::new(model.tokenizer().decoder(), request.stop, request.include_stop, held.reader),
            seed: request.sampling.seed.unwrap_or_else(rand::random),
            stop_tokens: model.stop_tokens(&request.stop_token_ids, request.ignore_eos),
            include_stop: request.include_stop,
            words,
            speller,
            echo,
            cache_salt: client.cache_salt(),
            client,
            class: request.class,
            sampling: request.sampling,
            constraint: held.constraint,
            judge: held.judge,
            attempts: Vec::new(),
            model,
            tokens,
            prompt_tokens,
            max_new,
            limit,
            began,
        })
    }
}

/// What an output is held to, and what reads calls out of it.
struct Held {
    constraint: Option<Constraint>,
    judge: Option<Judge>,
    reader: Option<CallReader>,
    syntax: Option<&'static Syntax>,
}

async fn held(market: &Market, model: &Arc<Model>, request: &Generate) -> Result<Held, Refusal> {
    let Some(tools) = request.callable() else {
        let judge = constraint::judge(market, model, request.constraint.as_ref()).await?;
        return Ok(Held { constraint: request.constraint.clone(), judge, reader: None, syntax: None });
    };
    let Calling { constraint, judge, parser, syntax } = tools::calling(market, model, tools).await?;
    let reader = CallReader { parser, marks: model.marks().to_vec() };
    Ok(Held { constraint, judge, reader: Some(reader), syntax: Some(syntax) })
}

pub(crate) fn unknown_model(name: &str, market: &Market) -> Refusal {
    let known: Vec<String> = market.catalog().all().iter().map(|m| m.name().to_owned()).collect();
    let message = format!("the model '{}' does not exist here; there is: {}", name.escape_debug(), known.join(", "));
    Refusal::at(RefusalCode::ModelNotFound, "model", message)
}

/// A request that has been paid for and runs.
struct Job {
    hold: Hold,
    model: Arc<Model>,
    /// The prompt, then everything accepted.
    tokens: Vec<u32>,
    prompt_tokens: u32,
    max_new: u32,
    limit: Price,
    sampling: Sampling,
    seed: u64,
    stop_tokens: Vec<u32>,
    include_stop: bool,
    words: Words,
    speller: Speller,
    /// The prompt's text, where it is to be sent back.
    echo: Option<String>,
    cache_salt: [u8; 16],
    client: ClientId,
    class: ServiceClass,
    constraint: Option<Constraint>,
    judge: Option<Judge>,
    output: Output,
    /// Names calls, where there may be any.
    caller: Option<Caller>,
    attempts: Vec<Attempt>,
    began: Instant,
}

impl Job {
    /// Places the request until it ends, then settles. The last reply, unless nobody is there to read it.
    async fn run(mut self, replies: &mpsc::Sender<Reply>) -> Option<Reply> {
        let _running = self.hold.market().metrics().running();
        let accepted = Reply::Accepted { request: self.hold.request(), prompt_tokens: self.prompt_tokens };
        let mut opening = vec![accepted];
        opening.extend(spell::echo(&self.echo.take().unwrap_or_default()));
        opening.extend(spell::pieces(self.speller.first(&self.tokens).into_iter().collect()));
        let ending = match send_all(replies, opening).await {
            Ok(()) => self.attempt_all(replies).await,
            Err(ending) => ending,
        };
        let settled = self.settle().await;
        match (ending, settled) {
            (Ending::Finished(reason), Ok(usage)) => Some(Reply::Finished { reason, usage }),
            (Ending::Finished(_), Err(refusal)) | (Ending::Failed(refusal), _) => Some(Reply::Refused(refusal)),
            (Ending::Gone, _) => None,
        }
    }

    async fn attempt_all(&mut self, replies: &mpsc::Sender<Reply>) -> Ending {
        let mut losses = Vec::new();
        while losses.len() < ATTEMPTS_MAX {
            match self.attempt(replies).await {
                Outcome::Ended(ending) => return ending,
                Outcome::Lost(why) => {
                    tracing::info!(request = %self.hold.request(), accepted = self.accepted(), why, "placement lost");
                    losses.push(why);
                }
            }
        }
        let why = losses.pop().unwrap_or_default();
        Ending::Failed(Refusal::new(
            RefusalCode::MinerFailed,
            format!("{ATTEMPTS_MAX} miners failed on this request, the last with: {why}"),
        ))
    }

    /// One placement, from the board to its end.
    async fn attempt(&mut self, replies: &mpsc::Sender<Reply>) -> Outcome {
        let market = self.hold.market().clone();
        let (need, assign) = self.assignment();
        let whose = (self.hold.request(), self.client);
        let placed = tokio::select! {
            () = replies.closed() => return Outcome::Ended(Ending::Gone),
            placed = market.dispatcher().place(whose, market.next_ticket(), need, Order::Assign(assign)) => placed,
        };
        let Placed { mut running, ask, mut seat } = match placed {
            Ok(placed) => placed,
            Err(refusal) => return Outcome::Ended(Ending::Failed(refusal)),
        };
        self.attempts.push(Attempt::new(running.miner(), ask));
        loop {
            let news = tokio::select! {
                () = replies.closed() => return Outcome::Ended(Ending::Gone),
                news = tokio::time::timeout(PROGRESS_MAX, running.next()) => news,
            };
            let news = match news {
                Ok(Some(news)) => news,
                Ok(None) => return lost(seat, "the miner was lost".to_owned()),
                Err(_) => return lost(seat, "the miner made no progress".to_owned()),
            };
            let taken = news.tokens.len() as u32;
            if taken > 0 {
                seat.heard(taken);
            }
            match self.accept(news, replies).await {
                None => {}
                Some(Outcome::Lost(why)) => return lost(seat, why),
                Some(outcome) => return outcome,
            }
            running.credit(taken);
        }
    }

    /// What the board and a miner must know to go on from here.
    fn assignment(&self) -> (Need, Assign) {
        let left = self.max_new - self.accepted();
        let need = Need {
            model: self.model.computes(),
            task: Task::Generate,
            tokens: self.tokens.len() as u32,
            max_new: left,
            limit: self.limit,
            tenant: self.client.into(),
            class: self.class,
            has_begun: self.accepted() > 0,
            chain: chain(&self.model, &self.cache_salt, &self.tokens),
            not_on: None,
        };
        let (logprobs, prompt_logprobs) = self.speller.wanted();
        let assign = Assign {
            // Where, and under which name, is decided by the placement.
            replica: ReplicaId(0),
            sequence: SequenceId(0),
            credit: 0,
            blocks: 0,
            tokens: self.tokens.clone(),
            prompt_tokens: self.prompt_tokens,
            max_new: left,
            sampling: self.sampling.clone(),
            seed: self.seed,
            stop_tokens: self.stop_tokens.clone(),
            cache_salt: self.cache_salt,
            bad_words: self.words.bad.clone(),
            dry_breakers: self.words.dry_breakers.clone(),
            logprobs,
            prompt_logprobs,
            constraint: self.constraint.clone(),
            adapter: need.model.adapter,
        };
        (need, assign)
    }

    /// Takes a miner's news in and relays it. `None` while the placement goes on.
    async fn accept(&mut self, news: News, replies: &mpsc::Sender<Reply>) -> Option<Outcome> {
        let unasked =
            |_| Outcome::Lost("the miner sent log-probabilities that were not asked for, or too few".to_owned());
        let scored = match self.speller.prompt(&self.tokens, &news.prompt_logprobs) {
            Ok(scored) => scored,
            Err(error) => return Some(unasked(error)),
        };
        if let Err(ending) = send_all(replies, spell::pieces(scored)).await {
            return Some(Outcome::Ended(ending));
        }
        let mut logprobs = match self.speller.output(&news.tokens, &news.logprobs) {
            Ok(logprobs) => logprobs.into_iter(),
            Err(error) => return Some(unasked(error)),
        };
        let mut reason = None;
        // With log-probabilities a token is a reply of its own, so that any one fits a frame.
        let portion = if logprobs.len() > 0 { 1 } else { news.tokens.len().max(1) };
        for tokens in news.tokens.chunks(portion) {
            let found = logprobs.by_ref().take(tokens.len()).collect();
            reason = match self.relay(tokens, found, replies).await {
                Ok(reason) => reason,
                Err(outcome) => return Some(outcome),
            };
            // What a miner says beyond the end is nobody's.
            if reason.is_some() {
                break;
            }
        }
        match (reason, news.end) {
            (Some(reason), _) => Some(Outcome::Ended(Ending::Finished(reason))),
            (None, None) => None,
            (None, Some(End::Failed(why))) => Some(Outcome::Lost(why)),
            (None, Some(End::Embedded(_))) => Some(Outcome::Lost("the miner sent a vector for tokens".to_owned())),
            (None, Some(end)) => Some(Outcome::Lost(format!("the miner ended too early: {end:?}"))),
        }
    }

    /// Relays more tokens, up to the last one that counts. Why it is the last, if it is.
    async fn relay(
        &mut self,
        tokens: &[u32],
        logprobs: Vec<TokenLogprobs>,
        replies: &mpsc::Sender<Reply>,
    ) -> Result<Option<FinishReason>, Outcome> {
        let first = self.accepted();
        let (mut reason, mut events) = (None, Vec::new());
        // Looked at before any is taken in: what is accepted is what the developer gets.
        if tokens.iter().any(|token| *token as usize >= self.model.tokenizer().vocab_len()) {
            return Err(Outcome::Lost("the miner sent tokens that cannot be".to_owned()));
        }
        let (mut taken, mut allowed) = (Vec::with_capacity(tokens.len()), true);
        for &token in tokens {
            allowed = self.judge.as_mut().is_none_or(|judge| judge.accept(token));
            if !allowed {
                break;
            }
            self.tokens.push(token);
            taken.push(token);
            reason = self.judge(token, &mut events);
            if reason.is_some() {
                break;
            }
        }
        if !allowed && taken.is_empty() {
            return Err(not_allowed());
        }
        if first == 0 {
            self.hold.market().metrics().first_token(self.began.elapsed());
        }
        self.hold.market().metrics().tokens(taken.len());
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.tokens += taken.len() as u32;
        }
        if let Some(why) = reason {
            // Before what was held back is dropped: a call that has not ended was cut.
            let (_, is_within_call) = self.output.calls();
            events.extend(self.output.finish());
            reason = Some(match why {
                FinishReason::Stop if is_within_call => FinishReason::Length,
                FinishReason::Stop if self.output.calls().0 => FinishReason::ToolCalls,
                why => why,
            });
        }
        let deltas = tools::replies(&mut self.caller, events, first, taken, logprobs);
        send_all(replies, deltas).await.map_err(Outcome::Ended)?;
        match allowed {
            true => Ok(reason),
            false => Err(not_allowed()),
        }
    }

    /// What one more token means.
    fn judge(&mut self, token: u32, events: &mut Vec<Event>) -> Option<FinishReason> {
        if self.stop_tokens.binary_search(&token).is_ok() {
            if self.include_stop {
                events.extend(self.output.push(token).events);
            }
            return Some(FinishReason::Stop);
        }
        let shown = match self.accepted() <= self.sampling.min_tokens {
            true => self.output.push_unscanned(token),
            false => self.output.push(token),
        };
        events.extend(shown.events);
        match () {
            () if shown.stopped => Some(FinishReason::Stop),
            () if self.accepted() >= self.max_new => Some(FinishReason::Length),
            () => None,
        }
    }

    /// Tokens of output so far.
    fn accepted(&self) -> u32 {
        self.tokens.len() as u32 - self.prompt_tokens
    }

    /// Pays for what was delivered and returns the rest of the hold.
    async fn settle(&mut self) -> Result<Usage, Refusal> {
        let migrations = (self.attempts.len() as u32).saturating_sub(1);
        let mut attempts = std::mem::take(&mut self.attempts);
        attempts.retain(|a| a.tokens > 0);
        let (prompt_tokens, max_tokens) = (self.prompt_tokens, self.max_new);
        let tokens = self.accepted();
        let delivered = Delivered { prompt_tokens, tokens, max_tokens, attempts, migrations };
        self.hold.settle(&self.model, delivered).await
    }
}

/// A miner has failed, and the board hears of it.
fn lost(seat: Seat, why: String) -> Outcome {
    seat.lost();
    Outcome::Lost(why)
}

/// Names of the KV blocks of `tokens`, as miners name them.
fn chain(model: &Model, salt: &[u8; 16], tokens: &[u32]) -> Arc<[BlockName]> {
    let Computes { weights, adapter } = model.computes();
    let root = BlockHash::root(&weights.0, adapter.as_ref().map(|adapter| &adapter.0), salt);
    BlockHash::chain(root, tokens, BLOCK_TOKENS).map(BlockHash::short).collect()
}

fn not_allowed() -> Outcome {
    Outcome::Lost("the miner sent a token that the constraint does not allow".to_owned())
}

/// Sends replies in order, unless the developer has gone.
pub(crate) async fn send_all(replies: &mpsc::Sender<Reply>, all: Vec<Reply>) -> Result<(), Ending> {
    for reply in all {
        replies.send(reply).await.map_err(|_| Ending::Gone)?;
    }
    Ok(())
}
