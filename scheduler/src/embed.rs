//! One request for vectors of texts, from its texts to its settlement: a function, shared by both doors.
//!
//! ```text
//! check ▶ whose key ▶ tokens of each text ▶ fit? ▶ hold ▶ Accepted
//!   ▶ place each text ▶ its vector ▶ relay in order ▶ settle ▶ Finished
//!       ▲       │ miner lost
//!       └───────┘
//! ```
//!
//! Each text is a placement of its own, so that windows decide who computes it and any miner's step holds texts of many
//! requests. Input tokens are all that is paid for: those of each text to whoever made its vector.

use std::sync::Arc;

use cuckoo_wire::PeerId;
use cuckoo_wire::limits::EMBED_VALUES_MAX;
use cuckoo_wire::message::{
    Embed, EmbedInput, Encode, End, FinishReason, Price, Refusal, RefusalCode, ReplicaId, Reply, RequestId, SequenceId,
    ServiceClass, Task,
};
use futures_util::{StreamExt, stream};

use crate::catalog::Model;
use crate::dispatcher::{Need, Order, Placed, Whom};
use crate::gateway::miner::{Heard, News, Running};
use crate::hold::{Delivered, Hold};
use crate::ledger::{Attempt, ClientId};
use crate::market::Market;
use crate::serve::{ATTEMPTS_MAX, Ending, PROGRESS_MAX, replies, send_all, unknown_model};

/// Texts of one request that wait or run at a time: enough to fill steps, and no more than leaves room for others.
const TEXTS_IN_FLIGHT_MAX: usize = 64;
/// How far a vector's squared length may be from 1.
const LENGTH_NOISE: f64 = 1e-3;

impl Market {
    /// Runs one request to its end. Replies go out in order: `Accepted`, `Embedding`…, `Finished`; or `Refused` at any point.
    /// Dropping the receiver cancels the request.
    pub(crate) async fn embed(&self, request: Embed, replies: replies::Sender) {
        let last = match self.embedding(request).await {
            Ok(job) => job.run(&replies).await,
            Err(refusal) => Some(Reply::Refused(refusal)),
        };
        self.conclude(last, &replies).await;
    }

    /// Everything up to the hold.
    async fn embedding(&self, request: Embed) -> Result<Embedding, Refusal> {
        request.check()?;
        let client = self.client_of(&request.api_key).await?;
        let model = self.catalog().find(&request.model).ok_or_else(|| unknown_model(&request.model, self))?;
        let dims = check_dimensions(&model, &request)?;
        let texts = tokens(self, &model, request.inputs).await?;
        let limit = self.price_limit(request.max_price, model.computes()).await;
        let total: u32 = texts.iter().map(|text| text.len() as u32).sum();
        // Vectors are not kept, so nobody could go on.
        let hold = Hold::open(self, &client, limit, (total, 0), Vec::new()).await?;
        let texts = texts.into_iter().enumerate().collect();
        let work = Arc::new(Work { market: self.clone(), model, dims, limit, request: hold.request(), client });
        Ok(Embedding { hold, work, texts, total, attempts: Vec::new(), migrations: 0 })
    }
}

/// The width of the model's vectors, where that is what was asked for and all of them together are not too much.
fn check_dimensions(model: &Model, request: &Embed) -> Result<usize, Refusal> {
    let name = model.name();
    let Some(dims) = model.embedding_dims() else {
        let why = format!("the model '{name}' generates text and makes no vectors: use chat or text completions");
        return Err(Refusal::invalid("model", why));
    };
    if let Some(asked) = request.dimensions.filter(|asked| *asked != dims) {
        let why =
            format!("dimensions is {asked}: the model '{name}' makes vectors of {dims}, which cannot be shortened");
        return Err(Refusal::invalid("dimensions", why));
    }
    let (texts, dims) = (request.inputs.len(), dims as usize);
    match texts * dims > EMBED_VALUES_MAX {
        true => Err(Refusal::invalid(
            "input",
            format!(
                "input has {texts} texts of {dims} numbers each: at most {} are accepted at once",
                EMBED_VALUES_MAX / dims
            ),
        )),
        false => Ok(dims),
    }
}

/// Tokenizes all texts, off the threads that do I/O. Nothing is ever cut: a text that does not fit is refused.
async fn tokens(market: &Market, model: &Arc<Model>, inputs: Vec<EmbedInput>) -> Result<Vec<Vec<u32>>, Refusal> {
    let internal =
        |why: String| Refusal::new(RefusalCode::Internal, format!("the texts could not be tokenized: {why}"));
    let _turn = market.tokenizing().acquire().await.map_err(|_| internal("no turn to tokenize".to_owned()))?;
    let model = model.clone();
    let all = move || {
        let of = |(i, input)| text_tokens(&model, &format!("input[{i}]"), input);
        inputs.into_iter().enumerate().map(of).collect()
    };
    tokio::task::spawn_blocking(all).await.map_err(|e| internal(e.to_string()))?
}

