//! Structured output: a table of schemas, regular expressions, choices and grammars, good and bad, on the real
//! vocabulary with random logits; and the real model through the batch, bit for bit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cuckoo_kernels::Cpu;
use cuckoo_kernels::KvKind;
use cuckoo_kernels::ops::KV_BLOCK_TOKENS;
use cuckoo_kernels::sampling::{SampleRequest, SamplingParams, TokenHistory, TokenMask, draw};
use cuckoo_models::{Constrainer, ConstraintError, Grammar, ModelFiles, Tokenizer};
use cuckoo_runtime::{Batch, BatchLimits, Engine, MaskWorkers, SharedMatcher};
use cuckoo_wire::message::{Assign, Constraint, End, ReplicaId, Sampling, SequenceId, WeightsHash};
use serde_json::Value;

use crate::support::weights;

/// Tokens of an output at most; long before, everything is done to end it.
const OUTPUT_TOKENS_MAX: usize = 1_500;
/// From here on, tokens that close something are preferred more and more.
const ENDING_FROM: usize = 24;

fn table() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/structured.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn list<'t>(table: &'t Value, name: &str) -> &'t [Value] {
    table[name].as_array().unwrap()
}

/// Random logits, and what a draw needs besides.
struct Walker {
    tokenizer: Tokenizer,
    constrainer: Constrainer,
    rows: Vec<Vec<f32>>,
    /// Tokens that close something (an output, a string, an object), and those of other punctuation.
    closing: [Vec<u32>; 2],
}

impl Walker {
    fn new() -> Self {
        let tokenizer = ModelFiles::open(weights()).unwrap().tokenizer().unwrap();
        let mut state = 7u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 20) as f32 - 8.0
        };
        let rows = (0..16).map(|_| (0..tokenizer.vocab_len()).map(|_| random()).collect()).collect();
        let made_of = |token: u32, of: &[u8]| tokenizer.token_bytes(token).unwrap().iter().all(|b| of.contains(b));
        let all = 0..tokenizer.vocab_len() as u32;
        let closing = [
            all.clone().filter(|t| tokenizer.eos_ids().contains(t) || made_of(*t, b"\"]})")).collect(),
            all.filter(|t| made_of(*t, b"@.,;</> :-")).collect(),
        ];
        let constrainer = Constrainer::new(&tokenizer).unwrap();
        Self { tokenizer, constrainer, rows, closing }
    }

    /// One output of random logits through masks and sampler; the state of the matcher is rebuilt on the way.
    fn output(&self, grammar: &Grammar, seed: u64) -> String {
        let mut matcher = self.constrainer.compile(grammar).unwrap_or_else(|e| panic!("{grammar:?}: {e}"));
        let (mut tokens, history) = (Vec::new(), TokenHistory::default());
        let temperature = [0.0, 0.7, 1.0, 1.5][seed as usize % 4];
        let (top_k, top_p) = ([0, 40, 0, 5][seed as usize % 4], [1.0, 1.0, 0.9, 1.0][seed as usize % 4]);
        for position in 0..OUTPUT_TOKENS_MAX {
            if position == 5 {
                matcher = self.constrainer.compile(grammar).unwrap();
                matcher.accept(&tokens).unwrap();
            }
            let words = matcher.mask().unwrap_or_else(|e| panic!("{grammar:?} after {:?}: {e}", self.text(&tokens)));
            let mask = TokenMask::from_words(words);
            let haste = position.saturating_sub(ENDING_FROM) as f32;
            let [closing, punctuation] = &self.closing;
            let closing = closing.iter().map(|t| (*t, haste));
            let logit_bias = closing.chain(punctuation.iter().map(|t| (*t, haste / 2.0))).collect();
            let params = SamplingParams { temperature, top_k, top_p, logit_bias, ..SamplingParams::default() };
            let row = (seed as usize * 5 + position) % self.rows.len();
            let request = SampleRequest {
                row: 0,
                params: &params,
                seed,
                position: position as u64,
                history: &history,
                forbidden: &[],
                allowed: Some(&mask),
            };
            let token = draw(&self.rows[row], &request).unwrap().token;
            matcher.accept(&[token]).unwrap_or_else(|e| panic!("{grammar:?}: {e}"));
            if self.tokenizer.eos_ids().contains(&token) {
                return self.text(&tokens);
            }
            tokens.push(token);
        }
        panic!("{grammar:?} does not end: {:?}", self.text(&tokens));
    }

    fn text(&self, tokens: &[u32]) -> String {
        let mut decoder = self.tokenizer.decoder();
        let mut text: String = tokens.iter().filter_map(|t| decoder.push(*t)).collect();
        text.extend(decoder.finish());
        text
    }

    fn outputs(&self, grammar: &Grammar) -> impl Iterator<Item = String> {
        (0..4).map(|seed| self.output(grammar, seed))
    }
}

