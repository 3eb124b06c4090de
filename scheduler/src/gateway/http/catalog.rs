//! The models on offer, in OpenAI's shape with what a client needs to choose. Never asks the market itself.

use cuckoo_wire::message::ModelInfo;
use serde::Serialize;

use super::decimal;
use super::embeddings;
use super::request::SUPPORTED_PARAMETERS;

/// `/v1/models`
#[derive(Debug, Serialize)]
pub(super) struct ModelList {
    object: &'static str,
    data: Vec<Model>,
}

/// `/v1/models/{id}`
#[derive(Debug, Serialize)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: String,
    /// Prompt and output together; clients look for it under either name.
    context_length: u32,
    max_model_len: u32,
    /// `null` while nobody serves the model.
    pricing: Option<Pricing>,
    quantization: String,
    license: String,
    author: String,
    royalty_bps: u16,
    replicas: u32,
    /// Numbers in the vectors that it makes of texts; `null` for a model that generates.
    embedding_dimensions: Option<u32>,
    /// The model that this is an adapter of, as in vLLM.
    parent: Option<String>,
    supported_parameters: &'static [&'static str],
}

/// Credits per token, as decimal strings.
#[derive(Debug, Serialize)]
struct Pricing {
    prompt: String,
    completion: String,
}

impl From<Vec<ModelInfo>> for ModelList {
    fn from(models: Vec<ModelInfo>) -> Self {
        Self { object: "list", data: models.into_iter().map(Model::from).collect() }
    }
}

impl From<ModelInfo> for Model {
    fn from(info: ModelInfo) -> Self {
        let author = info.author.to_string();
        Self {
            id: info.name,
            object: "model",
            created: info.created_unix,
            owned_by: author.clone(),
            context_length: info.context_tokens,
            max_model_len: info.context_tokens,
            pricing: info.lowest_ask.map(|price| Pricing {
                prompt: decimal::credits_per_token(price.input_per_mtok),
                completion: decimal::credits_per_token(price.output_per_mtok),
            }),
            quantization: info.quantization,
            license: info.license,
            author,
            royalty_bps: info.royalty_bps,
            replicas: info.replicas,
            embedding_dimensions: info.embedding_dims,
            parent: info.parent,
            supported_parameters: match info.embedding_dims {
                Some(_) => embeddings::SUPPORTED_PARAMETERS,
                None => SUPPORTED_PARAMETERS,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use cuckoo_wire::PeerId;
    use cuckoo_wire::message::Price;
    use serde_json::{Value, json};

    fn info(lowest_ask: Option<Price>) -> ModelInfo {
        ModelInfo {
            name: "wren".to_owned(),
            context_tokens: 8192,
            quantization: "Q4_1".to_owned(),
            license: "Apache-2.0".to_owned(),
            author: PeerId([7; 32]),
            royalty_bps: 250,
            created_unix: 1_700_000_000,
            replicas: 3,
            lowest_ask,
            embedding_dims: None,
            parent: None,
        }
    }

    #[test]
    fn a_model_says_what_a_client_needs() {
        let price = Price { input_per_mtok: 20_000_000, output_per_mtok: 60_000_000 };
        let list = serde_json::to_value(ModelList::from(vec![info(Some(price))])).unwrap();
        let author = PeerId([7; 32]).to_string();
        let expected = json!({"object": "list", "data": [{
            "id": "wren", "object": "model", "created": 1_700_000_000, "owned_by": author, "author": author,
            "context_length": 8192, "max_model_len": 8192, "quantization": "Q4_1", "license": "Apache-2.0",
            "royalty_bps": 250, "replicas": 3, "embedding_dimensions": null, "parent": null,
            "supported_parameters": SUPPORTED_PARAMETERS,
            "pricing": {"prompt": "0.00000002", "completion": "0.00000006"},
        }]});
        assert_eq!(list, expected);
    }

    #[test]
    fn an_encoder_says_how_wide_its_vectors_are() {
        let model = serde_json::to_value(Model::from(ModelInfo { embedding_dims: Some(384), ..info(None) })).unwrap();
        assert_eq!(model["embedding_dimensions"], 384);
        assert!(model["supported_parameters"].as_array().unwrap().contains(&json!("encoding_format")));
    }

    #[test]
    fn an_adapter_names_its_base() {
        let adapter = ModelInfo { parent: Some("robin".to_owned()), ..info(None) };
        assert_eq!(serde_json::to_value(Model::from(adapter)).unwrap()["parent"], "robin");
    }

    #[test]
    fn a_model_that_nobody_serves_has_no_price() {
        assert_eq!(serde_json::to_value(Model::from(info(None))).unwrap()["pricing"], Value::Null);
    }
}
