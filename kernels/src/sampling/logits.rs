//! What is done to logits before anything is drawn: biases, penalties, and tokens that may not come. Draws nothing.

use std::borrow::Cow;

use super::{SampleRequest, SamplingParams, TokenHistory, dry};

/// The logits of one draw as its request changes them; borrowed if it does not.
pub(super) fn adjusted<'a>(logits: &'a [f32], request: &SampleRequest<'_>) -> Cow<'a, [f32]> {
    let (p, history) = (request.params, request.history);
    let mut logits = Cow::Borrowed(logits);
    // First, so that whatever yields does so to it.
    if let Some(mask) = request.allowed {
        mask.apply(logits.to_mut());
    }
    if !p.allowed_tokens.is_empty() {
        allow(&mut logits, &p.allowed_tokens);
    }
    if !p.logit_bias.is_empty() {
        let values = logits.to_mut();
        for &(token, bias) in &p.logit_bias {
            if let Some(logit) = values.get_mut(token as usize) {
                *logit += bias;
            }
        }
    }
    if p.penalizes() && !history.output.is_empty() {
        penalize(logits.to_mut(), p, history);
    }
    for (token, penalty) in request.repetitions() {
        if (token as usize) < logits.len() {
            logits.to_mut()[token as usize] -= penalty;
        }
    }
    forbid(&mut logits, request.completions());
    forbid(&mut logits, request.forbidden.iter().copied());
    logits
}

impl SampleRequest<'_> {
    /// DRY's penalties, where it is in force. No token comes twice.
    pub fn repetitions(&self) -> impl Iterator<Item = (u32, f32)> {
        self.params.dry.iter().flat_map(|dry| dry::penalties(dry, &self.history.tokens))
    }

    /// The tokens that would complete a bad word now.
    pub fn completions(&self) -> impl Iterator<Item = u32> {
        self.params.bad_words.iter().filter_map(|word| {
            let (last, before) = word.split_last()?;
            self.history.tokens.ends_with(before).then_some(*last)
        })
    }
}

/// Forbids all tokens but these, if any of these can be drawn.
fn allow(logits: &mut Cow<'_, [f32]>, allowed: &[u32]) {
    let mut only = vec![f32::NEG_INFINITY; logits.len()];
    let mut any = false;
    for &token in allowed {
        if let Some(&logit) = logits.get(token as usize) {
            only[token as usize] = logit;
            any |= logit != f32::NEG_INFINITY;
        }
    }
    if any {
        *logits = Cow::Owned(only);
    }
}

fn penalize(logits: &mut [f32], p: &SamplingParams, history: &TokenHistory) {
    for (&token, &count) in &history.output {
        let Some(logit) = logits.get_mut(token as usize) else { continue };
        let changed = if *logit > 0.0 { *logit / p.repetition_penalty } else { *logit * p.repetition_penalty };
        // A penalty near 0 must not make an infinity, which would be taken for a broken model's.
        *logit = if logit.is_finite() { changed.clamp(f32::MIN, f32::MAX) } else { changed };
        if count > 0 {
            *logit -= p.presence_penalty + p.frequency_penalty * count as f32;
        }
    }
}

/// Forbids these tokens, unless no other could be drawn.
fn forbid(logits: &mut Cow<'_, [f32]>, tokens: impl Iterator<Item = u32>) {
    let mut before = Vec::new();
    for token in tokens {
        let Some(&logit) = logits.get(token as usize) else { continue };
        if logit != f32::NEG_INFINITY {
            logits.to_mut()[token as usize] = f32::NEG_INFINITY;
            before.push((token, logit));
        }
    }
    if !before.is_empty() && logits.iter().all(|&logit| logit == f32::NEG_INFINITY) {
        let logits = logits.to_mut();
        before.into_iter().for_each(|(token, logit)| logits[token as usize] = logit);
    }
}
