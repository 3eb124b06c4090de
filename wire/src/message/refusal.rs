//! Why something was not done.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why something was not done, in terms that stay the same across versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what was wrong and what to do.
    pub message: String,
    /// The field at fault, by its name in the HTTP interface.
    pub param: Option<String>,
    /// After how many seconds it may be worth trying again, where that is known.
    pub retry_after_s: Option<u32>,
}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RefusalCode {
    /// A value is out of range or makes no sense.
    InvalidRequest,
    /// Prompt and output do not fit the model's context.
    ContextLengthExceeded,
    /// No such API key.
    InvalidApiKey,
    /// The account cannot pay for the worst case.
    InsufficientCredit,
    /// No such model.
    ModelNotFound,
    /// Too many requests are waiting.
    QueueFull,
    /// No miner could take the request in time.
    NoCapacity,
    /// Miners failed and nobody could go on.
    MinerFailed,
    /// The peer may not use this door.
    NotAllowed,
    /// The developer took nothing for too long.
    Stalled,
    /// The scheduler is going down or its disk failed.
    Unavailable,
    /// A bug.
    Internal,
}

impl Refusal {
    /// A refusal that names no field.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None, retry_after_s: None }
    }

    /// A refusal that names a field.
    pub fn at(code: RefusalCode, param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::new(code, message) }
    }

    /// A value that cannot be used.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::at(RefusalCode::InvalidRequest, param, message)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}
