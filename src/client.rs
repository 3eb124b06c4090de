//! A developer's side of a connection: one stream a call. Knows nothing of miners and money but what replies say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cuckoo_wire::limits::{CALL_FRAME_BYTES_MAX, REPLY_FRAME_BYTES_MAX};
use cuckoo_wire::message::{
    ApiKey, Call, CallDelta, ChatMessage, Constraint, Embed, Explanation, FinishReason, Generate, ModelInfo, Prompt,
    Refusal, RefusalCode, Reply, RequestId, Sampling, TokenLogprobs, Tools, Usage, Wallet,
};
use cuckoo_wire::{Address, Close, FrameError, FrameReader, FrameWriter, Identity, QuicError, Role, connect};
use tokio::sync::Mutex;

/// A scheduler, or several that share one market. Cheap to clone; calls run side by side. A connection that breaks is made
/// anew, and what runs goes on.
#[derive(Clone, Debug)]
pub struct Client(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    addresses: Vec<Address>,
    identity: Identity,
    connection: Mutex<quinn::Connection>,
}

/// A running request is gone on with for so long after its connection broke; its scheduler keeps it as long.
const COME_BACK_MAX: Duration = Duration::from_secs(30);
/// Between attempts.
const COME_BACK_PAUSE: Duration = Duration::from_millis(200);

/// A request for tokens, as the protocol carries it. Start from [`Request::chat`] or [`Request::completion`] and set
/// what differs.
#[derive(Clone, Debug)]
pub struct Request(pub Generate);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] QuicError),
    /// The scheduler said no, and why.
    #[error("{0}")]
    Refused(Refusal),
    /// The connection broke, or the other end speaks another protocol.
    #[error("the connection to the scheduler broke: {0}")]
    Broken(String),
}

/// More output.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Index of the first token in the output.
    pub first: u32,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// What they add to the text: whole characters, possibly none.
    pub text: String,
    /// One for each token, where the request asked for them.
    pub logprobs: Vec<TokenLogprobs>,
    /// Calls of tools, after the text.
    pub calls: Vec<CallDelta>,
}

/// A running request. Dropping it cancels it. If its connection breaks, or its scheduler dies, it goes on where it was, at
/// any of the client's schedulers: nothing is lost, and nothing comes or is paid twice.
#[derive(Debug)]
pub struct Generation {
    client: Client,
    api_key: ApiKey,
    request: RequestId,
    prompt_tokens: u32,
    replies: Replies,
    prompt: PromptEcho,
    /// Tokens that have come.
    tokens: u32,
    resumed: u32,
    finished: Option<(FinishReason, Usage)>,
}

/// The answer to one call.
#[derive(Debug)]
struct Replies {
    frames: FrameReader<quinn::RecvStream>,
    connection: quinn::Connection,
}

/// Vectors of texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    /// The request's id, for support and logs.
    pub request: RequestId,
    /// One for each text, in their order; each has length 1.
    pub vectors: Vec<Vec<f32>>,
    /// What was used and paid.
    pub usage: Usage,
}

/// What came back of the prompt; all of it is there before the first [`Delta`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptEcho {
    /// Its text, where the request asked for it.
    pub text: String,
    /// One for each of its tokens, where the request asked for them. The first has no logarithm: nothing came before it.
    pub logprobs: Vec<TokenLogprobs>,
}

impl Request {
    /// One question to a chat model.
    pub fn chat(api_key: impl Into<String>, model: impl Into<String>, question: impl Into<String>) -> Self {
        Self::new(api_key, model, Prompt::Chat(vec![ChatMessage::new("user", question)]))
    }

    /// A text to be continued.
    pub fn completion(api_key: impl Into<String>, model: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(api_key, model, Prompt::Text(text.into()))
    }

    /// Any prompt, with defaults for everything else.
    pub fn new(api_key: impl Into<String>, model: impl Into<String>, prompt: Prompt) -> Self {
        Self(Generate::new(ApiKey(api_key.into()), model.into(), prompt))
    }

    /// At most so many tokens.
    pub fn max_tokens(mut self, tokens: u32) -> Self {
        self.0.max_tokens = Some(tokens);
        self
    }

    /// What the output must look like.
    pub fn constraint(mut self, constraint: Constraint) -> Self {
        self.0.constraint = Some(constraint);
        self
    }

    /// What the model may call; its calls are in [`Delta::calls`].
    pub fn tools(mut self, tools: Tools) -> Self {
        self.0.tools = Some(tools);
        self
    }

    /// Log-probabilities of the output's tokens, each with those of so many most probable ones.
    pub fn logprobs(mut self, top: u8) -> Self {
        self.0.logprobs = Some(top);
        self
    }

    /// The same of the prompt's tokens; see [`Generation::prompt`].
    pub fn prompt_logprobs(mut self, top: u8) -> Self {
        self.0.prompt_logprobs = Some(top);
        self
    }

