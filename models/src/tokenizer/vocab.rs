//! The tokens of a vocabulary: their bytes and kinds. It knows no rules of how text becomes tokens.

use std::collections::HashMap;

/// What a token is for; codes of `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenKind {
    pub(super) fn from_code(code: f64) -> Option<Self> {
        // Codes come as numbers of any type; none of these is a rounded one.
        match code as i64 {
            1 => Some(Self::Normal),
            2 => Some(Self::Unknown),
            3 => Some(Self::Control),
            4 => Some(Self::UserDefined),
            5 => Some(Self::Unused),
            6 => Some(Self::Byte),
            _ => None,
        }
    }
}

/// All tokens, by id and by bytes.
#[derive(Debug)]
pub(super) struct Vocab {
    bytes: Vec<Box<[u8]>>,
    kinds: Vec<TokenKind>,
    /// Only tokens that text may become: normal, user-defined and unused ones.
    by_bytes: HashMap<Box<[u8]>, u32>,
}

impl Vocab {
    /// Collects tokens. Where two have the same bytes, the first is found by them.
    pub(super) fn new(bytes: Vec<Box<[u8]>>, kinds: Vec<TokenKind>) -> Self {
        assert_eq!(bytes.len(), kinds.len(), "every token has a kind");
        let mut by_bytes = HashMap::with_capacity(bytes.len());
        for (id, (bytes, kind)) in bytes.iter().zip(&kinds).enumerate() {
            if matches!(kind, TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused) && !bytes.is_empty() {
                by_bytes.entry(bytes.clone()).or_insert(id as u32);
            }
        }
        Self { bytes, kinds, by_bytes }
    }

    /// The same with unused tokens added, `len` in all.
    pub(super) fn padded_to(&self, len: usize) -> Self {
        let (mut bytes, mut kinds) = (self.bytes.clone(), self.kinds.clone());
        bytes.resize(len, Box::default());
        kinds.resize(len, TokenKind::Unused);
        Self { bytes, kinds, by_bytes: self.by_bytes.clone() }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn bytes(&self, token: u32) -> Option<&[u8]> {
        self.bytes.get(token as usize).map(AsRef::as_ref)
    }

    pub(super) fn kind(&self, token: u32) -> Option<TokenKind> {
        self.kinds.get(token as usize).copied()
    }

    /// The token that stands for exactly these bytes of text.
    pub(super) fn find(&self, bytes: &[u8]) -> Option<u32> {
        self.by_bytes.get(bytes).copied()
    }

    /// The tokens of one kind, with their bytes.
    pub(super) fn texts(&self, kind: TokenKind) -> impl Iterator<Item = (u32, &[u8])> {
        let all = (0u32..).zip(self.kinds.iter().zip(&self.bytes));
        all.filter(move |(_, (k, _))| **k == kind).map(|(id, (_, bytes))| (id, bytes.as_ref()))
    }
}
