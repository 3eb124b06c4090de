//! The one integration binary; each module says what it proves.

#![allow(clippy::unwrap_used)]

mod support;

/// Style and direction: sizes of files and functions, banned words, who depends on whom.
mod tidy;
/// Every message's bytes; decoders fed noise.
mod wire;
/// The real model's file: sizes, damage, tokens.
mod files;
/// The real model: against the f64 reference, and bit for bit against itself.
mod model;
/// The command as people use it, and what it says when something is wrong.
mod cli;
/// A scheduler, miners and clients over loopback QUIC.
mod network;
/// Peers that break the rules.
mod hostile;
/// The OpenAI-compatible interface: raw bytes, and the official Python client.
mod http;
