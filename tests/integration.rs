//! The one integration binary; each module says what it proves.

#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, reason = "tests may block, and make environments for the processes they start")]

mod market;
mod support;

/// The command's figures: there, and possible.
mod bench;
/// The command as people use it, and what it says when something is wrong.
mod cli;
/// The CUDA kernels' sources on the CPU: whole models.
mod cuda;
/// Vectors of texts: the real encoder against numpy, bit for bit against itself, and through both doors.
mod embeddings;
/// Tenants that want more than there is, at more schedulers than one.
mod fairness;
/// A tiny model of every family, against its reference code in numpy.
mod families;
/// Miners that die, freeze, vanish, are slow or leave, as real processes behind a network that fails.
mod faults;
/// The real model's file: sizes, damage, tokens.
mod files;
/// The same as Hugging Face folders, packed and not, quantized in every way; and against the same weights in a GGUF file.
mod folders;
/// The bench of GPU kernels: its table, its arithmetic, and its rows on the emulator.
mod gpu_bench;
/// Peers that break the rules.
mod hostile;
/// The OpenAI-compatible interface: raw bytes, and the official Python client.
mod http;
/// Adapters: against numpy, against merged weights, and beside everything else.
mod lora;
/// Names that stand in one place stand in all: operations, kernels.
mod mirror;
/// The real model: against the f64 reference, and bit for bit against itself.
mod model;
/// A scheduler, miners and clients over loopback QUIC.
mod network;
/// Miners that compute in other ways than each other: streams stay with their like.
mod numerics;
/// The official Python client, for the modules that ask it.
mod openai;
/// Models that come and go as they are asked for.
mod residency;
/// Developers, schedulers and stores that go away in the middle of an answer.
mod resume;
/// The market on a virtual clock, with faults from a seed.
mod simulation;
/// Structured output: every schema, regex, choice and grammar of a table, and the real model.
mod structured;
/// Style and direction: sizes of files and functions, banned words, who depends on whom.
mod tidy;
/// Every message's bytes; decoders fed noise.
mod wire;
