//! One request, from its prompt to its settlement: a function, shared by both doors.
//!
//! ```text
//! check ▶ whose key ▶ constraint ▶ template, tokens ▶ fits? ▶ hold, spec ▶ Accepted
//!   ▶ place ▶ tokens ▶ text, stops ▶ journal ▶ Delta ▶ settle ▶ Finished
//!       ▲         │ miner lost, suspect or leaving: prompt + accepted tokens
//!       └─────────┘
//! ```
//!
//! The developer may go at any point: nobody works for it any more, and it may come back for [`RETURN_MAX`], here or
//! elsewhere ([`resume`]); then what was accepted is settled, and the rest of the hold returns. Nothing that a miner claims
//! is taken for granted: tokens are counted and held against the constraint, stops are recognized and limits are kept here.

mod handover;
mod lines;
mod relay;
pub(crate) mod replies;
mod resume;
mod spec;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cuckoo_models::Syntax;
use cuckoo_models::tools::Event;
use cuckoo_wire::message::{
    Assign, Constraint, FinishReason, Generate, Numerics, Price, Refusal, RefusalCode, ReplicaId, Reply, Sampling,
    SequenceId, ServiceClass, Task, Usage,
};
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;

use crate::catalog::Model;
use crate::constraint::{self, Judge};
use crate::dispatcher::{Need, Whom};
use crate::hold::{Delivered, Hold};
use crate::journal::{self, Maker};
use crate::ledger::{Attempt, ClientId};
use crate::market::Market;
use crate::prompt;
use crate::spell::{self, Speller};
use crate::text::{CallReader, Output};
use crate::tools::{self, Caller, Calling};
use crate::words::{self, Words};
use spec::Spec;

pub(crate) use replies::Replies;
pub(crate) use resume::Resume;
pub(crate) use spec::delivered;

/// Placements of one request in a row that may fail without a token more, before it is given up.
pub(crate) const ATTEMPTS_MAX: usize = 4;
/// A miner that says nothing about a sequence for so long has lost it.
pub(crate) const PROGRESS_MAX: Duration = Duration::from_secs(120);

/// A developer whose connection broke may come back for so long.
pub(crate) const RETURN_MAX: Duration = Duration::from_secs(30);
/// Bytes of a failure's message that are written down.
const NOTED_BYTES_MAX: usize = 1_024;

/// Who hears the replies to a request. Dropping the receiver stops all work on it.
pub(crate) struct Listener {
    pub(crate) replies: replies::Sender,
    /// Cancelled, before the receiver is dropped, by who does not come back.
    pub(crate) farewell: CancellationToken,
}

/// How a request ends.
#[derive(Debug)]
pub(crate) enum Ending {
    /// As it should.
    Finished(FinishReason),
    /// The developer went away.
    Gone,
    /// Nobody could go on.
    Failed(Refusal),
}

/// What became of one placement.
#[derive(Debug)]
enum Outcome {
    /// The request has ended.
    Ended(Ending),
    /// Somebody else must go on.
    Lost(String),
}

impl Market {
    /// Runs one request to its end. Replies go out in order: `Accepted`, `Delta`…, `Finished`; or `Refused` at any
    /// point.
    pub(crate) async fn serve(&self, request: Generate, listener: Listener) {
        // Apart, like the job: what begins a request needs much room, and is done with before the first token.
        let last = match Box::pin(self.job(request)).await {
            Ok((job, opening)) => Box::new(job).run(opening, None, &listener).await,
            Err(refusal) => Some(Reply::Refused(refusal)),
        };
        self.conclude(last, &listener.replies).await;
    }

    /// Counts a request that has ended, and says the last thing to whoever is still there.
    pub(crate) async fn conclude(&self, last: Option<Reply>, replies: &replies::Sender) {
        if let Some(Reply::Refused(refusal)) = &last {
            tracing::debug!(code = ?refusal.code, refusal.message, "request refused");
        }
        self.metrics().ended(last.as_ref());
        if let Some(last) = last {
            let _ = replies.send(Box::new(last)).await;
        }
    }

    /// Everything up to the hold: nothing is owed before it, and nothing runs without it. With the first replies.
    async fn job(&self, request: Generate) -> Result<(Job, Vec<Reply>), Refusal> {
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
        let echo = if request.echo { prompt::text(&model, &request.prompt, &tokens) } else { String::new() };
        let seed = request.sampling.seed.unwrap_or_else(rand::random);
        let plan = Plan { request, client, model, tokens, max_new, limit, seed, began };
        let spec = Spec::bytes_of(&plan);
        let may_return = !spec.is_empty();
        let hold = Hold::open(self, &client, limit, (prompt_tokens, max_new), spec).await?;
        let mut opening = vec![Reply::Accepted { request: hold.request(), prompt_tokens }];
        opening.extend(spell::echo(&echo));
        opening.extend(spell::pieces(speller.first(&plan.tokens).into_iter().collect()));
        Ok((Job::new(plan, held, words, speller, (hold, may_return)), opening))
    }
}

