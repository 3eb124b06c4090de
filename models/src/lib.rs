//! What a model is on disk and on the network. No tensor is computed here.
//!
//! ```text
//! a name ──builtin──▶ source ──fetch──▶ shelf (weights by hash) ──▶ files ──▶ arch       what is computed, proved against tensors
//!                                         │           gguf or folder ┘ ├───▶ tokenizer  text ⇄ tokens
//!                                      manifest (signed)               └───▶ template   messages ▶ prompt
//! ```
//!
//! Everything read here was written by strangers: sizes are bounded before memory is taken, arithmetic is checked,
//! and every refusal says what was wrong and what to do.
#![forbid(unsafe_code)]

pub mod builtin;

pub mod source;

pub mod shelf;

pub mod manifest;

mod digest;

pub mod gguf;

pub mod safetensors;

pub mod files;

pub mod arch;

pub mod adapter;

pub mod tokenizer;

pub mod template;

pub mod constraint;

pub mod tools;

pub use digest::{ManifestId, ParseHashError, Sha256Hash, WeightsHash};

pub use adapter::{Adapter, AdapterError};
pub use arch::{ArchError, ArchSpec};
pub use builtin::{BUILT_IN, BuiltIn, DEFAULT, ResolveError, Resolved, resolve};
pub use constraint::{Constrainer, ConstraintError, Grammar, Matcher};
pub use files::{FilesError, ModelFiles, Packer, Tensor, TensorKind};
pub use gguf::{GgmlType, Gguf, GgufError, GgufWriter, TensorInfo};
pub use manifest::{Base, Manifest, ManifestError, SignedManifest};
pub use safetensors::{Dtype, SafeTensor, SafeTensors, SafetensorsError};
pub use shelf::{Digests, Phase, Progress, Shelf, ShelfError, Shelved};
pub use source::{FetchConfig, FetchError, ParseSourceError, Source};
pub use template::{ChatTemplate, Conversation, Message, TemplateError};
pub use tokenizer::{Decoder, OtherTokens, TokenizeError, Tokenizer, TokenizerError, same_vocabulary};
pub use tools::{CallGrammar, Dialect, Syntax, Tool, ToolChat};
