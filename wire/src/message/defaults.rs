//! Messages with nothing special about them, to be changed where something is.

use std::collections::{BTreeMap, BTreeSet};

use super::{ApiKey, Assign, ChatMessage, Generate, Prompt, ReplicaId, Sampling, SequenceId, ServiceClass};

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: None,
            typical_p: 1.0,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_penalty_last_n: u32::MAX,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            min_tokens: 0,
            allowed_token_ids: BTreeSet::new(),
        }
    }
}

impl ChatMessage {
    /// A turn of text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }
}

impl Generate {
    /// Any prompt, with defaults for everything else.
    pub fn new(api_key: ApiKey, model: String, prompt: Prompt) -> Self {
        Self {
            api_key,
            model,
            prompt,
            sampling: Sampling::default(),
            stop: Vec::new(),
            max_tokens: None,
            ignore_eos: false,
            max_price: None,
            stop_token_ids: Vec::new(),
            include_stop: false,
            bad_words: Vec::new(),
            dry_sequence_breakers: None,
            logprobs: None,
            prompt_logprobs: None,
            echo: false,
            constraint: None,
            tools: None,
            class: ServiceClass::default(),
        }
    }
}

impl Assign {
    /// A prompt with nothing special: default sampling and a seed of 0, no stop tokens, nobody to share blocks with but its
    /// like, as many blocks as it needs at most, and nothing to send before there is credit.
    pub fn new(replica: ReplicaId, sequence: SequenceId, prompt: Vec<u32>, max_new: u32, block_tokens: u32) -> Self {
        let prompt_tokens = prompt.len() as u32;
        Self {
            replica,
            sequence,
            tokens: prompt,
            prompt_tokens,
            max_new,
            sampling: Sampling::default(),
            seed: 0,
            stop_tokens: Vec::new(),
            credit: 0,
            blocks: Self::blocks_for(prompt_tokens, max_new, block_tokens),
            cache_salt: [0; 16],
            bad_words: Vec::new(),
            dry_breakers: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            constraint: None,
            adapter: None,
        }
    }
}
