//! Every message, by direction. Fixed-width types only; money in integers; new enum variants go at the end.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

mod accounts;
mod beat;
mod check;
mod constraint;
mod defaults;
mod embedding;
mod explain;
mod logprobs;
mod offer;
mod price;
mod print;
mod refusal;
mod residency;
mod tools;

pub use accounts::{ModelInfo, Wallet, WalletEntry};
pub use beat::Beat;
pub use check::Invalid;
pub use constraint::{CallConstraint, Constraint};
pub use embedding::{Embed, EmbedInput, Encode, Task};
pub use explain::{Candidate, Explanation, FoundBy, PlacementReasons, ServiceClass, Terms};
pub use logprobs::{Logprobs, PromptLogprobs, TokenLogprob, TokenLogprobs};
pub use offer::{KvFormat, Numerics, Offer, Window};
pub use refusal::{Refusal, RefusalCode};
pub use residency::{Capacity, FromMiner, Loadable};
pub use tools::{CallDelta, Tool, ToolCall, ToolChoice, Tools};

// ---------------------------------------------------------------- words that both legs use

/// One request, as the developer and the books know it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId(pub [u8; 16]);

/// One placement of a request on one miner's connection. A request that is placed again gets a new one, so tokens of
/// an abandoned placement can never be taken for those of its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SequenceId(pub u64);

/// One model loaded on one device of a miner; fresh on every load, within one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReplicaId(pub u32);

/// BLAKE3 of a weights file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WeightsHash(pub [u8; 32]);

/// Nano-credits per million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// For each million prompt tokens.
    pub input_per_mtok: u64,
    /// For each million generated tokens.
    pub output_per_mtok: u64,
}

/// How tokens are drawn. Ranges are checked by [`Sampling::check`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 (greedy) to 2.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// Above 0, at most 1.
    pub top_p: f32,
    /// 0 to 1.
    pub min_p: f32,
    /// Above 0, at most 2; 1 changes nothing.
    pub repetition_penalty: f32,
    /// -2 to 2.
    pub presence_penalty: f32,
    /// -2 to 2.
    pub frequency_penalty: f32,
    /// Token id to -100 … 100.
    pub logit_bias: BTreeMap<u32, f32>,
    /// The same seed gives the same tokens; `None` lets the scheduler choose one.
    pub seed: Option<u64>,
    /// Locally typical sampling. Above 0, at most 1; 1 keeps all.
    pub typical_p: f32,
    /// DRY: what a repetition of the allowed length costs. 0 to 100; 0 turns it off.
    pub dry_multiplier: f32,
    /// By how much each further token multiplies that: 1 to 8.
    pub dry_base: f32,
    /// Shorter repetitions cost nothing; at least 1.
    pub dry_allowed_length: u32,
    /// How many of the newest tokens are looked at.
    pub dry_penalty_last_n: u32,
    /// How often XTC acts: 0 to 1; 0 turns it off.
    pub xtc_probability: f32,
    /// How probable a token must be to be a top choice: 0 to 1.
    pub xtc_threshold: f32,
    /// No stop token comes, and no stop string counts, before there are so many tokens of output.
    pub min_tokens: u32,
    /// If not empty, no other tokens are drawn.
    pub allowed_token_ids: BTreeSet<u32>,
}

// ---------------------------------------------------------------- developer → scheduler

/// The one frame that a developer's stream begins with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "a stream has one, which is taken apart at once")]
pub enum Call {
    /// Generate tokens. Answered by [`Reply::Accepted`], [`Reply::Delta`]…, [`Reply::Finished`].
    Generate(Generate),
    /// List models. Answered by [`Reply::Models`].
    Models,
    /// Balances and last entries of the caller's key and of the API key's account. Answered by [`Reply::Wallet`].
    Wallet {
        /// The developer's account, where wanted.
        api_key: Option<ApiKey>,
        /// How many entries.
        entries_max: u32,
    },
    /// Make vectors of texts. Answered by [`Reply::Accepted`], [`Reply::Embedding`]…, [`Reply::Finished`].
    Embed(Embed),
    /// Why did a request of the caller's account go where it went? Answered by [`Reply::Explained`].
    Explain {
        /// Whose request it was.
        api_key: ApiKey,
        /// Which.
        request: RequestId,
    },
    /// Go on with a request whose replies were lost, here or at another scheduler. Answered as [`Call::Generate`], with
    /// what comes after the tokens that are there already.
    Resume {
        /// Whose request it is.
        api_key: ApiKey,
        /// Which.
        request: RequestId,
        /// Tokens of output that have come.
        after: u32,
    },
}