fn text_tokens(model: &Model, path: &str, input: EmbedInput) -> Result<Vec<u32>, Refusal> {
    let tokens = match input {
        EmbedInput::Tokens(tokens) => tokens,
        EmbedInput::Text(text) => model.text_tokens(&text).map_err(|why| Refusal::invalid(path, why))?,
    };
    let (got, context, vocab) = (tokens.len(), model.context_tokens(), model.tokenizer().vocab_len());
    if got > context as usize {
        return Err(Refusal::at(
            RefusalCode::ContextLengthExceeded,
            path,
            format!(
                "{path} has {got} tokens and this model takes at most {context}: shorten the text, or cut it in parts"
            ),
        ));
    }
    match tokens.iter().find(|token| **token as usize >= vocab) {
        Some(token) => {
            Err(Refusal::invalid(path, format!("token {token} does not exist: the model has {vocab} tokens")))
        }
        None if tokens.is_empty() => Err(Refusal::invalid(path, format!("{path} has no tokens: leave it out"))),
        None => Ok(tokens),
    }
}

/// A request that has been paid for and runs.
struct Embedding {
    hold: Hold,
    work: Arc<Work>,
    texts: Vec<(usize, Vec<u32>)>,
    /// Tokens of all texts.
    total: u32,
    /// What was relayed, by who made it.
    attempts: Vec<Attempt>,
    migrations: u32,
}

/// What all texts share.
struct Work {
    market: Market,
    model: Arc<Model>,
    dims: usize,
    limit: Price,
    request: RequestId,
    client: ClientId,
}

/// A text's vector, and what it cost to get it.
struct Made {
    index: usize,
    vector: Vec<f32>,
    tokens: u32,
    miner: PeerId,
    ask: Price,
    losses: u32,
}

impl Embedding {
    /// Has all vectors made and settles. The last reply, unless nobody is there to read it.
    async fn run(mut self, replies: &replies::Sender) -> Option<Reply> {
        let _running = self.work.market.metrics().running();
        let accepted = Reply::Accepted { request: self.hold.request(), prompt_tokens: self.total };
        let ending = match send_all(replies, [accepted]).await {
            Ok(()) => self.relay_all(replies).await,
            Err(ending) => ending,
        };
        let attempts = std::mem::take(&mut self.attempts);
        let delivered = Delivered { attempts, migrations: self.migrations, ..Delivered::nothing(&self.work.model) };
        let settled = self.hold.settle(delivered, ending.noted(self.migrations)).await;
        match (ending, settled) {
            (Ending::Finished(reason), Ok(usage)) => Some(Reply::Finished { reason, usage }),
            (Ending::Finished(_), Err(refusal)) | (Ending::Failed(refusal), _) => Some(Reply::Refused(refusal)),
            (Ending::Gone, _) => None,
        }
    }

    /// Relays vectors in the order of their texts; only the next [`TEXTS_IN_FLIGHT_MAX`] are under way.
    async fn relay_all(&mut self, replies: &replies::Sender) -> Ending {
        let work = self.work.clone();
        let texts = std::mem::take(&mut self.texts);
        let under_way = stream::iter(texts).map(|(index, tokens)| work.make(index, tokens));
        let mut made = std::pin::pin!(under_way.buffered(TEXTS_IN_FLIGHT_MAX));
        loop {
            let next = tokio::select! {
                () = replies.closed() => return Ending::Gone,
                next = made.next() => next,
            };
            let made = match next {
                Some(Ok(made)) => made,
                Some(Err(refusal)) => return Ending::Failed(refusal),
                None => return Ending::Finished(FinishReason::Stop),
            };
            let reply = Reply::Embedding { index: made.index as u32, vector: made.vector };
            if let Err(ending) = send_all(replies, [reply]).await {
                return ending;
            }
            self.migrations += made.losses;
            self.pay(made.miner, made.ask, made.tokens);
        }
    }

    /// Counts the tokens of a text to who made its vector.
    fn pay(&mut self, miner: PeerId, ask: Price, tokens: u32) {
        match self.attempts.iter_mut().find(|a| a.miner == miner && a.ask == ask) {
            Some(attempt) => attempt.own_prompt_tokens += tokens,
            None => self.attempts.push(Attempt { own_prompt_tokens: tokens, ..Attempt::new(miner, ask) }),
        }
    }
}

