//! `/v1/embeddings`: from OpenAI's JSON to a request for vectors, and from the market's replies back. Pure, and as strict as
//! its neighbours: what it cannot honour it refuses, what it does not know it lists.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cuckoo_wire::limits;
use cuckoo_wire::message::{ApiKey, Embed, EmbedInput, Refusal, RefusalCode, Reply, Usage};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::answer::UsageBody;
use super::failure::Failure;
use super::fields::{self, Fields};
use super::ignored::Ignored;
use super::request::max_price;

/// The parameters that this endpoint understands besides model and input.
pub(super) const SUPPORTED_PARAMETERS: &[&str] = &["encoding_format", "dimensions", "max_price"];

/// Fields of other servers' interfaces that would change the vectors, with the values that ask for nothing.
const UNSUPPORTED: &[(&str, &[&str])] = &[
    ("truncate", &["false", "\"NONE\""]),
    ("truncate_prompt_tokens", &[]),
    ("normalize", &["true"]),
    ("input_type", &[]),
    ("task", &[]),
    ("prompt", &[]),
    ("prompt_name", &[]),
    ("add_special_tokens", &["true"]),
];

/// A request for vectors, and how the answer is to be told.
#[derive(Debug)]
pub(super) struct Asked {
    /// What the market is asked for; its values are in range.
    pub(super) embed: Embed,
    /// How vectors are written.
    pub(super) encoding: Encoding,
    /// Fields that were not used.
    pub(super) ignored: Ignored,
}

/// How a vector is written in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// As numbers.
    Float,
    /// As the bytes of its `f32`s, little-endian, in base64.
    Base64,
}

/// Reads a request's body. Errors name the field at fault.
pub(super) fn translate(body: Map<String, Value>, api_key: ApiKey) -> Result<Asked, Refusal> {
    let mut fields = Fields::of_body(body);
    let mut ignored = Ignored::default();
    fields::refuse_unsupported(&mut fields, UNSUPPORTED)?;
    let model = match fields.text("model")? {
        Some(model) if !model.is_empty() => model,
        _ => return Err(Refusal::invalid("model", "model is missing: name one of those that /v1/models lists")),
    };
    let encoding = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => Encoding::Float,
        Some("base64") => Encoding::Base64,
        Some(other) => {
            let got = fields::quoted(&Value::String(other.to_owned()));
            let why = format!("encoding_format is {got}: it must be \"float\" or \"base64\"");
            return Err(Refusal::invalid("encoding_format", why));
        }
    };
    let embed = Embed {
        dimensions: fields.count("dimensions")?,
        max_price: max_price(&mut fields, &mut ignored)?,
        ..Embed::new(api_key, model, inputs(&mut fields)?)
    };
    embed.check()?;
    fields.rest(&mut ignored);
    Ok(Asked { embed, encoding, ignored })
}

/// A string, an array of strings, an array of token ids, or an array of such arrays.
fn inputs(fields: &mut Fields) -> Result<Vec<EmbedInput>, Refusal> {
    let expected = "a string, an array of strings, an array of token ids, or an array of such arrays";
    let items = match fields.take("input") {
        None => return Err(Refusal::invalid("input", format!("input is missing: send {expected}"))),
        Some(Value::String(text)) => return Ok(vec![EmbedInput::Text(text)]),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(fields::wrong("input", expected, &other)),
    };
    if matches!(items.first(), Some(Value::Number(_))) {
        return Ok(vec![token_ids("input", &items)?]);
    }
    // Looked at before the texts are, so that a flood of them costs nothing.
    if items.len() > limits::EMBED_INPUTS_MAX {
        let (got, max) = (items.len(), limits::EMBED_INPUTS_MAX);
        return Err(Refusal::invalid("input", format!("input has {got} texts: at most {max} are accepted")));
    }
    let input = |(i, item)| match item {
        Value::String(text) => Ok(EmbedInput::Text(text)),
        Value::Array(ids) => token_ids(&format!("input[{i}]"), &ids),
        other => Err(fields::wrong(&format!("input[{i}]"), "a string or an array of token ids", &other)),
    };
    items.into_iter().enumerate().map(input).collect()
}

