//! Every bound of the protocol, with the relations between them checked when this compiles.

use std::time::Duration;

/// Version of every message in this crate; the byte before each message. Peers of another version are told so.
pub const PROTOCOL_VERSION: u8 = 3;

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
/// UTF-8 bytes of a constraint: a schema, a regular expression, a grammar, or all choices together.
pub const CONSTRAINT_BYTES_MAX: usize = 64 << 10;
/// Texts to choose from.
pub const CONSTRAINT_CHOICES_MAX: usize = 1_024;
/// Bytes of a name: a model's, a miner's.
pub const NAME_BYTES_MAX: usize = 64;

/// Sequences that one replica may run; also bounds items of a step.
pub const REPLICA_SEQUENCES_MAX: usize = 1_024;
/// Tokens of one sequence in one step item.
pub const STEP_TOKENS_MAX: usize = 16;
/// Replicas of one miner.
pub const REPLICAS_MAX: usize = 64;
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
/// A developer's connection is kept warm this often.
pub const DEVELOPER_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A silent developer is gone.
pub const DEVELOPER_IDLE_MAX: Duration = Duration::from_secs(20);
/// A developer that takes nothing for so long loses its request.
pub const DEVELOPER_STALL_MAX: Duration = Duration::from_secs(30);

/// Nano-credits in a credit. All money is an integer number of nano-credits.
pub const NANO_PER_CREDIT: u64 = 1_000_000_000;
/// Highest price per million tokens that anybody may name: 1,000 credits.
pub const PRICE_PER_MTOK_MAX: u64 = 1_000 * NANO_PER_CREDIT;

// A token id takes at most 5 bytes as a postcard varint; 4 KiB are left for everything else.
const _: () = assert!(
    PROMPT_TOKENS_MAX * 5 + 4_096 + LOGIT_BIAS_MAX * 9 + CONSTRAINT_BYTES_MAX + CONSTRAINT_CHOICES_MAX * 3
        <= ASSIGN_FRAME_BYTES_MAX
);
// A prompt in bytes leaves room in a call for roles, stops, biases and keys.
const _: () = assert!(PROMPT_BYTES_MAX * 2 <= CALL_FRAME_BYTES_MAX && CONSTRAINT_BYTES_MAX * 4 <= PROMPT_BYTES_MAX);
// A prompt of token ids fits too.
const _: () = assert!(PROMPT_TOKENS_MAX * 5 + 64 * 1024 <= CALL_FRAME_BYTES_MAX);
// Every sequence of a replica may end in one step: id (10), index (5), token (5), and a reason of some 130 bytes.
const _: () = assert!(REPLICA_SEQUENCES_MAX * 160 + 64 <= MINER_FRAME_BYTES_MAX);
// Each sequence in flight may have an assignment, a cancellation and a credit waiting.
const _: () = assert!(CONTROL_QUEUE >= 3 * REPLICA_SEQUENCES_MAX);
const _: () = assert!(STEP_TOKENS_MAX <= CREDIT_TOKENS as usize);
// The cost of any request fits u64 with room to add many: both counts stay below 2^18 tokens.
const _: () = assert!((PRICE_PER_MTOK_MAX as u128) * (1 << 20) < u64::MAX as u128);
