//! How far from exact arithmetic log-probabilities are: ours, and llama.cpp's where it is installed (benches/peers).
//!
//! Exact is the f64 reference with activations that are never rounded, on the same weights and the same tokens.

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cuckoo_kernels::ops::{Span, StepLayout};
use cuckoo_kernels::reference::Rounding;
use cuckoo_kernels::{Cpu, Ops, Reference};
use cuckoo_models::{ArchSpec, ModelFiles};
use cuckoo_runtime::forward::{KvMemory, Model, Workspace, kv_shapes};

/// As in tests/model.rs.
const TEXTS: [&str; 3] = [
    "The cuckoo lays its eggs in the nests of other birds, which then raise the young as their own. Most species live in trees,",
    "fn main() {\n    let numbers = vec![1, 2, 3];\n    let total: i32 = numbers.iter().sum();\n    println!(\"{total}\");\n}\n",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nThe capital of France is Paris, which lies on the river Seine.",
];
const LONG_TEXT: &str = include_str!("peers/text.txt");
/// Of the long text, all: the reference takes some minutes.
const LONG_TEXT_BYTES: usize = LONG_TEXT.len();

struct Files {
    files: ModelFiles,
    spec: ArchSpec,
}

/// The log-probability of each token after the first.
fn log_probabilities<O: Ops>(mut ops: O, files: &Files, tokens: &[u32]) -> Vec<f64> {
    let model = Model::load(&mut ops, &files.files, &files.spec, |_| ()).expect("it loads");
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(16) as u32).collect();
    let mut work = Workspace::new(&mut ops, &files.spec, tokens.len(), tokens.len()).expect("it fits");
    let shapes = kv_shapes(&files.spec, blocks.len());
    let mut cache = KvMemory::new(&mut ops, &shapes).expect("it fits");
    let spans = [Span { first_row: 0, rows: tokens.len(), first_position: 0, first_block: 0 }];
    let wanted: Vec<usize> = (0..tokens.len()).collect();
    let steps = vec![StepLayout { spans: &spans, blocks: &blocks }; shapes.len()];
    model.forward(&mut ops, &mut work, &mut cache, tokens, &steps, &wanted).expect("the device works");
    let logits = ops.read(&work.logits).expect("the device works");
    let rows = logits.chunks(files.spec.vocab).zip(&tokens[1..]);
    rows.map(|(row, next)| log_probability(row, *next)).collect()
}

fn log_probability(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    f64::from(logits[token as usize] - max) - sum.ln()
}

/// Tokens and log-probabilities of llama.cpp, or `None` where it is not installed.
fn peer(model: &Path, texts: &[String]) -> Option<Vec<(Vec<u32>, Vec<f64>)>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/logprobs.py");
    let mut command = Command::new("python3");
    let child = command.arg(script).arg(model).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = child.spawn().ok()?;
    let mut input = child.stdin.take()?;
    texts.iter().try_for_each(|text| writeln!(input, "{}", serde_json::json!(text))).ok()?;
    drop(input);
    let output = child.wait_with_output().ok().filter(|o| o.status.success())?;
    let lines = String::from_utf8(output.stdout).ok()?;
    let answer = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        let tokens = value["tokens"].as_array()?.iter().filter_map(|t| t.as_u64().map(|t| t as u32)).collect();
        let logprobs = value["logprobs"].as_array()?.iter().filter_map(serde_json::Value::as_f64).collect();
        Some((tokens, logprobs))
    };
    lines.lines().map(answer).collect()
}

fn report(name: &str, exact: &[f64], found: &[f64]) {
    assert_eq!(exact.len(), found.len(), "{name}: the same tokens");
    let mut differences: Vec<f64> = exact.iter().zip(found).map(|(a, b)| (a - b).abs()).collect();
    let count = differences.len() as f64;
    let bias = exact.iter().zip(found).map(|(a, b)| b - a).sum::<f64>() / count;
    println!(
        "  {name:<22} mean |difference| {:.6} nats, p99 {:.6}, largest {:.6}; mean {bias:+.6}; perplexity {:.4}",
        differences.iter().sum::<f64>() / count,
        support::quantile(&mut differences, 0.99),
        support::quantile(&mut differences, 1.0),
        (-found.iter().sum::<f64>() / count).exp(),
    );
}

/// The file after `--model`, or the default model.
fn model() -> PathBuf {
    let named = std::env::args().skip_while(|a| a != "--model").nth(1);
    named.map_or_else(|| support::weights().path, PathBuf::from)
}

fn main() {
    let path = model();
    let files = ModelFiles::open(&path).expect("a model");
    let tokenizer = files.tokenizer().expect("a tokenizer");
    let spec = files.spec().expect("a known architecture");
    let files = Files { files, spec };
    let mut texts: Vec<String> = TEXTS.map(str::to_owned).into();
    match support::is_test() {
        true => texts.truncate(1),
        false => {
            let bytes = support::argument("--bytes").unwrap_or(LONG_TEXT_BYTES).min(LONG_TEXT.len());
            texts.push(LONG_TEXT[..LONG_TEXT.floor_char_boundary(bytes)].trim_end().to_owned());
        }
    }
    let peers = if support::is_test() { None } else { peer(&path, &texts) };
    let (mut exact, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    let mut short = 0;
    for (at, text) in texts.iter().enumerate() {
        let mut tokens = tokenizer.encode(text, true).expect("it can be encoded");
        if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.add_bos()) {
            tokens.insert(0, bos);
        }
        exact.extend(log_probabilities(Reference::new(Rounding::None), &files, &tokens));
        ours.extend(log_probabilities(Cpu::new(2), &files, &tokens));
        if let Some((their_tokens, logprobs)) = peers.as_ref().and_then(|p| p.get(at)) {
            assert_eq!(&tokens, their_tokens, "both see the same tokens");
            theirs.extend_from_slice(logprobs);
        }
        if at < TEXTS.len() {
            short = exact.len();
        }
    }
    for (name, range) in [("the test's short texts", 0..short), ("the long text", short..exact.len())] {
        if range.is_empty() {
            continue;
        }
        println!("{name}: {} tokens against unrounded f64", range.len());
        report("exact", &exact[range.clone()], &exact[range.clone()]);
        report("ours", &exact[range.clone()], &ours[range.clone()]);
        if !theirs.is_empty() {
            report("llama.cpp", &exact[range.clone()], &theirs[range]);
        }
    }
    if theirs.is_empty() && !support::is_test() {
        println!("llama.cpp is not installed: python3 benches/peers/llama_cpp.py install");
    }
}
