//! How tokens are made: the options that `ask`, `chat` and `up --ask` share. The scheduler checks their ranges.

use std::path::PathBuf;

use clap::Args;
use cuckoo_wire::limits::TOP_LOGPROBS_MAX;
use cuckoo_wire::message::{Generate, Sampling};

/// What is asked for, and how it is drawn.
#[derive(Clone, Debug, Args)]
pub(crate) struct GenerationArgs {
    /// The model to ask [default: the first that the scheduler has]
    #[arg(long = "ask-model", value_name = "NAME")]
    pub(crate) ask_model: Option<String>,
    /// Print the log-probability of each token, and those of so many most probable ones
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(..=TOP_LOGPROBS_MAX as i64))]
    logprobs: Option<u8>,
    #[command(flatten)]
    end: End,
    #[command(flatten)]
    pub(crate) shape: Shape,
    #[command(flatten)]
    draw: Draw,
    #[command(flatten)]
    penalties: Penalties,
}

/// Where an output ends.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Where it ends")]
struct End {
    /// Tokens at most
    #[arg(long, value_name = "N", default_value = "256")]
    max_tokens: u32,
    /// Tokens at least: nothing that would end the answer counts before
    #[arg(long, value_name = "N", default_value = "0")]
    min_tokens: u32,
    /// End before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// End at this token; may be repeated
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    stop_token: Vec<u32>,
    /// End behind the stop text or token rather than before it
    #[arg(long)]
    include_stop: bool,
    /// Go on past the model's own end
    #[arg(long)]
    ignore_eos: bool,
}

/// What an output must look like: one of these at most.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What it looks like")]
#[group(multiple = false)]
pub(crate) struct Shape {
    /// A JSON object
    #[arg(long)]
    pub(crate) json_object: bool,
    /// JSON that satisfies the schema in this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json_schema: Option<PathBuf>,
    /// A match of this regular expression
    #[arg(long, value_name = "PATTERN")]
    pub(crate) regex: Option<String>,
    /// One of these texts; to be repeated
    #[arg(long = "choice", value_name = "TEXT")]
    pub(crate) choices: Vec<String>,
    /// A sentence of the grammar in this file, in llguidance's variant of Lark's syntax
    #[arg(long, value_name = "FILE")]
    pub(crate) grammar: Option<PathBuf>,
}

/// Among which tokens is drawn.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "How tokens are drawn")]
struct Draw {
    /// 0 takes the most probable token; up to 2
    #[arg(long, default_value = "0", allow_negative_numbers = true)]
    temperature: f32,
    /// The same seed gives the same answer
    #[arg(long)]
    seed: Option<u64>,
    /// Only so many of the most probable tokens; 0 is all
    #[arg(long, value_name = "N", default_value = "0")]
    top_k: u32,
    /// Only the most probable tokens that together reach this probability
    #[arg(long, value_name = "P", default_value = "1", allow_negative_numbers = true)]
    top_p: f32,
    /// Only the tokens nearest to the expected surprise that together reach this probability
    #[arg(long, value_name = "P", default_value = "1", allow_negative_numbers = true)]
    typical_p: f32,
    /// Only tokens at least this part as probable as the most probable
    #[arg(long, value_name = "P", default_value = "0", allow_negative_numbers = true)]
    min_p: f32,
    /// How often all top choices but the least probable are left out (XTC); 0 never
    #[arg(long, value_name = "P", default_value = "0", allow_negative_numbers = true)]
    xtc_probability: f32,
    /// How probable a top choice of XTC is
    #[arg(long, value_name = "P", default_value = "0.1", allow_negative_numbers = true)]
    xtc_threshold: f32,
    /// Only these tokens; may be repeated
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    allowed_token: Vec<u32>,
}

/// What makes tokens more or less probable.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Biases and penalties")]
struct Penalties {
    /// Adds to a token's logit, from -100 to 100, e.g. 42=-3.5; may be repeated
    #[arg(long, value_name = "ID=BIAS", value_parser = bias, value_delimiter = ',')]
    logit_bias: Vec<(u32, f32)>,
    /// A text that does not appear; may be repeated
    #[arg(long, value_name = "TEXT")]
    bad_word: Vec<String>,
    /// Makes tokens that occurred less probable; 1 does nothing
    #[arg(long, value_name = "FACTOR", default_value = "1.1", allow_negative_numbers = true)]
    repetition_penalty: f32,
    /// Taken once from tokens that the answer has; from -2 to 2
    #[arg(long, value_name = "BIAS", default_value = "0", allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Taken from a token each time that the answer has it; from -2 to 2
    #[arg(long, value_name = "BIAS", default_value = "0", allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// What a repetition of the allowed length costs (DRY); 0 turns it off
    #[arg(long, value_name = "BIAS", default_value = "0", allow_negative_numbers = true)]
    dry_multiplier: f32,
    /// By how much each further token multiplies that
    #[arg(long, value_name = "FACTOR", default_value = "1.75", allow_negative_numbers = true)]
    dry_base: f32,
    /// Tokens that a repetition may have for nothing
    #[arg(long, value_name = "N", default_value = "2")]
    dry_allowed_length: u32,
    /// How many of the newest tokens DRY looks at [default: all]
    #[arg(long, value_name = "N")]
    dry_penalty_last_n: Option<u32>,
    /// A text over which no repetition reaches; may be repeated [default: line break, colon, quote, asterisk]
    #[arg(long, value_name = "TEXT")]
    dry_sequence_breaker: Vec<String>,
}

