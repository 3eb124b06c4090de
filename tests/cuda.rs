//! Whole models through the CUDA kernels, emulated: the logits of the CPU backend, bit for bit.

use cuckoo_kernels::Cpu;
use cuckoo_kernels::cuda::{Cuda, Emulator};

use crate::model::{Files, files, logits, open, other};

/// Emulated, a token takes a second or so.
const TOKENS: usize = 9;

fn agrees(name: &str, files: &Files) {
    let text = "The capital of France is Paris. The capital of Italy is Rome.";
    let mut tokens = files.tokenizer.encode(text, true).unwrap();
    tokens.truncate(TOKENS);
    let Some(emulator) = Emulator::new(0, 2) else {
        println!("skipped: this processor cannot run the emulator");
        return;
    };
    let cpu = logits(Cpu::new(2), files, &tokens);
    let cuda = logits(Cuda::new(emulator), files, &tokens);
    for (at, (cpu, cuda)) in cpu.iter().zip(&cuda).enumerate() {
        let same = cpu.iter().zip(cuda).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{name}: position {at}");
    }
    println!("{name}: {} logits are equal bit for bit", cpu.len() * files.spec.vocab);
}

#[test]
fn the_kernels_compute_the_default_model() {
    agrees("llama", &files());
}

#[test]
fn the_kernels_compute_other_checkpoints() {
    for name in ["Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf", "gemma-3-270m.Q4_K_M.gguf"] {
        let Some(path) = other(name) else { continue };
        agrees(name, &open(&path));
    }
}
