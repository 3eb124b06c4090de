//! Calls of tools: how a model writes them, how they are read back while they come, and what keeps them well-formed.
//!
//! ```text
//! template ──detect──▶ Dialect ──┬─ messages ▶ prompt          tools, calls and answers in the model's own words
//!                                ├─ grammar  ▶ masks           no output but text and calls of these tools
//!                                └─ Parser   ▶ text │ call │ arguments, as they come
//! ```
//!
//! A syntax is data (a row of [`SYNTAXES`]); one parser, one grammar and one writer read it, so they cannot disagree.

mod detect;
mod generic;
mod grammar;
mod json;
mod parser;
mod syntax;
#[cfg(test)]
mod tests;

pub use detect::{Dialect, Tool, ToolChat};
pub use grammar::CallGrammar;
pub use parser::{Event, Kept, Parser, overlap};
pub use syntax::{SYNTAXES, Syntax};