impl Work {
    /// Places a text until somebody has made its vector.
    async fn make(&self, index: usize, tokens: Vec<u32>) -> Result<Made, Refusal> {
        let mut why = String::new();
        for losses in 0..ATTEMPTS_MAX as u32 {
            let placed = self.place(&tokens, Whom::Any, losses > 0).await?;
            let answer = tokio::time::timeout(PROGRESS_MAX, self.hedged(&tokens, placed)).await;
            let made = match answer {
                Ok(Some((news, miner, ask))) => self.vector(news).map(|vector| (vector, miner, ask)),
                Ok(None) => Err("the miner was lost".to_owned()),
                Err(_) => Err("the miner made no progress".to_owned()),
            };
            match made {
                Ok((vector, miner, ask)) => {
                    return Ok(Made { index, vector, tokens: tokens.len() as u32, miner, ask, losses });
                }
                Err(lost) => {
                    tracing::info!(index, why = lost, "placement of a text lost");
                    why = lost;
                }
            }
        }
        Err(Refusal::new(
            RefusalCode::MinerFailed,
            format!("{ATTEMPTS_MAX} miners failed on input[{index}], the last with: {why}"),
        ))
    }

    /// Waits until the text is on some miner.
    async fn place(&self, tokens: &[u32], whom: Whom, has_begun: bool) -> Result<Placed, Refusal> {
        let need = Need {
            model: self.model.computes(),
            task: Task::Embed,
            tokens: tokens.len() as u32,
            max_new: 0,
            limit: self.limit,
            tenant: self.client.into(),
            class: ServiceClass::Standard,
            has_begun,
            chain: Arc::new([]),
            whom,
            // Each vector is made by one miner as a whole.
            numerics: None,
        };
        // Where, and under which name, is decided by the placement.
        let encode = Encode { replica: ReplicaId(0), sequence: SequenceId(0), tokens: tokens.to_vec(), blocks: 0 };
        let (whose, ticket) = ((self.request, self.client), self.market.next_ticket());
        self.market.dispatcher().place(whose, ticket, need, Order::Encode(encode)).await
    }

    /// Waits for news of a text, from whoever has them first: where a miner should have spoken by now, another is asked too.
    /// `None` if all who were asked are lost.
    async fn hedged(&self, tokens: &[u32], placed: Placed) -> Option<(News, PeerId, Price)> {
        let Placed { mut running, ask, .. } = placed;
        let first = loop {
            match running.heard().await {
                Heard::News => return Some((std::mem::take(running.news()), running.miner(), ask)),
                Heard::Lost => return None,
                Heard::Standing if running.standing().is_suspect => break running.key(),
                Heard::Standing => {}
            }
        };
        let mut second = std::pin::pin!(async {
            let Placed { mut running, ask, .. } = self.place(tokens, Whom::Not(first), true).await.ok()?;
            news(&mut running).await.map(|news| (news, running.miner(), ask))
        });
        let (miner, mut is_there) = (running.miner(), true);
        tokio::select! {
            found = news(&mut running) => match found {
                Some(news) => return Some((news, miner, ask)),
                None => is_there = false,
            },
            found = &mut second => if found.is_some() { return found },
        }
        // One of them is out of the question.
        match is_there {
            true => news(&mut running).await.map(|news| (news, miner, ask)),
            false => second.await,
        }
    }

    /// The vector in a miner's answer, as far as it can be checked without computing it again.
    fn vector(&self, news: News) -> Result<Vec<f32>, String> {
        let vector = match news.end {
            Some(End::Embedded(vector)) => vector,
            Some(End::Failed(why)) => return Err(why),
            _ => return Err("the miner answered something else than a vector".to_owned()),
        };
        if vector.len() != self.dims {
            return Err(format!("the miner sent a vector of {} numbers for {}", vector.len(), self.dims));
        }
        let square: f64 = vector.iter().map(|v| f64::from(*v).powi(2)).sum();
        // Written so that NaN fails.
        match (square - 1.0).abs() < LENGTH_NOISE {
            true => Ok(vector),
            false => Err("the miner sent a vector whose length is not 1".to_owned()),
        }
    }
}

/// The next news of a text; `None` if the miner is lost.
async fn news(running: &mut Running) -> Option<News> {
    loop {
        match running.heard().await {
            Heard::News => return Some(std::mem::take(running.news())),
            Heard::Standing => {}
            Heard::Lost => return None,
        }
    }
}