/// One request for tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generate {
    /// Who pays.
    pub api_key: ApiKey,
    /// The model's name in the catalog.
    pub model: String,
    /// What to continue.
    pub prompt: Prompt,
    /// How.
    pub sampling: Sampling,
    /// Output ends before any of these.
    pub stop: Vec<String>,
    /// At most so many tokens; `None` allows what the context leaves.
    pub max_tokens: Option<u32>,
    /// Go on past the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Use only miners that ask at most this.
    pub max_price: Option<Price>,
    /// Tokens that end the output, besides the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Output ends with the stop string or stop token rather than before it.
    pub include_stop: bool,
    /// Words that do not appear in the output, as they are or after a space.
    pub bad_words: Vec<String>,
    /// Texts that end a repetition, where [`Sampling::dry_multiplier`] is above 0; `None` is [`DRY_BREAKERS`].
    pub dry_sequence_breakers: Option<Vec<String>>,
    /// Log-probabilities of the output's tokens, each with those of so many most probable ones.
    pub logprobs: Option<u8>,
    /// The same of the prompt's tokens.
    pub prompt_logprobs: Option<u8>,
    /// Send the prompt's text back before the output.
    pub echo: bool,
    /// What the output must look like.
    pub constraint: Option<Constraint>,
    /// What the model may call, where the prompt is a chat.
    pub tools: Option<Tools>,
    /// How urgent it is.
    pub class: ServiceClass,
}

/// What ends a repetition where a request does not say, as in llama.cpp.
pub const DRY_BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

/// An API key in the clear; never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey(pub String);

/// What is to be continued; never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prompt {
    /// Rendered by the model's chat template.
    Chat(Vec<ChatMessage>),
    /// Tokenized as it is.
    Text(String),
    /// Taken as it is.
    Tokens(Vec<u32>),
}

/// One turn of a chat.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said; empty where an assistant only called tools.
    pub content: String,
    /// What an assistant called.
    pub calls: Vec<ToolCall>,
    /// The call that a tool answers, by its id.
    pub answers: Option<String>,
}

// ---------------------------------------------------------------- scheduler → developer

/// Frames of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// The request is paid for and waits for its first token.
    Accepted {
        /// Its id.
        request: RequestId,
        /// Tokens of the prompt, as billed.
        prompt_tokens: u32,
    },
    /// More output.
    Delta {
        /// Index of the first token in the output.
        first: u32,
        /// Ids; may be empty where text was held back.
        tokens: Vec<u32>,
        /// Whole characters that they added; may be empty.
        text: String,
        /// One for each token, where they were asked for.
        logprobs: Vec<TokenLogprobs>,
        /// Calls of tools, after the text.
        calls: Vec<CallDelta>,
    },
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What it cost.
        usage: Usage,
    },
    /// The end, without success.
    Refused(Refusal),
    /// The catalog.
    Models(Vec<ModelInfo>),
    /// The accounts.
    Wallet(Wallet),
    /// A piece of the prompt, where it was asked for: all text before all log-probabilities, all before the first delta.
    Prompt {
        /// Text, for [`Generate::echo`].
        text: String,
        /// The next tokens, for [`Generate::prompt_logprobs`].
        logprobs: Vec<TokenLogprobs>,
    },
    /// The vector of one text, in order of the texts. Its length is 1.
    Embedding {
        /// Which text.
        index: u32,
        /// Its vector.
        vector: Vec<f32>,
    },
    /// Why a request went where it went.
    Explained(Explanation),
}

/// Why output ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// The model ended it, or a stop string was found.
    Stop,
    /// The token limit or the context was reached.
    Length,
    /// The model ended it, and has called tools.
    ToolCalls,
}

/// What a request used, what it cost, and who got it. Amounts in nano-credits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Prompt tokens billed.
    pub prompt_tokens: u32,
    /// Generated tokens billed.
    pub completion_tokens: u32,
    /// What the developer paid: the sum of the three below.
    pub cost: u64,
    /// To the miners.
    pub miner: u64,
    /// To the model's author.
    pub author: u64,
    /// To the network.
    pub network: u64,
    /// How often the request moved to another miner.
    pub migrations: u32,
}

// ---------------------------------------------------------------- miner → scheduler

/// The first frame of a miner's control stream; [`FromMiner`] come after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What its owner calls it.
    pub name: String,
    /// Version of the program, for people.
    pub program: String,
}

/// Frames of a replica's stream: an offer, then steps. The stream ends with the replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ReplicaFrame {
    /// The first frame.
    Offer(Offer),
    /// One decode step, or news of the window.
    Step(Step),
    /// Nothing more will be accepted: the miner goes on with what it has until that has moved or ended, and leaves.
    Drain,
    /// Nothing else was said for [`crate::limits::MINER_BEAT`], or for [`crate::limits::MINER_IDLE_BEAT`] without sequences.
    Beat(Beat),
}