/// A request in range, before anything is held for it.
struct Plan {
    request: Generate,
    client: ClientId,
    model: Arc<Model>,
    /// The prompt.
    tokens: Vec<u32>,
    max_new: u32,
    limit: Price,
    seed: u64,
    began: Instant,
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
    cache_salt: [u8; 16],
    client: ClientId,
    class: ServiceClass,
    constraint: Option<Constraint>,
    judge: Option<Box<Judge>>,
    output: Output,
    /// What tokens that are being taken in show, and what is to be said of them: empty between any two.
    shown: Vec<Event>,
    said: Vec<Reply>,
    /// Names calls, where there may be any.
    caller: Option<Caller>,
    attempts: Vec<Attempt>,
    /// Of these, those that are known from the journal alone.
    made_before: usize,
    /// How each of the attempts computes; `None` where the journal does not say.
    computed: Vec<Option<Numerics>>,
    /// How what the developer has was computed: whoever goes on with it computes so too. `None` while it has nothing.
    numerics: Option<Numerics>,
    /// Tokens that the developer has. They may be more than the journal does, which a loss of power can cost its last moment:
    /// those are made once more and not sent.
    known: u32,
    /// Whom the journal has as the maker of what comes now.
    maker: Option<Maker>,
    /// How often somebody else went on with it.
    moves: u32,
    began: Instant,
    /// Whether its developer may come back: the journal has what that takes.
    may_return: bool,
}

impl Job {
    fn new(plan: Plan, held: Held, words: Words, speller: Speller, (hold, may_return): (Hold, bool)) -> Self {
        let Plan { request, client, model, tokens, max_new, limit, seed, began } = plan;
        Self {
            caller: held.syntax.map(|syntax| Caller::new(syntax, hold.request())),
            hold,
            output: Output::new(model.tokenizer().decoder(), request.stop, request.include_stop, held.reader),
            shown: Vec::new(),
            said: Vec::new(),
            seed,
            stop_tokens: model.stop_tokens(&request.stop_token_ids, request.ignore_eos),
            include_stop: request.include_stop,
            words,
            speller,
            cache_salt: client.cache_salt(),
            client,
            class: request.class,
            sampling: request.sampling,
            constraint: held.constraint,
            judge: held.judge.map(Box::new),
            attempts: Vec::new(),
            computed: Vec::new(),
            numerics: None,
            made_before: 0,
            known: 0,
            maker: None,
            moves: 0,
            model,
            prompt_tokens: tokens.len() as u32,
            tokens,
            max_new,
            limit,
            began,
            may_return,
        }
    }

    /// Says what there is to say at first, places the request until it ends (unless it `has_finished`), then settles. The
    /// last reply, unless nobody is there to read it.
    async fn run(
        mut self: Box<Self>,
        opening: Vec<Reply>,
        has_finished: Option<FinishReason>,
        listener: &Listener,
    ) -> Option<Reply> {
        let running = self.hold.market().metrics().running();
        let ending = match (send_all(&listener.replies, opening).await, has_finished) {
            (Err(ending), _) => ending,
            (Ok(()), Some(reason)) => Ending::Finished(reason),
            (Ok(()), None) => self.carry(&listener.replies).await,
        };
        let running = match ending {
            Ending::Gone if self.may_return && !listener.farewell.is_cancelled() => {
                drop(running);
                // Whoever comes back has it from the journal, here or elsewhere; what is written here then is refused.
                tokio::time::sleep(RETURN_MAX).await;
                None
            }
            _ => Some(running),
        };
        let settled = self.settle(ending.noted(self.moves)).await;
        drop(running);
        match (ending, settled) {
            (Ending::Finished(reason), Ok(usage)) => Some(Reply::Finished { reason, usage }),
            (Ending::Finished(_), Err(refusal)) | (Ending::Failed(refusal), _) => Some(Reply::Refused(refusal)),
            (Ending::Gone, _) => None,
        }
    }

    /// What the board and a miner must know to go on from here.
    fn assignment(&self, whom: Whom) -> (Need, Assign) {
        let left = self.max_new - self.accepted();
        let need = Need {
            model: self.model.computes(),
            task: Task::Generate,
            tokens: self.tokens.len() as u32,
            max_new: left,
            limit: self.limit,
            tenant: self.client.into(),
            class: self.class,
            has_begun: !self.attempts.is_empty(),
            chain: Need::chain_of(&self.model.computes(), &self.cache_salt, &self.tokens),
            whom,
            numerics: self.numerics,
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

    /// Tokens of output so far.
    fn accepted(&self) -> u32 {
        self.tokens.len() as u32 - self.prompt_tokens
    }

    /// Pays for what was delivered and returns the rest of the hold.
    async fn settle(&mut self, ending: journal::Ending) -> Result<Usage, Refusal> {
        let mut attempts = std::mem::take(&mut self.attempts);
        attempts.retain(|a| a.tokens > 0);
        let delivered = Delivered {
            prompt_tokens: self.prompt_tokens,
            tokens: self.accepted(),
            max_tokens: self.max_new,
            attempts,
            royalties: self.model.royalties(),
            migrations: self.moves,
        };
        self.hold.settle(delivered, ending).await
    }
}

impl Ending {
    /// As it is written down, of a request that moved so often.
    pub(crate) fn noted(&self, migrations: u32) -> journal::Ending {
        match self {
            Self::Finished(reason) => journal::Ending::Finished { reason: *reason, migrations },
            Self::Gone => journal::Ending::Gone,
            Self::Failed(refusal) => {
                let mut refusal = refusal.clone();
                // It may be a miner's word.
                refusal.message.truncate(refusal.message.floor_char_boundary(NOTED_BYTES_MAX));
                journal::Ending::Failed(refusal)
            }
        }
    }
}

/// Sends replies in order, unless the developer has gone.
pub(crate) async fn send_all(replies: &replies::Sender, all: impl IntoIterator<Item = Reply>) -> Result<(), Ending> {
    for reply in all {
        match replies.try_send(Box::new(reply)) {
            Ok(()) => {}
            Err(TrySendError::Full(reply)) => replies.send(reply).await.map_err(|_| Ending::Gone)?,
            Err(TrySendError::Closed(_)) => return Err(Ending::Gone),
        }
    }
    Ok(())
}