fn token_ids(path: &str, items: &[Value]) -> Result<EmbedInput, Refusal> {
    if items.len() > limits::PROMPT_TOKENS_MAX {
        let (got, max) = (items.len(), limits::PROMPT_TOKENS_MAX);
        return Err(Refusal::invalid(path, format!("{path} has {got} tokens: at most {max} are accepted")));
    }
    let id = |(i, item)| fields::count(&format!("{path}[{i}]"), item);
    Ok(EmbedInput::Tokens(items.iter().enumerate().map(id).collect::<Result<_, _>>()?))
}

/// A whole answer, as far as it has come.
#[derive(Debug)]
pub(super) struct Vectors {
    model: String,
    encoding: Encoding,
    vectors: Vec<Vec<f32>>,
}

impl Vectors {
    /// Nothing yet.
    pub(super) fn new(model: String, encoding: Encoding) -> Self {
        Self { model, encoding, vectors: Vec::new() }
    }

    /// Takes the next reply; `None` is the end of the market's channel. Gives the response's body at the end.
    pub(super) fn take(&mut self, reply: Option<Reply>) -> Result<Option<String>, Failure> {
        let bug = |why: &str| Failure::from(Refusal::new(RefusalCode::Internal, format!("{why}: report this")));
        match reply {
            Some(Reply::Embedding { index, vector }) if index as usize == self.vectors.len() => {
                self.vectors.push(vector);
                Ok(None)
            }
            Some(Reply::Finished { usage, .. }) => Ok(Some(self.body(&usage))),
            Some(Reply::Refused(refusal)) => {
                let failure = Failure::from(refusal);
                // Vectors that came before were paid for.
                Err(if self.vectors.is_empty() { failure } else { failure.after_tokens() })
            }
            Some(_) => Err(bug("the market answered another question")),
            None => Err(bug("the answer broke off without a reason")),
        }
    }

    fn body<'s>(&'s self, usage: &Usage) -> String {
        let encoding = self.encoding;
        let item = |(index, vector): (usize, &'s Vec<f32>)| Item {
            object: "embedding",
            index,
            embedding: Written { vector, encoding },
        };
        let data = self.vectors.iter().enumerate().map(item).collect();
        let body = Body { object: "list", data, model: &self.model, usage: usage.into() };
        serde_json::to_string(&body).expect("the answer's types have string keys only")
    }
}

#[derive(Serialize)]
struct Body<'a> {
    object: &'static str,
    data: Vec<Item<'a>>,
    model: &'a str,
    usage: UsageBody,
}

#[derive(Serialize)]
struct Item<'a> {
    object: &'static str,
    index: usize,
    embedding: Written<'a>,
}