/// What one step did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What is accepted after it.
    pub window: Window,
    /// Sequences of the last step's batch.
    pub batch: u32,
    /// KV blocks in use.
    pub blocks_used: u64,
    /// Steps that were computed since the frame before.
    pub steps: u32,
    /// Their rows.
    pub rows: u32,
    /// How long they took together, in microseconds.
    pub took_us: u64,
    /// Names that came into its cache ([`crate::BlockHash::short`]) and are still there, at most
    /// [`crate::limits::BLOCK_NEWS_MAX`].
    pub cached: Vec<u64>,
    /// Names that left it, at most as many.
    pub evicted: Vec<u64>,
    /// Sequences with news.
    pub items: Vec<StepItem>,
}

/// News of one sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepItem {
    /// Which.
    pub sequence: SequenceId,
    /// How many tokens it had sent before these.
    pub first: u32,
    /// Drawn tokens, at most [`crate::limits::STEP_TOKENS_MAX`].
    pub tokens: Vec<u32>,
    /// Set on the last item of a sequence.
    pub end: Option<End>,
    /// One for each of `tokens`, where the assignment asks for them.
    pub logprobs: Vec<Logprobs>,
    /// Those of the prompt's next tokens, at most [`crate::limits::STEP_SCORES_MAX`].
    pub prompt_logprobs: Vec<Logprobs>,
}

/// Why a sequence ended on its miner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum End {
    /// The last token is one of the stop tokens.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The scheduler cancelled it.
    Cancelled,
    /// This miner cannot run it, now or ever; somebody else may.
    Failed(String),
    /// The vector of the text, of length 1: at most [`crate::limits::EMBEDDING_DIMS_MAX`] numbers.
    Embedded(Vec<f32>),
}

// ---------------------------------------------------------------- scheduler → miner

/// Frames of the control stream, towards the miner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "an assignment is moved a few times a sequence")]
pub enum ToMiner {
    /// The miner is in.
    Welcome {
        /// The scheduler's name for people.
        scheduler: String,
    },
    /// The miner is not.
    Refused(Refusal),
    /// Run this.
    Assign(Assign),
    /// Stop this.
    Cancel {
        /// Where.
        replica: ReplicaId,
        /// Which.
        sequence: SequenceId,
    },
    /// A sequence may have sent so many tokens in all.
    Credit {
        /// Where.
        replica: ReplicaId,
        /// Which.
        sequence: SequenceId,
        /// Cumulative.
        tokens: u32,
    },
    /// Make a vector of this.
    Encode(Encode),
    /// These models are needed on a device. It loads them where they fit, and may unload what nobody needs for them.
    Serve {
        /// Which.
        device: u32,
        /// All that are needed there; at most [`crate::limits::LOADABLE_MAX`].
        weights: Vec<WeightsHash>,
    },
}

/// One sequence for one replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assign {
    /// Where.
    pub replica: ReplicaId,
    /// Its name on this connection.
    pub sequence: SequenceId,
    /// Everything known: the prompt, then tokens accepted from an earlier miner.
    pub tokens: Vec<u32>,
    /// How many of `tokens` are the prompt; penalties tell prompt from output.
    pub prompt_tokens: u32,
    /// Draw at most so many.
    pub max_new: u32,
    /// How.
    pub sampling: Sampling,
    /// Key of the generator; with the position it determines each draw.
    pub seed: u64,
    /// Tokens that end the sequence, sorted.
    pub stop_tokens: Vec<u32>,
    /// May have sent so many tokens before hearing [`ToMiner::Credit`].
    pub credit: u32,
    /// What it takes from the window: blocks for `tokens` and `max_new`.
    pub blocks: u32,
    /// Only sequences of equal salt share cached blocks: how fast a prompt is answered must not tell one account what
    /// another has asked. All zeros share with all zeros.
    pub cache_salt: [u8; 16],
    /// Sequences of tokens that are not to appear: the last of one does not follow the others.
    pub bad_words: Vec<Vec<u32>>,
    /// Tokens that end a repetition, sorted; empty where nothing asks for them.
    pub dry_breakers: Vec<u32>,
    /// Log-probabilities of drawn tokens, each with those of so many most probable ones.
    pub logprobs: Option<u8>,
    /// The same of the prompt's tokens.
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// What the tokens after the prompt must look like, those accepted from an earlier miner included.
    pub constraint: Option<Constraint>,
    /// The adapter to compute with, one of those offered.
    pub adapter: Option<WeightsHash>,
}

impl Assign {
    /// Blocks that a sequence of `tokens` known and `max_new` more tokens needs at most.
    pub fn blocks_for(tokens: u32, max_new: u32, block_tokens: u32) -> u32 {
        (tokens + max_new).div_ceil(block_tokens)
    }
}