fn whole(regex: &str) -> regex::Regex {
    let inner = regex.trim_start_matches('^').trim_end_matches('$');
    regex::Regex::new(&format!("^(?:{inner})$")).unwrap()
}

#[test]
fn every_output_of_a_schema_satisfies_it() {
    let (walker, table) = (Walker::new(), table());
    for schema in list(&table, "schemas") {
        let judge = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
        for output in walker.outputs(&Grammar::JsonSchema(schema.to_string())) {
            let value: Value = match serde_json::from_str(&output) {
                Ok(value) => value,
                // JSON's numbers have any exponent; this parser's do not.
                Err(e) if e.to_string().contains("number out of range") => continue,
                Err(e) => panic!("{schema}: {e} in {output:?}"),
            };
            let wrong = judge.validate(&value).err();
            assert!(wrong.is_none(), "{schema}: {output} {wrong:?}");
        }
    }
    for output in walker.outputs(&Grammar::JsonObject) {
        assert!(serde_json::from_str::<Value>(&output).unwrap().is_object());
    }
}

#[test]
fn every_output_of_a_regex_choice_or_grammar_matches_it() {
    let (walker, table) = (Walker::new(), table());
    for regex in list(&table, "regexes") {
        let regex = regex.as_str().unwrap();
        for output in walker.outputs(&Grammar::Regex(regex.to_owned())) {
            assert!(whole(regex).is_match(&output), "{regex}: {output:?}");
        }
    }
    for choice in list(&table, "choices") {
        let choices: Vec<String> = serde_json::from_value(choice.clone()).unwrap();
        for output in walker.outputs(&Grammar::Choice(choices.clone())) {
            assert!(choices.contains(&output), "{choices:?}: {output:?}");
        }
    }
    for grammar in list(&table, "grammars") {
        let lark = grammar["lark"].as_str().unwrap();
        for output in walker.outputs(&Grammar::Lark(lark.to_owned())) {
            match grammar["regex"].as_str() {
                Some(regex) => assert!(whole(regex).is_match(&output), "{lark}: {output:?}"),
                None => {
                    drop(serde_json::from_str::<Value>(&output).unwrap_or_else(|e| panic!("{lark}: {e} in {output}")))
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_met_is_refused_and_says_why() {
    let (walker, table) = (Walker::new(), table());
    let good = ["schemas", "regexes", "choices", "grammars"].map(|name| list(&table, name).len());
    let bad = list(&table, "refused").len();
    println!("{good:?} that can be met, {bad} that cannot");
    assert!(good.iter().sum::<usize>() >= 200 && bad >= 60);
    for case in list(&table, "refused") {
        let text = || case["value"].as_str().unwrap().to_owned();
        let grammar = match case["kind"].as_str().unwrap() {
            "schema" if case["value"].is_string() => Grammar::JsonSchema(text()),
            "schema" => Grammar::JsonSchema(case["value"].to_string()),
            "regex" => Grammar::Regex(text()),
            "lark" => Grammar::Lark(text()),
            "choice" => Grammar::Choice(Vec::new()),
            other => panic!("{other}"),
        };
        let error = walker.constrainer.compile(&grammar).map(|_| ()).expect_err(&case.to_string());
        let right = matches!(error, ConstraintError::Invalid(_) | ConstraintError::Unsatisfiable(_));
        let told = error.to_string();
        assert!(right && told.contains(case["why"].as_str().unwrap()), "{case}: {told}");
        assert!(!told.is_empty() && told.len() < 1_000 && !told.contains("panic"), "{case}: {told}");
    }
}

/// Tokens and end of one sequence.
type Output = (Vec<u32>, Option<End>);

/// The real model, with a batch and workers as a miner has them.
struct Rig {
    engine: Engine<Cpu>,
    limits: BatchLimits,
    constrainer: Arc<Constrainer>,
    workers: MaskWorkers,
}

impl Rig {
    fn new(constrainer: &Arc<Constrainer>, kv_blocks: u32) -> Self {
        let files = ModelFiles::open(weights()).unwrap();
        let spec = files.spec().unwrap();
        let limits = BatchLimits {
            sequences_max: 4,
            step_tokens_max: 64,
            step_target: Duration::MAX,
            drafts_max: 0,
            kv_blocks,
            kv_kind: KvKind::F16,
            spill_bytes: 0,
            context_tokens: 2_048,
        };
        let engine = Engine::new(Cpu::new(2), &files, &spec, limits).unwrap();
        Self { engine, limits, constrainer: constrainer.clone(), workers: MaskWorkers::start(1).unwrap() }
    }

    /// Tokens and ends, and how often somebody was preempted.
    fn run(&mut self, assigns: &[Assign], grammars: &[Grammar]) -> (Vec<Output>, u64) {
        let mut batch = Batch::new(self.limits, WeightsHash([0; 32]));
        let mut matchers: HashMap<SequenceId, SharedMatcher> = HashMap::new();
        let mut outputs = vec![(Vec::new(), None); assigns.len()];
        for (assign, grammar) in assigns.iter().zip(grammars) {
            batch.assign(assign.clone());
            let mut matcher = self.constrainer.compile(grammar).unwrap();
            matcher.accept(&assign.tokens[assign.prompt_tokens as usize..]).unwrap();
            matchers.insert(assign.sequence, Arc::new(Mutex::new(matcher)));
            batch.constraint_is_ready(assign.sequence);
        }
        while let Some(plan) = batch.plan() {
            let mask = |d: &cuckoo_runtime::Draw| Some(self.workers.mask(&matchers[&d.sequence], d.untold.clone()?));
            let masks: Vec<_> = plan.draws.iter().map(mask).collect();
            let output = self.engine.step_masked(&plan, &masks).unwrap();
            assert!(masks.iter().flatten().all(|m| m.failure().is_none()));
            batch.apply(plan, output, Duration::ZERO);
            for item in batch.take_news() {
                let output = &mut outputs[item.sequence.0 as usize];
                output.0.extend(item.tokens);
                output.1 = item.end.or(output.1.take());
            }
        }
        (outputs, batch.stats().preemptions)
    }
}

fn assign(id: usize, tokens: &[u32], prompt: usize, max_new: u32, stop_tokens: &[u32]) -> Assign {
    Assign {
        prompt_tokens: prompt as u32,
        seed: 40 + id as u64,
        sampling: Sampling { temperature: 0.9, ..Sampling::default() },
        stop_tokens: stop_tokens.to_vec(),
        credit: 10_000,
        cache_salt: [id as u8; 16],
        constraint: Some(Constraint::JsonObject),
        ..Assign::new(ReplicaId(0), SequenceId(id as u64), tokens.to_vec(), max_new, KV_BLOCK_TOKENS as u32)
    }
}

#[test]
fn resumed_at_any_position_and_preempted_equal_undisturbed() {
    let tokenizer = ModelFiles::open(weights()).unwrap().tokenizer().unwrap();
    let constrainer = Arc::new(Constrainer::new(&tokenizer).unwrap());
    let schema = r#"{"type": "object", "required": ["name", "tags", "age"], "additionalProperties": false, "properties":
        {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
         "tags": {"type": "array", "items": {"enum": ["bird", "red", "sings"]}, "minItems": 6, "maxItems": 8}}}"#;
    let grammars = [
        Grammar::JsonSchema(schema.to_owned()),
        Grammar::Regex(r"The [a-z]{2,9} (sings|flies)( and (sings|flies)){9,12}\.".to_owned()),
        Grammar::JsonSchema(schema.to_owned()),
    ];
    let prompt = tokenizer.encode("Describe a bird as JSON. Its name, its tags and its age:", true).unwrap();
    let stops = tokenizer.eos_ids();
    let assigns: Vec<Assign> = (0..3).map(|id| assign(id, &prompt, prompt.len(), 90, stops)).collect();
    let mut roomy = Rig::new(&constrainer, 256);
    let (whole, preemptions) = roomy.run(&assigns, &grammars);
    assert_eq!(preemptions, 0);
    let judge = jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap();
    for (id, (tokens, end)) in whole.iter().enumerate() {
        assert_eq!(*end, Some(End::Stop), "output {id} is complete");
        let text = tokenizer.decode(&tokens[..tokens.len() - 1]);
        println!("{text}");
        match id {
            1 => assert!(text.starts_with("The ") && text.ends_with('.')),
            _ => assert!(judge.is_valid(&serde_json::from_str(&text).unwrap()), "{text}"),
        }
    }
    for accepted in 1..whole[0].0.len() {
        let known = [prompt.as_slice(), &whole[0].0[..accepted]].concat();
        let rest = assign(0, &known, prompt.len(), 90 - accepted as u32, stops);
        let (resumed, _) = roomy.run(&[rest], &grammars[..1]);
        assert_eq!(resumed[0].0, whole[0].0[accepted..], "after {accepted} tokens");
    }
    // Blocks for one of them at its longest, and a little more.
    let mut tight = Rig::new(&constrainer, assigns[0].blocks);
    let (preempted, preemptions) = tight.run(&assigns[..2], &grammars[..2]);
    assert!(preemptions > 0);
    assert_eq!(whole[..2], preempted);
}
