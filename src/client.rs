//! A developer's side of a connection: one stream a call. Knows nothing of miners and money but what replies say.

use std::time::Duration;

use cuckoo_wire::limits::{CALL_FRAME_BYTES_MAX, REPLY_FRAME_BYTES_MAX};
use cuckoo_wire::message::{
    ApiKey, Call, CallDelta, ChatMessage, Constraint, Embed, Explanation, FinishReason, Generate, ModelInfo, Prompt,
    Refusal, Reply, RequestId, Sampling, TokenLogprobs, Tools, Usage, Wallet,
};
use cuckoo_wire::{Address, Close, FrameError, FrameReader, FrameWriter, Identity, QuicError, Role, connect};

/// A connection to a scheduler. Cheap to clone; calls run side by side.
#[derive(Clone, Debug)]
pub struct Client {
    connection: quinn::Connection,
}

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

/// A running request. Dropping it cancels it.
#[derive(Debug)]
pub struct Generation {
    request: RequestId,
    prompt_tokens: u32,
    replies: FrameReader<quinn::RecvStream>,
    connection: quinn::Connection,
    prompt: PromptEcho,
    finished: Option<(FinishReason, Usage)>,
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
        Ok(Self { connection: connect(address, identity, Role::Developer).await? })
    }

    /// Starts a request. Returns when it is paid for and queued.
    pub async fn generate(&self, request: Request) -> Result<Generation, ClientError> {
        let mut replies = self.call(&Call::Generate(request.0)).await?;
        match self.reply(&mut replies).await? {
            Reply::Accepted { request, prompt_tokens } => {
                let connection = self.connection.clone();
                let prompt = PromptEcho::default();
                Ok(Generation { request, prompt_tokens, replies, connection, prompt, finished: None })
            }
            _ => Err(unexpected()),
        }
    }

    /// Makes vectors of texts. Start from [`Embed::new`] and set what differs.
    pub async fn embed(&self, request: Embed) -> Result<Embeddings, ClientError> {
        let mut replies = self.call(&Call::Embed(request)).await?;
        let Reply::Accepted { request, .. } = self.reply(&mut replies).await? else { return Err(unexpected()) };
        let mut vectors = Vec::new();
        loop {
            match self.reply(&mut replies).await? {
                Reply::Embedding { index, vector } if index as usize == vectors.len() => vectors.push(vector),
                Reply::Finished { usage, .. } => return Ok(Embeddings { request, vectors, usage }),
                _ => return Err(unexpected()),
            }
        }
    }

    /// The catalog.
    pub async fn models(&self) -> Result<Vec<ModelInfo>, ClientError> {
        let mut replies = self.call(&Call::Models).await?;
        match self.reply(&mut replies).await? {
            Reply::Models(models) => Ok(models),
            _ => Err(unexpected()),
        }
    }

    /// Balances and last entries of this client's identity, and of an API key's account.
    pub async fn wallet(&self, api_key: Option<ApiKey>, entries_max: u32) -> Result<Wallet, ClientError> {
        let mut replies = self.call(&Call::Wallet { api_key, entries_max }).await?;
        match self.reply(&mut replies).await? {
            Reply::Wallet(wallet) => Ok(wallet),
            _ => Err(unexpected()),
        }
    }

    /// Why a request of this API key's account went where it went.
    pub async fn explain(&self, api_key: ApiKey, request: RequestId) -> Result<Explanation, ClientError> {
        let mut replies = self.call(&Call::Explain { api_key, request }).await?;
        match self.reply(&mut replies).await? {
            Reply::Explained(explanation) => Ok(explanation),
            _ => Err(unexpected()),
        }
    }

    /// Says goodbye; requests that still run are cancelled.
    pub fn close(self) {
        Close::Done.close(&self.connection, "bye");
    }

    async fn call(&self, call: &Call) -> Result<FrameReader<quinn::RecvStream>, ClientError> {
        let (send, recv) = self.connection.open_bi().await.map_err(|e| ClientError::Broken(e.to_string()))?;
        let mut writer = FrameWriter::new(send, CALL_FRAME_BYTES_MAX);
        if let Err(error) = writer.send(call).await {
            return Err(broken(&self.connection, error).await);
        }
        let _ = writer.get_mut().finish();
        Ok(FrameReader::new(recv, REPLY_FRAME_BYTES_MAX))
    }

    async fn reply(&self, replies: &mut FrameReader<quinn::RecvStream>) -> Result<Reply, ClientError> {
        next(replies, &self.connection).await
    }
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
            match next(&mut self.replies, &self.connection).await? {
                Reply::Delta { first, tokens, text, logprobs, calls } => {
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

async fn next(
    replies: &mut FrameReader<quinn::RecvStream>,
    connection: &quinn::Connection,
) -> Result<Reply, ClientError> {
    match replies.next::<Reply>().await {
        Ok(Some(Reply::Refused(refusal))) => Err(ClientError::Refused(refusal)),
        Ok(Some(reply)) => Ok(reply),
        Ok(None) => Err(ClientError::Broken("the answer ended in the middle".to_owned())),
        Err(error) => Err(broken(connection, error).await),
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
