//! What an output must look like, and from that the tokens that may come next. No sampling here, and no logits.
//!
//! ```text
//! schema, regex, choice, grammar ──compile──▶ Matcher ──mask──▶ tokens allowed next
//!                                               ▲─────accept──── the token that was drawn
//! ```
//!
//! The parser is llguidance's: an Earley parser over lexemes that are matched by derivatives of regular expressions, so
//! that any prefix of tokens is judged byte by byte, however the vocabulary cuts the text. Strangers write these
//! grammars: their size is bounded by whoever received them, what compiling and each mask may cost is bounded here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{ParserLimits, StopReason, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{ParserFactory, TokenParser};

use crate::tokenizer::Tokenizer;

mod source;
mod termination;
mod vocabulary;

pub use source::Grammar;
pub(crate) use source::{embedded as embedded_schema, quoted};
use vocabulary::Vocabulary;

/// Compiled grammars that are kept for whoever asks for the same again.
const COMPILED_MAX: usize = 16;
/// Stack of the thread that compiles. Rules may refer to one another in a chain as long as the text allows.
const COMPILE_STACK_BYTES: usize = 256 << 20;
/// Of an error's text, so much is shown.
const ERROR_CHARS_MAX: usize = 300;

/// Why there are no masks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// This model's outputs cannot be constrained.
    #[error("outputs of this model cannot be constrained: {0}")]
    Vocabulary(String),
    /// It cannot be read, uses something unsupported, or is too large.
    #[error("{0}")]
    Invalid(String),
    /// No output satisfies it.
    #[error("no output can satisfy it: {0}")]
    Unsatisfiable(String),
    /// A mask would cost too much, or no token of the vocabulary leads on.
    #[error("the output cannot go on: {0}")]
    Stuck(String),
}

/// Compiles grammars for one vocabulary. Share it by `Arc`.
pub struct Constrainer {
    factory: ParserFactory,
    /// Tokens that stand for no text of their own, by name.
    control: BTreeMap<String, u32>,
    /// Compiled grammars, the latest last.
    compiled: Mutex<VecDeque<(Grammar, Matcher)>>,
}

/// Where one output stands in its grammar. Clones go on independently.
#[derive(Clone)]
pub struct Matcher(llguidance::Matcher);

impl Constrainer {
    /// Sorts the vocabulary into a trie: a fraction of a second, once a model.
    ///
    /// # Errors
    /// [`ConstraintError::Vocabulary`] if it has no token that ends an output, or none for some byte of text.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, ConstraintError> {
        let environment: TokEnv = Arc::new(Vocabulary::new(tokenizer)?);
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|e| ConstraintError::Vocabulary(plain(&e.to_string())))?;
        *factory.limits_mut() = limits();
        factory.quiet();
        let tokens = 0..tokenizer.vocab_len() as u32;
        let named = tokens.filter(|token| tokenizer.is_special(*token)).filter_map(|token| {
            let name = std::str::from_utf8(tokenizer.token_bytes(token)?).ok().filter(|name| !name.is_empty())?;
            Some((name.to_owned(), token))
        });
        Ok(Self { factory, control: named.collect(), compiled: Mutex::default() })
    }

    /// The beginning of an output that `grammar` describes. Takes milliseconds, so keep it off threads that must not
    /// wait; a grammar that was compiled lately costs next to nothing.
    ///
    /// # Errors
    /// Whatever is wrong with the grammar, in words for whoever wrote it.
    pub fn compile(&self, grammar: &Grammar) -> Result<Matcher, ConstraintError> {
        if let Some(matcher) = self.recall(grammar) {
            return Ok(matcher);
        }
        let matcher = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(COMPILE_STACK_BYTES);
            let compiling = thread.spawn_scoped(scope, || self.compile_anew(grammar));
            let compiling = compiling.map_err(|e| ConstraintError::Invalid(format!("no thread to compile it: {e}")))?;
            compiling.join().unwrap_or_else(|_| Err(ConstraintError::Invalid("it makes no sense".to_owned())))
        })?;
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if compiled.len() >= COMPILED_MAX {
            compiled.pop_front();
        }
        compiled.push_back((grammar.clone(), matcher.clone()));
        Ok(matcher)
    }

    fn recall(&self, grammar: &Grammar) -> Option<Matcher> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let at = compiled.iter().position(|(known, _)| known == grammar)?;
        let found = compiled.remove(at)?;
        let matcher = found.1.clone();
        compiled.push_back(found);
        Some(matcher)
    }

    fn compile_anew(&self, grammar: &Grammar) -> Result<Matcher, ConstraintError> {
        let parser = self.parser(grammar.top_level(&self.control)?)?;
        termination::check(parser.parser.grammar(), self.factory.limits())?;
        let matcher = Matcher(llguidance::Matcher::new(Ok(parser)));
        // What cannot begin is found here rather than at a miner.
        match matcher.clone().mask() {
            Ok(_) => Ok(matcher),
            Err(ConstraintError::Stuck(why)) if why == StopReason::NoExtensionBias.to_string() => {
                Err(ConstraintError::Unsatisfiable("no token of the vocabulary can be its beginning".to_owned()))
            }
            Err(why) => Err(ConstraintError::Invalid(why.to_string())),
        }
    }

    fn parser(&self, grammar: TopLevelGrammar) -> Result<TokenParser, ConstraintError> {
        self.factory.create_parser(grammar).map_err(|e| invalid(&format!("{e:#}")))
    }
}