/// A vector as it was asked for.
struct Written<'a> {
    vector: &'a [f32],
    encoding: Encoding,
}

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.encoding {
            Encoding::Float => self.vector.serialize(serializer),
            Encoding::Base64 => {
                let bytes: Vec<u8> = self.vector.iter().flat_map(|v| v.to_le_bytes()).collect();
                serializer.serialize_str(&STANDARD.encode(bytes))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use cuckoo_wire::message::FinishReason;
    use proptest::prelude::*;
    use serde_json::json;

    fn asked(body: Value) -> Result<Asked, Refusal> {
        translate(body.as_object().unwrap().clone(), ApiKey("k".into()))
    }

    fn with(input: Value) -> Result<Vec<EmbedInput>, Refusal> {
        asked(json!({"model": "m", "input": input})).map(|asked| asked.embed.inputs)
    }

    fn text(text: &str) -> EmbedInput {
        EmbedInput::Text(text.to_owned())
    }

    #[test]
    fn every_form_of_input_is_read() {
        assert_eq!(with(json!("a")).unwrap(), [text("a")]);
        assert_eq!(with(json!(["a", "b"])).unwrap(), [text("a"), text("b")]);
        assert_eq!(with(json!([1, 2])).unwrap(), [EmbedInput::Tokens(vec![1, 2])]);
        assert_eq!(with(json!([[1], [2, 3]])).unwrap(), [EmbedInput::Tokens(vec![1]), EmbedInput::Tokens(vec![2, 3])]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let many = vec!["a"; limits::EMBED_INPUTS_MAX + 1];
        let long = "a".repeat(limits::PROMPT_BYTES_MAX + 1);
        let ids = vec![1; limits::PROMPT_TOKENS_MAX + 1];
        for (input, param, said) in [
            (json!(""), "input[0]", "empty"),
            (json!([]), "input", "empty"),
            (json!(["a", ""]), "input[1]", "empty"),
            (json!([[1], []]), "input[1]", "empty"),
            (json!([1, "a"]), "input[1]", "whole number"),
            (json!([1, -1]), "input[1]", "whole number"),
            (json!(["a", 1]), "input[1]", "string"),
            (json!([["a"]]), "input[0][0]", "whole number"),
            (json!({"text": "a"}), "input", "object"),
            (json!(7), "input", "string"),
            (Value::Null, "input", "missing"),
            (json!(many), "input", "2049 texts"),
            (json!(long), "input", "1048577 bytes"),
            (json!(ids), "input", "131073 tokens"),
        ] {
            let refusal = with(input.clone()).unwrap_err();
            assert_eq!(refusal.param.as_deref(), Some(param), "{refusal}");
            assert!(refusal.message.contains(said), "{refusal}");
        }
        for (name, value) in [
            ("model", json!("")),
            ("encoding_format", json!("int8")),
            ("dimensions", json!(0)),
            ("dimensions", json!("384")),
            ("truncate", json!(true)),
            ("input_type", json!("query")),
            ("normalize", json!(false)),
        ] {
            let mut body = json!({"model": "m", "input": "a"});
            body[name] = value;
            assert_eq!(asked(body).unwrap_err().param.as_deref(), Some(name));
        }
    }

    #[test]
    fn options_are_read_and_the_rest_is_listed() {
        let body = json!({
            "model": "m", "input": "a", "encoding_format": "base64", "dimensions": 384, "user": "me", "truncate": false,
            "max_price": {"prompt": 1},
        });
        let asked = asked(body).unwrap();
        assert_eq!((asked.encoding, asked.embed.dimensions), (Encoding::Base64, Some(384)));
        assert_eq!(asked.embed.max_price.unwrap().input_per_mtok, limits::NANO_PER_CREDIT);
        assert_eq!(asked.ignored.header().unwrap(), "user");
    }

    fn answer(encoding: Encoding) -> Value {
        let mut answer = Vectors::new("m".to_owned(), encoding);
        for (index, vector) in [vec![1.0, -0.5], vec![0.1, 3e-8]].into_iter().enumerate() {
            assert!(answer.take(Some(Reply::Embedding { index: index as u32, vector })).unwrap().is_none());
        }
        let usage = Usage { prompt_tokens: 7, ..Usage::default() };
        let body = answer.take(Some(Reply::Finished { reason: FinishReason::Stop, usage })).unwrap().unwrap();
        serde_json::from_str(&body).unwrap()
    }

    #[test]
    fn answers_have_the_shape_that_clients_know() {
        let body = answer(Encoding::Float);
        assert_eq!((&body["object"], &body["model"]), (&json!("list"), &json!("m")));
        assert_eq!(body["data"][0], json!({"object": "embedding", "index": 0, "embedding": [1.0, -0.5]}));
        assert_eq!((&body["usage"]["prompt_tokens"], &body["usage"]["total_tokens"]), (&json!(7), &json!(7)));
        let body = answer(Encoding::Base64);
        let bytes = STANDARD.decode(body["data"][1]["embedding"].as_str().unwrap()).unwrap();
        assert_eq!(bytes, [0.1f32.to_le_bytes(), 3e-8f32.to_le_bytes()].concat());
    }

    #[test]
    fn an_answer_that_breaks_off_is_a_failure() {
        let mut answer = Vectors::new("m".to_owned(), Encoding::Float);
        assert!(answer.take(None).is_err());
        assert!(answer.take(Some(Reply::Embedding { index: 1, vector: vec![1.0] })).is_err(), "out of order");
        assert!(answer.take(Some(Reply::Refused(Refusal::new(RefusalCode::MinerFailed, "gone")))).is_err());
    }

    proptest! {
        /// Floats survive as JSON, bit for bit.
        #[test]
        fn numbers_survive(values in prop::collection::vec(-1.0f32..1.0, 1..20)) {
            let written = serde_json::to_string(&Written { vector: &values, encoding: Encoding::Float }).unwrap();
            let read: Vec<f32> = serde_json::from_str(&written).unwrap();
            prop_assert_eq!(read, values);
        }
    }
}