    /// How tokens are drawn.
    pub fn sampling(mut self, sampling: Sampling) -> Self {
        self.0.sampling = sampling;
        self
    }
}

impl Client {
    /// Connects to the scheduler at `address`, and to no other: its key is part of the address.
    pub async fn connect(address: &Address, identity: &Identity) -> Result<Self, ClientError> {
        Self::connect_any(std::slice::from_ref(address), identity).await
    }

    /// Connects to the first of `addresses` that answers, and to another one whenever that is gone. They are to be of
    /// schedulers that share a store: what one has begun, another one goes on with.
    pub async fn connect_any(addresses: &[Address], identity: &Identity) -> Result<Self, ClientError> {
        let connection = Mutex::new(connect_first(addresses, identity).await?);
        Ok(Self(Arc::new(Shared { addresses: addresses.to_vec(), identity: identity.clone(), connection })))
    }

    /// Starts a request. Returns when it is paid for and queued.
    pub async fn generate(&self, request: Request) -> Result<Generation, ClientError> {
        let api_key = request.0.api_key.clone();
        self.generation(Call::Generate(request.0), api_key, 0).await
    }

    /// Goes on with a request that another process began, or this one before: what comes after its first `tokens` tokens.
    /// It can be had for a day after its end.
    pub async fn resume(&self, api_key: ApiKey, request: RequestId, tokens: u32) -> Result<Generation, ClientError> {
        let call = Call::Resume { api_key: api_key.clone(), request, after: tokens };
        self.generation(call, api_key, tokens).await
    }

    async fn generation(&self, call: Call, api_key: ApiKey, tokens: u32) -> Result<Generation, ClientError> {
        let mut replies = self.call(&call).await?;
        let Reply::Accepted { request, prompt_tokens } = replies.next().await? else { return Err(unexpected()) };
        let (client, prompt) = (self.clone(), PromptEcho::default());
        let (resumed, finished) = (0, None);
        Ok(Generation { client, api_key, request, prompt_tokens, replies, prompt, tokens, resumed, finished })
    }

    /// Makes vectors of texts. Start from [`Embed::new`] and set what differs.
    pub async fn embed(&self, request: Embed) -> Result<Embeddings, ClientError> {
        let mut replies = self.call(&Call::Embed(request)).await?;
        let Reply::Accepted { request, .. } = replies.next().await? else { return Err(unexpected()) };
        let mut vectors = Vec::new();
        loop {
            match replies.next().await? {
                Reply::Embedding { index, vector } if index as usize == vectors.len() => vectors.push(vector),
                Reply::Finished { usage, .. } => return Ok(Embeddings { request, vectors, usage }),
                _ => return Err(unexpected()),
            }
        }
    }

    /// The catalog.
    pub async fn models(&self) -> Result<Vec<ModelInfo>, ClientError> {
        let mut replies = self.call(&Call::Models).await?;
        match replies.next().await? {
            Reply::Models(models) => Ok(models),
            _ => Err(unexpected()),
        }
    }

    /// Balances and last entries of this client's identity, and of an API key's account.
    pub async fn wallet(&self, api_key: Option<ApiKey>, entries_max: u32) -> Result<Wallet, ClientError> {
        let mut replies = self.call(&Call::Wallet { api_key, entries_max }).await?;
        match replies.next().await? {
            Reply::Wallet(wallet) => Ok(wallet),
            _ => Err(unexpected()),
        }
    }

    /// Why a request of this API key's account went where it went.
    pub async fn explain(&self, api_key: ApiKey, request: RequestId) -> Result<Explanation, ClientError> {
        let mut replies = self.call(&Call::Explain { api_key, request }).await?;
        match replies.next().await? {
            Reply::Explained(explanation) => Ok(explanation),
            _ => Err(unexpected()),
        }
    }

    /// Says goodbye; requests that still run are cancelled.
    pub fn close(self) {
        // Whoever connects anew at this moment has nothing to be cancelled.
        if let Ok(connection) = self.0.connection.try_lock() {
            Close::Done.close(&connection, "bye");
        }
    }

    /// The connection, made anew if it has broken.
    async fn connection(&self) -> Result<quinn::Connection, ClientError> {
        let mut connection = self.0.connection.lock().await;
        match connection.close_reason() {
            // Closed by this client itself: nothing is to go on.
            None | Some(quinn::ConnectionError::LocallyClosed) => {}
            Some(_) => *connection = connect_first(&self.0.addresses, &self.0.identity).await?,
        }
        Ok(connection.clone())
    }