impl Matcher {
    /// The tokens that may come next: of token `id`, bit `id % 32` of word `id / 32`. Tokens that end an output are
    /// among them where it may end, and alone where it must.
    ///
    /// # Errors
    /// [`ConstraintError::Stuck`], which stays.
    pub fn mask(&mut self) -> Result<Vec<u32>, ConstraintError> {
        let mask = self.0.compute_mask_or_eos().map_err(|e| stuck(&e.to_string()))?;
        match mask.is_zero() {
            true => Err(ConstraintError::Stuck("no token of the vocabulary may come next".to_owned())),
            false => Ok(mask.into()),
        }
    }

    /// Goes on past `tokens`. After the end, nothing changes any more.
    ///
    /// # Errors
    /// [`ConstraintError::Stuck`] if one of them was not allowed; it and those after it are not taken into account.
    pub fn accept(&mut self, tokens: &[u32]) -> Result<(), ConstraintError> {
        for token in tokens {
            if self.0.is_stopped() && !self.0.is_error() {
                return Ok(());
            }
            let taken = self.0.try_consume_tokens(&[*token]).map_err(|e| stuck(&e.to_string()))?;
            if taken == 0 && !self.0.is_stopped() {
                return Err(ConstraintError::Stuck(format!("token {token} was not allowed")));
            }
        }
        Ok(())
    }

    /// Whether nothing can follow but the end.
    pub fn is_over(&self) -> bool {
        self.0.is_stopped()
    }
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matcher").field("is_over", &self.is_over()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Constrainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constrainer").finish_non_exhaustive()
    }
}

/// What a grammar may cost. The figures per millisecond are llguidance's own.
fn limits() -> ParserLimits {
    ParserLimits {
        // 20 ms: the largest schemas in public collections need half of it.
        initial_lexer_fuel: 1_000_000,
        // 7 ms for a mask whose lexemes were never met before.
        step_lexer_fuel: 100_000,
        // Up to 2 kB each.
        max_lexer_states: 20_000,
        max_grammar_size: 200_000,
        // Errors are shown to whoever sent the grammar, not to whoever debugs the parser.
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

fn invalid(why: &str) -> ConstraintError {
    match why.contains("Unsatisfiable") || why.contains("unsatisfiable") {
        true => ConstraintError::Unsatisfiable(plain(why)),
        false => ConstraintError::Invalid(plain(why)),
    }
}

fn stuck(why: &str) -> ConstraintError {
    ConstraintError::Stuck(plain(why))
}

/// The first line of an error, without what the parser says of itself.
fn plain(why: &str) -> String {
    let why = why.split("\n<").next().unwrap_or_default().trim();
    if why.starts_with("panic:") {
        return "it makes no sense to the parser".to_owned();
    }
    let line: Vec<&str> = why.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    line.join(" ").chars().take(ERROR_CHARS_MAX).collect()
}

#[cfg(test)]
pub(crate) mod tests;