impl GenerationArgs {
    /// Sets all of a request but its constraint, which may have to be read from a file.
    pub(crate) fn fill(&self, request: &mut Generate) {
        let (end, penalties) = (&self.end, &self.penalties);
        request.sampling = self.sampling();
        request.logprobs = self.logprobs;
        request.max_tokens = Some(end.max_tokens);
        request.stop.clone_from(&end.stop);
        request.stop_token_ids.clone_from(&end.stop_token);
        request.include_stop = end.include_stop;
        request.ignore_eos = end.ignore_eos;
        request.bad_words.clone_from(&penalties.bad_word);
        let breakers = &penalties.dry_sequence_breaker;
        request.dry_sequence_breakers = (!breakers.is_empty()).then(|| breakers.clone());
    }

    /// As the protocol has it.
    fn sampling(&self) -> Sampling {
        let (draw, penalties) = (&self.draw, &self.penalties);
        Sampling {
            temperature: draw.temperature,
            top_k: draw.top_k,
            top_p: draw.top_p,
            min_p: draw.min_p,
            repetition_penalty: penalties.repetition_penalty,
            presence_penalty: penalties.presence_penalty,
            frequency_penalty: penalties.frequency_penalty,
            logit_bias: penalties.logit_bias.iter().copied().collect(),
            seed: draw.seed,
            typical_p: draw.typical_p,
            dry_multiplier: penalties.dry_multiplier,
            dry_base: penalties.dry_base,
            dry_allowed_length: penalties.dry_allowed_length,
            dry_penalty_last_n: penalties.dry_penalty_last_n.unwrap_or(u32::MAX),
            xtc_probability: draw.xtc_probability,
            xtc_threshold: draw.xtc_threshold,
            min_tokens: self.end.min_tokens,
            allowed_token_ids: draw.allowed_token.iter().copied().collect(),
        }
    }
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(token, bias)| Some((token.parse().ok()?, bias.parse().ok()?)));
    parsed.ok_or_else(|| "a token's id and what is added to its logit, e.g. 42=-3.5".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::Parser;
    use cuckoo_wire::message::{ApiKey, Prompt};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        generation: GenerationArgs,
    }

    fn request(args: &[&str]) -> Generate {
        let line = Line::try_parse_from([&["x"], args].concat()).unwrap();
        let mut request = Generate::new(ApiKey("k".to_owned()), "m".to_owned(), Prompt::Text("p".to_owned()));
        line.generation.fill(&mut request);
        request
    }

    #[test]
    fn without_options_only_what_people_expect_is_set() {
        let plain = request(&[]);
        let sampling = Sampling { temperature: 0.0, repetition_penalty: 1.1, ..Sampling::default() };
        assert_eq!((plain.sampling, plain.max_tokens), (sampling, Some(256)));
        assert_eq!((plain.stop.len(), plain.logprobs, plain.dry_sequence_breakers), (0, None, None));
    }

    #[test]
    fn every_option_reaches_its_field() {
        let words = "--max-tokens 9 --min-tokens 3 --stop a --stop b --stop-token 7,8 --include-stop --ignore-eos \
            --temperature 0.7 --seed 5 --top-k 40 --top-p 0.9 --typical-p 0.8 --min-p 0.05 --xtc-probability 0.5 \
            --xtc-threshold 0.2 --allowed-token 1,2 --logit-bias 3=-1.5 --logit-bias 4=2 --bad-word no \
            --repetition-penalty 1.2 --presence-penalty -0.5 --frequency-penalty 0.25 --dry-multiplier 0.8 --dry-base 2 \
            --dry-allowed-length 4 --dry-penalty-last-n 64 --dry-sequence-breaker ; --logprobs 2";
        let all = request(&words.split_whitespace().collect::<Vec<_>>());
        let sampling = Sampling {
            temperature: 0.7,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.05,
            repetition_penalty: 1.2,
            presence_penalty: -0.5,
            frequency_penalty: 0.25,
            logit_bias: [(3, -1.5), (4, 2.0)].into(),
            seed: Some(5),
            typical_p: 0.8,
            dry_multiplier: 0.8,
            dry_base: 2.0,
            dry_allowed_length: 4,
            dry_penalty_last_n: 64,
            xtc_probability: 0.5,
            xtc_threshold: 0.2,
            min_tokens: 3,
            allowed_token_ids: [1, 2].into(),
        };
        assert_eq!(all.sampling, sampling);
        let text = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        assert_eq!((all.stop, all.stop_token_ids, all.max_tokens), (text(&["a", "b"]), vec![7, 8], Some(9)));
        assert_eq!((all.bad_words, all.dry_sequence_breakers), (text(&["no"]), Some(text(&[";"]))));
        assert_eq!((all.include_stop, all.ignore_eos, all.logprobs), (true, true, Some(2)));
    }

    #[test]
    fn an_output_has_one_shape() {
        assert!(Line::try_parse_from(["x", "--regex", "a", "--json-object"]).is_err());
        assert!(Line::try_parse_from(["x", "--choice", "a", "--choice", "b"]).is_ok());
        assert!(Line::try_parse_from(["x", "--logit-bias", "3:1"]).is_err());
        assert!(Line::try_parse_from(["x", "--logprobs", "21"]).is_err());
    }
}
