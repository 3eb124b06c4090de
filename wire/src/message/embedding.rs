//! Vectors of texts: what a developer asks for, and what a miner is given.

use serde::{Deserialize, Serialize};

use super::check::too_many;
use super::{ApiKey, Invalid, Price, Refusal, ReplicaId, SequenceId};
use crate::limits;

/// What a model is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Tokens that follow others.
    #[default]
    Generate,
    /// One vector of a text.
    Embed,
}

/// One request for vectors of texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Embed {
    /// Who pays.
    pub api_key: ApiKey,
    /// The model's name in the catalog.
    pub model: String,
    /// The texts.
    pub inputs: Vec<EmbedInput>,
    /// How many numbers a vector must have; refused where the model's have others.
    pub dimensions: Option<u32>,
    /// Use only miners that ask at most this.
    pub max_price: Option<Price>,
}

/// One text; never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EmbedInput {
    /// Tokenized, with what the model wants around a text.
    Text(String),
    /// Taken as it is.
    Tokens(Vec<u32>),
}

/// One text for one replica of an encoder. Answered by one [`super::StepItem`] that ends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encode {
    /// Where.
    pub replica: ReplicaId,
    /// Its name on this connection.
    pub sequence: SequenceId,
    /// All of the text.
    pub tokens: Vec<u32>,
    /// What it takes from the window: blocks for `tokens`.
    pub blocks: u32,
}

impl Embed {
    /// Texts, with defaults for everything else.
    pub fn new(api_key: ApiKey, model: String, inputs: Vec<EmbedInput>) -> Self {
        Self { api_key, model, inputs, dimensions: None, max_price: None }
    }

    /// Refuses what no model and no account could make good.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.model.len() > limits::NAME_BYTES_MAX {
            return Err(too_many("model", self.model.len(), limits::NAME_BYTES_MAX, "bytes"));
        }
        if self.inputs.is_empty() {
            return Err(Refusal::invalid("input", "input is empty: send at least one text"));
        }
        if self.inputs.len() > limits::EMBED_INPUTS_MAX {
            return Err(too_many("input", self.inputs.len(), limits::EMBED_INPUTS_MAX, "texts"));
        }
        let (mut bytes, mut tokens) = (0, 0);
        for (i, input) in self.inputs.iter().enumerate() {
            let (len, what) = match input {
                EmbedInput::Text(text) => (text.len(), &mut bytes),
                EmbedInput::Tokens(ids) => (ids.len(), &mut tokens),
            };
            if len == 0 {
                let path = format!("input[{i}]");
                return Err(Refusal::invalid(&path, format!("{path} is empty: leave it out")));
            }
            *what += len;
        }
        match () {
            () if bytes > limits::PROMPT_BYTES_MAX => {
                Err(too_many("input", bytes, limits::PROMPT_BYTES_MAX, "bytes in all texts together"))
            }
            () if tokens > limits::PROMPT_TOKENS_MAX => {
                Err(too_many("input", tokens, limits::PROMPT_TOKENS_MAX, "tokens in all texts together"))
            }
            () if self.dimensions == Some(0) => {
                Err(Refusal::invalid("dimensions", "dimensions is 0: ask for as many as the model's vectors have"))
            }
            () if self.max_price.is_some_and(|price| !price.is_sane()) => {
                Err(Refusal::invalid("max_price", "max_price is absurdly high"))
            }
            () => Ok(()),
        }
    }
}

impl Encode {
    /// Refuses what no text can be.
    pub fn check(&self) -> Result<(), Invalid> {
        match self.tokens.len() {
            0 => Err(Invalid("a text of no tokens".to_owned())),
            known if known > limits::PROMPT_TOKENS_MAX => Err(Invalid(format!("a text of {known} tokens"))),
            _ => Ok(()),
        }
    }
}

/// Refuses what cannot be a text's vector.
pub(super) fn check_vector(vector: &[f32]) -> Result<(), Invalid> {
    match () {
        () if vector.is_empty() || vector.len() > limits::EMBEDDING_DIMS_MAX => {
            Err(Invalid(format!("a vector of {} numbers", vector.len())))
        }
        () if vector.iter().any(|v| !v.is_finite()) => Err(Invalid("a vector with numbers that are none".to_owned())),
        () => Ok(()),
    }
}
