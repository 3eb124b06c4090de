//! Every bound of the protocol, with the relations between them checked when this compiles.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Version of every message in this crate; the byte before each message. Peers of another version are told so.
pub const PROTOCOL_VERSION: u8 = 5;

/// Bytes before a frame's body: its length as `u32`, little-endian.
pub const FRAME_HEADER_BYTES: usize = 4;
/// A developer's call: the prompt is most of it.
pub const CALL_FRAME_BYTES_MAX: usize = 2 << 20;
/// A reply to a developer.
pub const REPLY_FRAME_BYTES_MAX: usize = 256 << 10;
/// A message to a miner: an assignment carries a whole prompt as token ids.
pub const ASSIGN_FRAME_BYTES_MAX: usize = 1 << 20;
/// A message from a miner.
pub const MINER_FRAME_BYTES_MAX: usize = 256 << 10;

/// Token ids of a prompt, accepted tokens included.
pub const PROMPT_TOKENS_MAX: usize = 131_072;
/// UTF-8 bytes of a prompt.
pub const PROMPT_BYTES_MAX: usize = 1 << 20;
/// Messages of a chat.
pub const CHAT_MESSAGES_MAX: usize = 1_024;
/// Stop strings of a request.
pub const STOPS_MAX: usize = 8;
/// Bytes of one stop string.
pub const STOP_BYTES_MAX: usize = 64;
/// Entries of a logit bias.
pub const LOGIT_BIAS_MAX: usize = 1_024;
/// Stop token ids of an assignment.
pub const STOP_TOKENS_MAX: usize = 64;
/// Of these, how many a request may name; the others are the model's own.
pub const STOP_TOKENS_ASKED_MAX: usize = 32;
/// Token ids that a request may restrict its output to.
pub const ALLOWED_TOKENS_MAX: usize = 1_024;
/// Bad words of a request.
pub const BAD_WORDS_MAX: usize = 64;
/// Bytes of one bad word.
pub const BAD_WORD_BYTES_MAX: usize = 64;
/// Ways of writing bad words as tokens, in an assignment: each word with and without a space before it.
pub const BAD_WORD_WAYS_MAX: usize = 2 * BAD_WORDS_MAX;
/// Tokens of one of these: one a byte, and a space.
pub const BAD_WORD_TOKENS_MAX: usize = BAD_WORD_BYTES_MAX + 2;
/// Strings that end repetitions (DRY).
pub const DRY_BREAKERS_MAX: usize = 16;
/// Bytes of one of these.
pub const DRY_BREAKER_BYTES_MAX: usize = 64;
/// Tokens that contain one of these, in an assignment.
pub const DRY_BREAKER_TOKENS_MAX: usize = 16_384;
/// UTF-8 bytes of a constraint: a schema, a regular expression, a grammar, or all choices together.
pub const CONSTRAINT_BYTES_MAX: usize = 64 << 10;
/// Texts to choose from.
pub const CONSTRAINT_CHOICES_MAX: usize = 1_024;
/// Tools of a request. Their schemas together are bounded as a constraint is.
pub const TOOLS_MAX: usize = 128;
/// Calls of tools in one message of a chat.
pub const CALLS_MAX: usize = 128;
/// Bytes of a call's id.
pub const CALL_ID_BYTES_MAX: usize = 128;
/// Texts of one request for vectors.
pub const EMBED_INPUTS_MAX: usize = 2_048;
/// Numbers in a text's vector.
pub const EMBEDDING_DIMS_MAX: usize = 8_192;
/// Numbers in all vectors of one request.
pub const EMBED_VALUES_MAX: usize = 2 << 20;
/// Bytes of a name: a model's, a miner's, a tool's.
pub const NAME_BYTES_MAX: usize = 64;

