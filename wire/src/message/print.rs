//! How messages print, and small constructors. Keys and prompts never print: logs are read by people.

use std::fmt;
use std::str::FromStr;

use super::{ApiKey, ChatMessage, EmbedInput, Prompt, RequestId, WeightsHash};

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

/// A text that names no request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' names no request: expected req_, chatcmpl- or cmpl- and 32 hexadecimal digits, as an answer's id has them"
)]
pub struct NoRequest(String);

impl FromStr for RequestId {
    type Err = NoRequest;

    /// Its own form, or that of the HTTP interface.
    fn from_str(text: &str) -> Result<Self, NoRequest> {
        let digits = ["req_", "chatcmpl-", "cmpl-"].iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
        crate::identity::unhex(digits).map(Self).ok_or_else(|| NoRequest(text.escape_debug().to_string()))
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
