//! Fields of OpenAI's and of other servers' interfaces that would change the answer and that this door cannot honour.
//! Never a reason to refuse a value that asks for nothing.

use cuckoo_wire::message::Refusal;

use super::super::fields::{self, Fields};

/// Each field with the values, as JSON, that ask for nothing. `null` always does.
const UNSUPPORTED: &[(&str, &[&str])] = &[
    // More than one answer, or another answer than the one continuation.
    ("n", &["1"]),
    ("best_of", &["1"]),
    ("use_beam_search", &["false"]),
    ("suffix", &["\"\""]),
    // The answer in other terms.
    ("return_token_ids", &["false"]),
    ("return_tokens_as_token_ids", &["false"]),
    // Tools under their older names, and those that somebody else would run.
    ("functions", &["[]"]),
    ("function_call", &["\"none\""]),
    ("web_search_options", &[]),
    // Constrained output, in words that are not understood.
    ("guided_decoding_backend", &[]),
    ("guided_whitespace_pattern", &[]),
    ("structural_tag", &[]),
    ("grammar", &["\"\""]),
    ("json_schema", &[]),
    // Other than text.
    ("modalities", &["[\"text\"]"]),
    ("audio", &[]),
    // Other sampling and other ends.
    ("top_a", &["0", "0.0"]),
    ("mirostat", &["0"]),
    ("length_penalty", &["1", "1.0"]),
    ("repeat_penalty", &["1", "1.0"]),
    // Another prompt than the one sent.
    ("truncation", &["\"disabled\""]),
    ("truncate_prompt_tokens", &[]),
    ("transforms", &["[]"]),
    ("add_generation_prompt", &["true"]),
    ("continue_final_message", &["false"]),
    ("chat_template", &[]),
    ("chat_template_kwargs", &["{}"]),
    // Conditions on who may answer.
    ("provider", &["{}"]),
];

/// Takes these fields out, and refuses the first that asks for something.
pub(super) fn refuse(fields: &mut Fields) -> Result<(), Refusal> {
    fields::refuse_unsupported(fields, UNSUPPORTED)
}