/// Sequences that one replica may run; also bounds items of a step.
pub const REPLICA_SEQUENCES_MAX: usize = 1_024;
/// Compute capabilities that GPUs with tensor cores may have: ten times the major number, and the minor one.
pub const COMPUTE_CAPABILITIES: RangeInclusive<u16> = 70..=999;
/// Adapters that one replica may offer.
pub const ADAPTERS_MAX: usize = 256;
/// Most probable tokens that a request may ask for beside each token.
pub const TOP_LOGPROBS_MAX: usize = 20;
/// Tokens of a prompt whose log-probabilities are asked for.
pub const PROMPT_LOGPROBS_TOKENS_MAX: usize = 8_192;
/// Log-probabilities of a prompt's tokens in one step item. Those that do not end a prompt have just so many.
pub const STEP_SCORES_MAX: usize = 256;
/// Bytes of a token's text beside its log-probability; the rest of a longer one is left out.
pub const TOKEN_TEXT_BYTES_MAX: usize = 512;
/// Bytes of a piece of a prompt that is sent back, at which it goes out.
pub const PROMPT_PIECE_BYTES: usize = 64 << 10;
/// Tokens of one sequence in one step item.
pub const STEP_TOKENS_MAX: usize = 16;
/// Replicas of one miner.
pub const REPLICAS_MAX: usize = 64;
/// Devices of one miner.
pub const DEVICES_MAX: usize = 32;
/// Models that one device could serve.
pub const LOADABLE_MAX: usize = 64;
/// Tokens a miner may send of a sequence beyond what the developer's socket has taken. Also the capacity of a request's
/// token channel, so that splitting a step never waits.
pub const CREDIT_TOKENS: u32 = 64;
/// Messages to one miner that may wait for its socket.
pub const CONTROL_QUEUE: usize = 4_096;
/// Requests of one developer's connection in flight.
pub const CONNECTION_REQUESTS_MAX: u32 = 1_024;
/// Replies of one request that may wait for its socket.
pub const REPLY_QUEUE: usize = 16;
/// Connections that one endpoint holds.
pub const CONNECTIONS_MAX: usize = 4_096;

/// A handshake and the first frame must be through by then.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// A miner says something at least this often.
pub const MINER_KEEP_ALIVE: Duration = Duration::from_millis(500);
/// A silent miner is gone.
pub const MINER_IDLE_MAX: Duration = Duration::from_secs(3);
/// A replica with sequences says something at least this often: steps, or a heartbeat.
pub const MINER_BEAT: Duration = Duration::from_millis(100);
/// One without says something at least this often, which its connection would have to do anyway.
pub const MINER_IDLE_BEAT: Duration = Duration::from_millis(400);
/// So many heartbeats may be missing before a replica is suspect.
pub const MINER_BEATS_MISSED_MAX: u32 = 3;
/// A sequence that decodes may always be silent for so long.
pub const STREAM_GAP_MIN: Duration = Duration::from_millis(250);
/// It may be silent for so many times what its replica's steps take on average.
pub const STREAM_GAP_TIMES: u32 = 8;
/// It may be silent for so many times what its miner expects of the step that is computed.
pub const STEP_DUE_TIMES: u32 = 4;
/// The longest step that a miner may announce.
pub const STEP_DUE_MAX: Duration = Duration::from_secs(5);
/// A developer's connection is kept warm this often.
pub const DEVELOPER_KEEP_ALIVE: Duration = Duration::from_millis(750);
/// A silent developer is gone, and so is a scheduler that is silent to it; what runs goes on with the next connection.
pub const DEVELOPER_IDLE_MAX: Duration = Duration::from_secs(3);
/// A developer that takes nothing for so long loses its request.
pub const DEVELOPER_STALL_MAX: Duration = Duration::from_secs(30);

/// Nano-credits in a credit. All money is an integer number of nano-credits.
pub const NANO_PER_CREDIT: u64 = 1_000_000_000;
/// Highest price per million tokens that anybody may name: 1,000 credits.
pub const PRICE_PER_MTOK_MAX: u64 = 1_000 * NANO_PER_CREDIT;

/// Bytes of a token id at most, as a postcard varint.
const TOKEN_BYTES: usize = 5;
/// What sampling may add to an assignment: biases, lists of tokens, a constraint.
const SAMPLING_BYTES_MAX: usize = LOGIT_BIAS_MAX * (TOKEN_BYTES + 4)
    + ALLOWED_TOKENS_MAX * TOKEN_BYTES
    + BAD_WORD_WAYS_MAX * (1 + BAD_WORD_TOKENS_MAX * TOKEN_BYTES)
    + DRY_BREAKER_TOKENS_MAX * TOKEN_BYTES
    + CONSTRAINT_BYTES_MAX
    + CONSTRAINT_CHOICES_MAX * 3
    + TOOLS_MAX * (NAME_BYTES_MAX + 4);

