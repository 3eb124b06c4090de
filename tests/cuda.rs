//! Whole models through the CUDA kernels, emulated: the logits of the CPU backend, bit for bit; and the command where it was built
//! for GPUs and finds none.

use std::process::Stdio;

use cuckoo_kernels::Cpu;
use cuckoo_kernels::cuda::{Cuda, Emulator, Replay};
use cuckoo_wire::message::Assign;

use crate::model::{ALONE, Files, Shape, assign, files, generate, generate_on, logits, open, other, prompts, sampled};
use crate::support::{cuckoo, weights};

/// Positions of a prompt that are compared: more than any tile of a kernel has.
const PREFILL: usize = 64;
/// Emulated, a position of the larger checkpoints takes a second or so.
const PREFILL_OF_OTHERS: usize = 9;

/// The kernels, with launches gathered as on a GPU. `None` where the processor cannot run the emulator.
fn emulated() -> Option<Cuda<Replay<Emulator>>> {
    let emulator = Emulator::new(0, 2);
    if emulator.is_none() {
        println!("skipped: this processor cannot run the emulator");
    }
    emulator.map(|emulator| Cuda::new(Replay::new(emulator)))
}

fn prefill_agrees(name: &str, files: &Files, positions: usize) {
    let text = "The capital of France is Paris. The capital of Italy is Rome. ".repeat(6);
    let mut tokens = files.tokenizer.encode(&text, true).unwrap();
    tokens.truncate(positions);
    assert_eq!(tokens.len(), positions);
    let Some(cuda) = emulated() else { return };
    let cpu = logits(Cpu::new(2), files, &tokens);
    let cuda = logits(cuda, files, &tokens);
    for (at, (cpu, cuda)) in cpu.iter().zip(&cuda).enumerate() {
        let same = cpu.iter().zip(cuda).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{name}: position {at}");
    }
    println!("{name}: {} logits are equal bit for bit", cpu.len() * files.spec.vocab);
}

#[test]
fn the_kernels_compute_the_default_model() {
    prefill_agrees("llama", &files(), PREFILL);
}

#[test]
fn the_kernels_compute_other_checkpoints() {
    for name in ["Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf", "gemma-3-270m.Q4_K_M.gguf"] {
        let Some(path) = other(name) else { continue };
        prefill_agrees(name, &open(&path), PREFILL_OF_OTHERS);
    }
}

/// Prompts, chunks of them beside others' decode steps, drawing with every sampler: tokens and the bits of all logits.
fn generation_agrees(batch: u32, new_tokens: u32, sequences: usize) {
    let files = files();
    let Some(cuda) = emulated() else { return };
    let prompts = prompts(&files);
    let assigns = |()| -> Vec<Assign> {
        let one = |i: usize| assign(i, &prompts[i], prompts[i].len(), new_tokens, &sampled(i as u64));
        (0..sequences).map(one).collect()
    };
    let shape = Shape { batch, step_tokens: 24, ..ALONE };
    let cpu = generate(&files, shape, assigns(()));
    let (cuda, ..) = generate_on(cuda, (&files, None), shape, assigns(()));
    assert_eq!(cpu, cuda, "batch of {batch}");
    let positions: usize = cpu.iter().map(|output| output.logits.len()).sum();
    assert!(positions >= 64, "{positions} positions were compared");
}

#[test]
fn one_sequence_is_decoded_as_on_the_cpu() {
    generation_agrees(1, 64, 1);
}

#[test]
fn seven_sequences_are_decoded_as_on_the_cpu() {
    generation_agrees(7, 10, 7);
}

/// A build for GPUs on a machine without a driver, as that of the tests is; any other build says so.
fn why_no_gpu() -> &'static str {
    if cfg!(feature = "cuda") { "there is no NVIDIA driver" } else { "built for processors alone" }
}

fn has_driver() -> bool {
    cuckoo_kernels::cuda::gpus().is_ok()
}

#[test]
fn without_a_gpu_the_doctor_says_why_and_processors_are_sound() {
    if has_driver() {
        return;
    }
    let doctor = |args: &[&str]| cuckoo().arg("doctor").args(args).stdin(Stdio::null()).output().unwrap();
    let output = doctor(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains(why_no_gpu()) && text.contains("48 of 48 operations"), "{text}");
    let json: serde_json::Value = serde_json::from_slice(&doctor(&["--json"]).stdout).unwrap();
    assert!(json["no_gpu"].as_str().unwrap().contains(why_no_gpu()), "{json}");
    assert_eq!(json["devices"][0]["wrong"], serde_json::json!([]), "{json}");
}

#[test]
fn without_a_gpu_processors_answer_unless_a_gpu_was_asked_for() {
    if has_driver() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let up = |device: &[&str]| {
        let question = ["up", "--ask", "What is the capital of France?", "--once", "--max-tokens", "8"];
        let mut command = cuckoo();
        command.args(question).args(device).arg("--model").arg(weights());
        command.arg("--home").arg(home.path()).stdin(Stdio::null()).output().unwrap()
    };
    let said = |stream: &[u8]| String::from_utf8_lossy(stream).into_owned();
    let fell_back = up(&[]);
    assert!(fell_back.status.success() && !fell_back.stdout.is_empty(), "{}", said(&fell_back.stderr));
    // Who builds for processors alone knows that no GPU computes.
    let told = said(&fell_back.stderr).contains(&format!("computing on processors: {}", why_no_gpu()));
    assert_eq!(told, cfg!(feature = "cuda"), "{}", said(&fell_back.stderr));
    for device in ["cuda", "cuda:0"] {
        let refused = up(&["--device", device]);
        let error = said(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{error}");
        assert!(error.contains("no GPU can be used") && error.contains(why_no_gpu()), "{error}");
        assert!(error.contains("--device cpu") && !error.contains("panicked"), "{error}");
    }
}
