//! One request, from its prompt to its settlement: a function, shared by both doors.
//!
//! ```text
//! check ▶ whose key ▶ constraint ▶ template, tokens ▶ fits? ▶ hold ▶ Accepted ▶ place ▶ tokens ▶ text, stops ▶ settle ▶ Finished
//!                                                          ▲          │ miner lost: prompt + accepted tokens
//!                                                          └──────────┘
//! ```
//!
//! The developer may go at any point: what was delivered is settled, the rest of the hold returns. Nothing that a miner
//! claims is taken for granted: tokens are counted, held against the constraint, stops are recognized and limits are kept here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cuckoo_wire::message::{
    Assign, Constraint, End, FinishReason, Generate, Price, Refusal, RefusalCode, ReplicaId, Reply, RequestId,
    Sampling, SequenceId, Usage,
};
use tokio::sync::mpsc;

use crate::catalog::Model;
use crate::constraint::{self, Judge};
use crate::dispatcher::{Need, Placed};
use crate::gateway::miner::News;
use crate::ledger::{Attempt, Settlement};
use crate::market::Market;
use crate::prompt;
use crate::text::Output;

/// Placements of one request before it is given up.
const ATTEMPTS_MAX: usize = 4;
/// A miner that says nothing about a sequence for so long has lost it.
const PROGRESS_MAX: Duration = Duration::from_secs(120);