// 4 KiB are left for everything else.
const _: () = assert!(PROMPT_TOKENS_MAX * TOKEN_BYTES + SAMPLING_BYTES_MAX + 4_096 <= ASSIGN_FRAME_BYTES_MAX);
// An offer is a small frame with all adapters there may be.
const _: () = assert!(ADAPTERS_MAX * 32 + 1_024 <= MINER_FRAME_BYTES_MAX);
// So is what all devices could serve: a hash and four numbers a model.
const _: () = assert!(DEVICES_MAX * (LOADABLE_MAX * (32 + 4 * 10) + 32) <= MINER_FRAME_BYTES_MAX);
const _: () = assert!(STOP_TOKENS_ASKED_MAX < STOP_TOKENS_MAX);
// A prompt in bytes leaves room in a call for roles, stops, biases and keys.
const _: () = assert!(PROMPT_BYTES_MAX * 2 <= CALL_FRAME_BYTES_MAX && CONSTRAINT_BYTES_MAX * 4 <= PROMPT_BYTES_MAX);
// A prompt of token ids fits too.
const _: () = assert!(PROMPT_TOKENS_MAX * TOKEN_BYTES + SAMPLING_BYTES_MAX + 64 * 1024 <= CALL_FRAME_BYTES_MAX);
/// A token's log-probability with those of the most probable ones, on the way from a miner.
pub(crate) const LOGPROBS_BYTES_MAX: usize = 4 + TOKEN_BYTES + 1 + TOP_LOGPROBS_MAX * (TOKEN_BYTES + 4);
/// The same on the way to a developer, with texts: id, length, text, kind, number, and rank and length once.
const TEXT_LOGPROBS_BYTES_MAX: usize =
    TOKEN_BYTES + 1 + (1 + TOP_LOGPROBS_MAX) * (TOKEN_BYTES + 2 + TOKEN_TEXT_BYTES_MAX + 1 + 5);
/// Tokens of a KV block, where prefixes are to be found by their blocks: names of blocks of another length mean nothing to
/// a scheduler.
pub const BLOCK_TOKENS: usize = 16;
/// Names of blocks that a step tells of as cached, and as evicted; more are told of by the next.
pub const BLOCK_NEWS_MAX: usize = 1_024;
/// Bytes of such a name at most, as a postcard varint.
const BLOCK_NAME_BYTES: usize = 10;
/// Bytes of the items of a step; more are sent as several steps.
pub const STEP_ITEMS_BYTES_MAX: usize = MINER_FRAME_BYTES_MAX - 128 - 2 * BLOCK_NEWS_MAX * BLOCK_NAME_BYTES;

// Who misses no heartbeat is never taken for gone, and who misses a few is found out before its connection is given up.
const _: () = assert!(MINER_IDLE_BEAT.as_millis() * (MINER_BEATS_MISSED_MAX as u128) < MINER_IDLE_MAX.as_millis());
// An idle miner's heartbeats are all that it sends.
const _: () = assert!(MINER_IDLE_BEAT.as_millis() < MINER_KEEP_ALIVE.as_millis());
const _: () = assert!(MINER_BEAT.as_millis() < STREAM_GAP_MIN.as_millis());

// Any single item fits a step: id (10), index (5), three lengths, and a reason of some 130 bytes.
const _: () = assert!(
    160 + STEP_TOKENS_MAX * (TOKEN_BYTES + LOGPROBS_BYTES_MAX) + STEP_SCORES_MAX * LOGPROBS_BYTES_MAX
        <= STEP_ITEMS_BYTES_MAX
);
// Every sequence of a replica may end in one step without log-probabilities.
const _: () = assert!(REPLICA_SEQUENCES_MAX * 160 <= STEP_ITEMS_BYTES_MAX);
// A reply has log-probabilities of one token, or a piece of a prompt and one token more.
const _: () = assert!(PROMPT_PIECE_BYTES + TEXT_LOGPROBS_BYTES_MAX + 64 <= REPLY_FRAME_BYTES_MAX);
// A vector fits a step and a reply, and all that one request may ask for can be asked of a model of usual width.
const _: () = assert!(160 + 4 * EMBEDDING_DIMS_MAX <= STEP_ITEMS_BYTES_MAX);
const _: () = assert!(64 + 4 * EMBEDDING_DIMS_MAX <= REPLY_FRAME_BYTES_MAX);
const _: () = assert!(EMBED_INPUTS_MAX * 1_024 <= EMBED_VALUES_MAX);
// Lengths and kinds of many short texts fit beside them.
const _: () =
    assert!(PROMPT_BYTES_MAX + PROMPT_TOKENS_MAX * TOKEN_BYTES + EMBED_INPUTS_MAX * 8 <= CALL_FRAME_BYTES_MAX);
// Each sequence in flight may have an assignment, a cancellation and a credit waiting.
const _: () = assert!(CONTROL_QUEUE >= 3 * REPLICA_SEQUENCES_MAX);
const _: () = assert!(STEP_TOKENS_MAX <= CREDIT_TOKENS as usize);
// The cost of any request fits u64 with room to add many: both counts stay below 2^18 tokens.
const _: () = assert!((PRICE_PER_MTOK_MAX as u128) * (1 << 20) < u64::MAX as u128);
