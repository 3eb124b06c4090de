//! Which tokens may be drawn: one bit each. Knows nothing of why.

/// A set of token ids. Ids that it has no bit for are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMask {
    /// Bit `id % 32` of word `id / 32`.
    words: Vec<u32>,
}

impl TokenMask {
    /// The set whose bits these are: of token `id`, bit `id % 32` of word `id / 32`.
    pub fn from_words(words: Vec<u32>) -> Self {
        Self { words }
    }

    /// See [`TokenMask::from_words`].
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Whether `token` may be drawn.
    pub fn allows(&self, token: u32) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Makes the logits of all other tokens minus infinity.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        for (chunk, at) in logits.chunks_mut(32).zip(0..) {
            match self.words.get(at).copied().unwrap_or(0) {
                u32::MAX => {}
                0 => chunk.fill(f32::NEG_INFINITY),
                word => {
                    for (i, logit) in chunk.iter_mut().enumerate() {
                        *logit = if word >> i & 1 == 1 { *logit } else { f32::NEG_INFINITY };
                    }
                }
            }
        }
    }
}

impl FromIterator<u32> for TokenMask {
    fn from_iter<I: IntoIterator<Item = u32>>(tokens: I) -> Self {
        let mut words = Vec::new();
        for token in tokens {
            let at = token as usize / 32;
            if words.len() <= at {
                words.resize(at + 1, 0);
            }
            words[at] |= 1 << (token % 32);
        }
        Self { words }
    }
}
