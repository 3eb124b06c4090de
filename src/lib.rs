//! The Rust client of Cuckoo, an open market for AI inference, over its native QUIC interface.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use cuckoo::{Client, Identity, Request};
//!
//! let address = "cuckoo://<peer id>@127.0.0.1:4433".parse()?;
//! let client = Client::connect(&address, &Identity::generate()).await?;
//! let request = Request::chat("ck_live_…", "smollm2-135m-instruct", "Name a bird.");
//! let mut generation = client.generate(request).await?;
//! while let Some(delta) = generation.next().await? {
//!     print!("{}", delta.text);
//! }
//! println!("{} tokens", generation.usage().expect("it finished").completion_tokens);
//! # Ok(())
//! # }
//! ```
//!
//! Dropping a [`Generation`] cancels it: the miner stops, and only what was delivered is paid. One whose connection breaks
//! goes on where it was, and so does one whose scheduler dies, here or at another that shares its store.

#![forbid(unsafe_code)]

mod client;
pub mod simulation;

pub use client::{Client, ClientError, Delta, Embeddings, Generation, Request};
pub use cuckoo_wire::message::{
    ApiKey, CallDelta, Candidate, ChatMessage, Constraint, Embed, EmbedInput, Explanation, FinishReason, FoundBy,
    ModelInfo, PlacementReasons, Price, Prompt, Refusal, RefusalCode, RequestId, Sampling, ServiceClass, Terms, Tool,
    ToolCall, ToolChoice, Tools, Usage, Wallet, WalletEntry,
};
pub use cuckoo_wire::{Address, Identity, IdentityError, PeerId};
