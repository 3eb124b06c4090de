//! The kernels on a GPU: are they right, what can the card do, how near does each come to it, and what does that give a model.
//!
//! One program that needs nothing but the driver where it runs; `benches/peers/gpu.py` measures others beside it. It judges what is
//! wrong and nothing else: how fast something is, is printed.

mod command;
mod contract;
mod cost;
mod data;
mod measure;
mod models;
mod op;
mod report;
#[path = "../../src/command/bench/rig.rs"]
#[allow(dead_code, reason = "the command uses more of it")]
mod rig;
mod run;
mod table;
mod work;

use std::process::ExitCode;

fn main() -> ExitCode {
    command::main(std::env::args_os())
}
