//! Whether two models speak of the same tokens: only then can one of them guess what the other will say.

use super::Tokenizer;
use crate::files::ModelFiles;
use crate::gguf::Gguf;

/// How many tokens one vocabulary may have beyond the other: embedding tables are padded, and the padding named.
const PADDING_MAX: usize = 128;

/// Why the tokens of one model are not another's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The messages are the documentation of the variants and their fields.
pub enum OtherTokens {
    #[error("one of the files holds no tokenizer: convert the model again")]
    Missing,
    #[error("its tokenizer is of the kind {found:?}, the other's is {wanted:?}: choose a model of the same family")]
    Kind { found: String, wanted: String },
    #[error("it has {found} tokens, the other {wanted}: choose a model of the same family")]
    Count { found: usize, wanted: usize },
    #[error("token {token} is {found:?}, the other's is {wanted:?}: choose a model of the same family")]
    Token { token: usize, found: String, wanted: String },
}

/// Checks that each token of `other` has the text that it has in `model`, padding at the end of either apart.
fn same_tokens(model: &Gguf, other: &Gguf) -> Result<(), OtherTokens> {
    let kind = |gguf: &Gguf| gguf.str("tokenizer.ggml.model").map(str::to_owned).ok_or(OtherTokens::Missing);
    let (wanted, found) = (kind(model)?, kind(other)?);
    if wanted != found {
        return Err(OtherTokens::Kind { found, wanted });
    }
    const KEY: &str = "tokenizer.ggml.tokens";
    let (Some(wanted), Some(found)) = (model.strings(KEY), other.strings(KEY)) else {
        return Err(OtherTokens::Missing);
    };
    if wanted.len().abs_diff(found.len()) > PADDING_MAX {
        return Err(OtherTokens::Count { found: found.len(), wanted: wanted.len() });
    }
    match wanted.iter().zip(found).enumerate().find(|(_, (wanted, found))| wanted != found) {
        None => Ok(()),
        Some((token, (wanted, found))) => {
            Err(OtherTokens::Token { token, found: found.clone(), wanted: wanted.clone() })
        }
    }
}

/// The same of models in whatever files.
pub fn same_vocabulary(model: &ModelFiles, other: &ModelFiles) -> Result<(), OtherTokens> {
    if let (Some(model), Some(other)) = (model.gguf(), other.gguf()) {
        return same_tokens(model, other);
    }
    let [Ok(model), Ok(other)] = [model, other].map(ModelFiles::tokenizer) else { return Err(OtherTokens::Missing) };
    let (wanted, found) = (model.vocab_len(), other.vocab_len());
    if wanted.abs_diff(found) > PADDING_MAX {
        return Err(OtherTokens::Count { found, wanted });
    }
    let text = |of: &Tokenizer, token| of.token_bytes(token).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let mut tokens = 0..wanted.min(found) as u32;
    match tokens.find(|token| model.token_bytes(*token) != other.token_bytes(*token)) {
        None => Ok(()),
        Some(token) => Err(OtherTokens::Token {
            token: token as usize,
            found: text(&other, token).unwrap_or_default(),
            wanted: text(&model, token).unwrap_or_default(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgufWriter;

    fn file(kind: &str, tokens: usize, odd: Option<usize>) -> Gguf {
        let text = |i| if Some(i) == odd { "odd".to_owned() } else { format!("t{i}") };
        let tokens: Vec<String> = (0..tokens).map(text).collect();
        let writer = GgufWriter::new().meta_str("tokenizer.ggml.model", kind);
        let bytes = writer.meta_strings("tokenizer.ggml.tokens", &tokens).to_bytes();
        Gguf::parse(&bytes, bytes.len() as u64).expect("well formed")
    }

    #[test]
    fn padding_apart_every_token_must_agree() {
        let model = file("gpt2", 300, None);
        assert_eq!(same_tokens(&model, &model), Ok(()));
        assert_eq!(same_tokens(&model, &file("gpt2", 428, None)), Ok(()));
        assert_eq!(same_tokens(&file("gpt2", 428, None), &model), Ok(()));
        assert_eq!(same_tokens(&model, &file("gpt2", 429, None)), Err(OtherTokens::Count { found: 429, wanted: 300 }));
        let (found, wanted) = ("odd".to_owned(), "t299".to_owned());
        assert_eq!(
            same_tokens(&model, &file("gpt2", 300, Some(299))),
            Err(OtherTokens::Token { token: 299, found, wanted })
        );
        let (found, wanted) = ("llama".to_owned(), "gpt2".to_owned());
        assert_eq!(same_tokens(&model, &file("llama", 300, None)), Err(OtherTokens::Kind { found, wanted }));
        let bytes = GgufWriter::new().to_bytes();
        let empty = Gguf::parse(&bytes, bytes.len() as u64).expect("well formed");
        assert_eq!(same_tokens(&model, &empty), Err(OtherTokens::Missing));
    }
}
