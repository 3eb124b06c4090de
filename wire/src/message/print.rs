//! How messages print, and small constructors. Keys and prompts never print: logs are read by people.

use std::fmt;

use super::{ApiKey, ChatMessage, EmbedInput, Prompt, Refusal, RefusalCode, RequestId, WeightsHash};

impl RequestId {
    /// A fresh one, not guessable.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "req_{}", crate::identity::hex(&self.0))
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for WeightsHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::identity::hex(&self.0))
    }
}

impl fmt::Debug for WeightsHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeightsHash({}…)", crate::identity::hex(&self.0[..4]))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chat(m) => write!(f, "Chat({} messages)", m.len()),
            Self::Text(t) => write!(f, "Text({} bytes)", t.len()),
            Self::Tokens(t) => write!(f, "Tokens({})", t.len()),
        }
    }
}

impl fmt::Debug for EmbedInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(t) => write!(f, "Text({} bytes)", t.len()),
            Self::Tokens(t) => write!(f, "Tokens({})", t.len()),
        }
    }
}

impl fmt::Debug for ChatMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChatMessage({}, {} bytes, {} calls)", self.role, self.content.len(), self.calls.len())
    }
}

impl Refusal {
    /// A refusal that names no field.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None }
    }

    /// A value that cannot be used.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self { code: RefusalCode::InvalidRequest, message: message.into(), param: Some(param.to_owned()) }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}
