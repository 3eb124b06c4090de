//! Whole models through the CUDA kernels, emulated: the logits of the CPU backend, bit for bit; and the command where it was built
//! for GPUs and finds none.

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cuckoo_kernels::check::Case;
use cuckoo_kernels::cuda::{Cuda, Emulator, Gpu, Profile, Replay};
use cuckoo_kernels::{Cpu, KvKind, Ops};
use cuckoo_models::ModelFiles;
use cuckoo_runtime::{
    Available, Batch, BatchLimits, BatchWish, DeviceKind, Engine, KvPlan, Room, STEPS_IN_FLIGHT_MAX, plan_on,
};
use cuckoo_wire::message::{Assign, Sampling, WeightsHash};

use crate::model::drafting::write_tiny;
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

/// Tokens that a tiny model knows.
const TINY_TOKENS: u32 = 320;

/// The batch of [`generated`].
const TINY: BatchLimits = BatchLimits {
    sequences_max: 5,
    step_tokens_max: 24,
    step_target: Duration::MAX,
    drafts_max: 0,
    kv_blocks: 64,
    kv_kind: KvKind::F16,
    spill_bytes: 0,
    context_tokens: 512,
};

/// What a batch of a tiny model generates, two steps at the device at once where that may be; and how many were begun so.
fn generated<O: Ops>(backend: O, files: &ModelFiles, assigns: Vec<Assign>) -> (Vec<Vec<u32>>, usize) {
    stepped(Engine::new(backend, files, &files.spec().unwrap(), TINY).unwrap(), files, assigns, &mut || ())
}

/// The same by an engine of that batch, with a look after each step.
fn stepped<O: Ops>(
    mut engine: Engine<O>,
    files: &ModelFiles,
    assigns: Vec<Assign>,
    look: &mut dyn FnMut(),
) -> (Vec<Vec<u32>>, usize) {
    let mut batch = Batch::with_kv(TINY, WeightsHash([0; 32]), &KvPlan::new(&files.spec().unwrap(), &TINY));
    let mut outputs = vec![Vec::new(); assigns.len()];
    assigns.into_iter().for_each(|assign| batch.assign(assign));
    let (mut begun, mut count) = (VecDeque::new(), 0);
    loop {
        let mut planned = false;
        while begun.len() < STEPS_IN_FLIGHT_MAX {
            let Some(plan) = batch.plan() else { break };
            planned = true;
            if engine.begin(&plan).unwrap() {
                (count, _) = (count + 1, begun.push_back(plan));
                continue;
            }
            while let Some(plan) = begun.pop_front() {
                batch.apply(plan, engine.finish().unwrap(), Duration::ZERO);
            }
            let output = engine.step(&plan).unwrap();
            batch.apply(plan, output, Duration::ZERO);
        }
        match begun.pop_front() {
            Some(plan) => batch.apply(plan, engine.finish().unwrap(), Duration::ZERO),
            None if !planned => break,
            None => {}
        }
        look();
        for item in batch.take_news() {
            outputs[item.sequence.0 as usize].extend(item.tokens);
        }
    }
    (outputs, count)
}

/// Requests for a tiny model: plain ones; one that looks at the tokens before it, which nobody plans ahead
/// of; one that wants log-probabilities; one with a sampler that is the host's.
fn requests() -> Vec<Assign> {
    let one = |i: u32| {
        let prompt: Vec<u32> = (0..7 + i * 9).map(|t| (t * 37 + i * 11) % TINY_TOKENS).collect();
        let plain = Sampling { temperature: 0.9, top_p: 0.95, seed: Some(2 * u64::from(i)), ..Sampling::default() };
        let sampling = match i {
            3 => Sampling { repetition_penalty: 1.2, ..plain },
            4 => Sampling { seed: Some(9), ..plain },
            5 => Sampling { typical_p: 0.9, ..plain },
            _ => plain,
        };
        // Plain ones stay longest, so that steps of all kinds follow each other.
        assign(i as usize, &prompt, prompt.len(), if i < 3 { 30 + i } else { 6 }, &sampling)
    };
    (0..6).map(one).collect()
}

fn tiny() -> ModelFiles {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    write_tiny(&path, "llama", &(0..TINY_TOKENS).map(|i| format!("t{i}")).collect::<Vec<_>>());
    ModelFiles::open(&path).unwrap()
}

/// What is counted before anything is loaded is what loading takes of a GPU, to the byte; what steps take beside it is far below
/// the half GiB that is left for it; and all of it is given back.
#[test]
fn a_model_takes_of_a_gpu_what_was_planned() {
    let (files, Some(emulator)) = (tiny(), Emulator::new(0, 2)) else { return };
    let spec = files.spec().unwrap();
    let taken = emulator.taken();
    let taken = || taken.load(Ordering::Relaxed);
    let wish = BatchWish {
        sequences_max: TINY.sequences_max,
        step_tokens_max: TINY.step_tokens_max,
        step_target: TINY.step_target,
        drafts_max: TINY.drafts_max,
        kv_bytes_max: KvPlan::new(&spec, &TINY).device_bytes(),
        kv_kind: TINY.kv_kind,
        spill_bytes: TINY.spill_bytes,
        context_tokens_max: None,
    };
    let (name, memory_bytes) = ("emulated".to_owned(), 1 << 34);
    let gpu = Gpu { ordinal: 0, name, capability: (8, 0), multiprocessors: 3, memory_bytes, driver: 13_000 };
    let room = Room { device: Available::UNKNOWN, host: Some(Available::UNKNOWN) };
    let kind = DeviceKind::Cuda(gpu, Profile::Exact);
    let (limits, plan) = plan_on(&kind, ((&files, &spec), None, &[]), &wish, room).unwrap();
    assert_eq!(limits, TINY);
    let mut most = 0;
    let engine = Engine::new(Cuda::new(Replay::new(emulator)), &files, &spec, limits).unwrap();
    assert_eq!(taken(), plan.on_device(), "{plan:?}");
    stepped(engine, &files, requests(), &mut || most = taken().max(most));
    let beside = most - plan.on_device();
    assert!((1..8 << 20).contains(&beside), "{beside} bytes beside what was planned");
    assert_eq!(taken(), 0);
}

#[test]
fn steps_that_are_begun_before_the_last_is_done_draw_the_same_tokens() {
    let (files, assigns) = (tiny(), requests());
    let Some(cuda) = emulated() else { return };
    let (expected, never) = generated(Cpu::new(2), &files, assigns.clone());
    let (ahead, often) = generated(cuda, &files, assigns);
    assert_eq!(expected, ahead);
    assert!(expected.iter().all(|tokens| tokens.len() >= 6));
    assert!(never == 0 && often > 10, "{often} steps were begun while another ran");
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
    let all = Case::all().len();
    assert!(text.contains(why_no_gpu()) && text.contains(&format!("{all} of {all} operations")), "{text}");
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