/// How a request ends.
enum Ending {
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
        prompt::check_bias(&model, &request.sampling)?;
        let judge = constraint::judge(self, &model, request.constraint.as_ref()).await?;
        let tokens = prompt::tokens(self, &model, &request.prompt).await?;
        let prompt_tokens = tokens.len() as u32;
        let max_new = prompt::room(&model, prompt_tokens, request.max_tokens)?;
        let limit = match request.max_price {
            Some(price) => price,
            None => self.going_price(model.weights()).await,
        };
        let id = RequestId::random();
        self.ledger().hold(id, &client, limit.ceiling(prompt_tokens, max_new)).await?;
        Ok(Job {
            hold: Hold { market: self.clone(), request: id, open: true },
            output: Output::new(model.tokenizer().decoder(), request.stop),
            seed: request.sampling.seed.unwrap_or_else(rand::random),
            stop_tokens: if request.ignore_eos { Vec::new() } else { model.stop_tokens() },
            cache_salt: client.cache_salt(),
            sampling: request.sampling,
            constraint: request.constraint,
            judge,
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

fn unknown_model(name: &str, market: &Market) -> Refusal {
    let known: Vec<String> = market.catalog().all().iter().map(|m| m.name().to_owned()).collect();
    Refusal {
        code: RefusalCode::ModelNotFound,
        message: format!("the model '{}' does not exist here; there is: {}", name.escape_debug(), known.join(", ")),
        param: Some("model".to_owned()),
    }
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
    cache_salt: [u8; 16],
    constraint: Option<Constraint>,
    judge: Option<Judge>,
    output: Output,
    attempts: Vec<Attempt>,
    began: Instant,
}

impl Job {
    /// Places the request until it ends, then settles. The last reply, unless nobody is there to read it.
    async fn run(mut self, replies: &mpsc::Sender<Reply>) -> Option<Reply> {
        let _running = self.hold.market.metrics().running();
        let accepted = Reply::Accepted { request: self.hold.request, prompt_tokens: self.prompt_tokens };
        let ending = match replies.send(accepted).await {
            Ok(()) => self.attempt_all(replies).await,
            Err(_) => Ending::Gone,
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
                    tracing::info!(request = %self.hold.request, accepted = self.accepted(), why, "placement lost");
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
        let market = self.hold.market.clone();
        let (need, assign) = self.assignment();
        let placed = tokio::select! {
            () = replies.closed() => return Outcome::Ended(Ending::Gone),
            placed = market.dispatcher().place(market.next_ticket(), need, assign) => placed,
        };
        let Placed { mut running, ask } = match placed {
            Ok(placed) => placed,
            Err(refusal) => return Outcome::Ended(Ending::Failed(refusal)),
        };
        self.attempts.push(Attempt { miner: running.miner(), ask, tokens: 0 });
        loop {
            let news = tokio::select! {
                () = replies.closed() => return Outcome::Ended(Ending::Gone),
                news = tokio::time::timeout(PROGRESS_MAX, running.next()) => news,
            };
            let News { tokens, end } = match news {
                Ok(Some(news)) => news,
                Ok(None) => return Outcome::Lost("the miner was lost".to_owned()),
                Err(_) => return Outcome::Lost("the miner made no progress".to_owned()),
            };
            let taken = tokens.len() as u32;
            if let Some(outcome) = self.accept(tokens, end, replies).await {
                return outcome;
            }
            running.credit(taken);
        }
    }

    /// What the board and a miner must know to go on from here.
    fn assignment(&self) -> (Need, Assign) {
        let left = self.max_new - self.accepted();
        let need =
            Need { weights: self.model.weights(), tokens: self.tokens.len() as u32, max_new: left, limit: self.limit };
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
            constraint: self.constraint.clone(),
        };
        (need, assign)
    }

    /// Takes a miner's news in and relays it. `None` while the placement goes on.
    async fn accept(&mut self, tokens: Vec<u32>, end: Option<End>, replies: &mpsc::Sender<Reply>) -> Option<Outcome> {
        let first = self.accepted();
        let mut reason = None;
        let mut text = String::new();
        let mut taken = Vec::with_capacity(tokens.len());
        for token in tokens {
            let allowed = self.judge.as_mut().is_none_or(|judge| judge.accept(token));
            if !allowed {
                return Some(Outcome::Lost("the miner sent a token that the constraint does not allow".to_owned()));
            }
            if reason.is_some() || token as usize >= self.model.tokenizer().vocab_len() {
                return Some(Outcome::Lost("the miner sent tokens that cannot be".to_owned()));
            }
            self.tokens.push(token);
            taken.push(token);
            reason = self.judge(token, &mut text);
        }
        if !taken.is_empty() {
            if first == 0 {
                self.hold.market.metrics().first_token(self.began.elapsed());
            }
            self.hold.market.metrics().tokens(taken.len());
            if let Some(attempt) = self.attempts.last_mut() {
                attempt.tokens += taken.len() as u32;
            }
            if reason.is_some() {
                text.push_str(&self.output.finish());
            }
            if replies.send(Reply::Delta { first, tokens: taken, text }).await.is_err() {
                return Some(Outcome::Ended(Ending::Gone));
            }
        }
        match (reason, end) {
            (Some(reason), _) => Some(Outcome::Ended(Ending::Finished(reason))),
            (None, None) => None,
            (None, Some(End::Failed(why))) => Some(Outcome::Lost(why)),
            (None, Some(end)) => Some(Outcome::Lost(format!("the miner ended too early: {end:?}"))),
        }
    }

    /// What one more token means.
    fn judge(&mut self, token: u32, text: &mut String) -> Option<FinishReason> {
        if self.stop_tokens.binary_search(&token).is_ok() {
            return Some(FinishReason::Stop);
        }
        let scanned = self.output.push(token);
        text.push_str(&scanned.text);
        match () {
            () if scanned.stopped => Some(FinishReason::Stop),
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
        let market = self.hold.market.clone();
        let migrations = (self.attempts.len() as u32).saturating_sub(1);
        self.attempts.retain(|a| a.tokens > 0);
        self.hold.open = false;
        if self.attempts.is_empty() {
            market.ledger().release(self.hold.request).await?;
            return Ok(Usage::default());
        }
        let settled = market
            .ledger()
            .settle(Settlement {
                request: self.hold.request,
                prompt_tokens: self.prompt_tokens,
                delivered_tokens: self.accepted(),
                max_tokens: self.max_new,
                attempts: std::mem::take(&mut self.attempts),
                author: self.model.author(),
                royalty_bps: self.model.royalty_bps(),
            })
            .await?;
        let usage = Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.accepted(),
            cost: settled.cost,
            miner: settled.miner,
            author: settled.author,
            network: settled.network,
            migrations,
        };
        market.metrics().settled(&usage);
        Ok(usage)
    }
}

/// Money held for a request; returned if the request is dropped before it settles.
struct Hold {
    market: Market,
    request: RequestId,
    open: bool,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.open {
            self.market.ledger().release_later(self.request);
        }
    }
}