    async fn call(&self, call: &Call) -> Result<Replies, ClientError> {
        let connection = self.connection().await?;
        let (send, recv) = connection.open_bi().await.map_err(|e| ClientError::Broken(e.to_string()))?;
        let mut writer = FrameWriter::new(send, CALL_FRAME_BYTES_MAX);
        if let Err(error) = writer.send(call).await {
            return Err(broken(&connection, error).await);
        }
        let _ = writer.get_mut().finish();
        Ok(Replies { frames: FrameReader::new(recv, REPLY_FRAME_BYTES_MAX), connection })
    }
}

/// Connects to the first that answers.
async fn connect_first(addresses: &[Address], identity: &Identity) -> Result<quinn::Connection, ClientError> {
    let mut last = ClientError::Broken("no scheduler was named: give an address".to_owned());
    for address in addresses {
        match connect(address, identity, Role::Developer).await {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

impl Generation {
    /// The request's id, for support and logs.
    pub fn request(&self) -> RequestId {
        self.request
    }

    /// Tokens of the prompt, as billed.
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// The next piece of output, or `None` when it has finished. Nothing is lost if this is dropped midway.
    pub async fn next(&mut self) -> Result<Option<Delta>, ClientError> {
        if self.finished.is_some() {
            return Ok(None);
        }
        loop {
            let reply = match self.replies.next().await {
                Err(ClientError::Broken(why)) => {
                    self.come_back(why).await?;
                    continue;
                }
                reply => reply?,
            };
            match reply {
                Reply::Delta { first, tokens, text, logprobs, calls } => {
                    self.tokens = first + tokens.len() as u32;
                    return Ok(Some(Delta { first, tokens, text, logprobs, calls }));
                }
                Reply::Prompt { text, logprobs } => {
                    self.prompt.text.push_str(&text);
                    self.prompt.logprobs.extend(logprobs);
                }
                Reply::Finished { reason, usage } => {
                    self.finished = Some((reason, usage));
                    return Ok(None);
                }
                _ => return Err(unexpected()),
            }
        }
    }

    /// Goes on where it was, after `why` ended its stream.
    async fn come_back(&mut self, why: String) -> Result<(), ClientError> {
        let until = Instant::now() + COME_BACK_MAX;
        loop {
            match self.client.resume(self.api_key.clone(), self.request, self.tokens).await {
                Ok(Self { replies, .. }) => {
                    self.replies = replies;
                    self.resumed += 1;
                    return Ok(());
                }
                Err(ClientError::Refused(refusal)) if refusal.code != RefusalCode::Unavailable => {
                    return Err(ClientError::Broken(format!("{why}; it does not go on: {refusal}")));
                }
                Err(error) if Instant::now() >= until => {
                    return Err(ClientError::Broken(format!("{why}; it does not go on: {error}")));
                }
                Err(_) => tokio::time::sleep(COME_BACK_PAUSE).await,
            }
        }
    }

    /// How often it has gone on after its connection broke.
    pub fn resumed(&self) -> u32 {
        self.resumed
    }

    /// What has come back of the prompt so far.
    pub fn prompt(&self) -> &PromptEcho {
        &self.prompt
    }

    /// The output as a stream of pieces.
    pub fn into_stream(self) -> impl futures_util::Stream<Item = Result<Delta, ClientError>> {
        futures_util::stream::try_unfold(self, |mut generation| async move {
            Ok(generation.next().await?.map(|delta| (delta, generation)))
        })
    }

    /// All of the remaining text.
    pub async fn text(&mut self) -> Result<String, ClientError> {
        let mut text = String::new();
        while let Some(delta) = self.next().await? {
            text.push_str(&delta.text);
        }
        Ok(text)
    }

    /// Why the output ended, once it has.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finished.as_ref().map(|(reason, _)| *reason)
    }

    /// What was used and paid, once the output has ended.
    pub fn usage(&self) -> Option<&Usage> {
        self.finished.as_ref().map(|(_, usage)| usage)
    }
}

impl Replies {
    async fn next(&mut self) -> Result<Reply, ClientError> {
        match self.frames.next::<Reply>().await {
            Ok(Some(Reply::Refused(refusal))) => Err(ClientError::Refused(refusal)),
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(ClientError::Broken("the answer ended in the middle".to_owned())),
            Err(error) => Err(broken(&self.connection, error).await),
        }
    }
}

/// The reason a connection was closed with says more than the error of a stream on it.
async fn broken(connection: &quinn::Connection, error: FrameError) -> ClientError {
    // The stream's error may come a moment before the close that explains it.
    let closed = tokio::time::timeout(Duration::from_millis(200), connection.closed()).await;
    ClientError::Broken(match closed {
        Ok(quinn::ConnectionError::ApplicationClosed(closed)) => {
            Close::of(&closed).map_or_else(|| error.to_string(), |(_, why)| why)
        }
        _ => error.to_string(),
    })
}

fn unexpected() -> ClientError {
    ClientError::Broken("the scheduler answered something that was not asked".to_owned())
}
