//! Replayed is as launched, bit for bit; on the emulator, whose graphs are lists.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::cuda::{Cuda, Emulator};
use crate::memory::Memory;
use crate::ops::{Activation, MatrixSource, Ops};
use crate::quant::Quant;

/// A few layers' worth of launches on one row after another: `steps` times the same, with other values each time.
fn outputs<M: Machine>(cuda: &mut Cuda<M>, steps: u32) -> Vec<Vec<u32>> {
    let table: Vec<f32> = (0..64 * 64).map(|i| (i * 37 % 101) as f32 / 101.0 - 0.5).collect();
    let source = MatrixSource { quant: Quant::F32, rows: 64, cols: 64, data: bytemuck::cast_slice(&table) };
    let matrix = cuda.matrix(&[source]).unwrap();
    let weight = cuda.vector(&[0.5; 64]).unwrap();
    let (mut a, mut b) = (cuda.buffer(2, 64).unwrap(), cuda.buffer(2, 64).unwrap());
    let mut step = |number: u32| {
        cuda.embed(&matrix, &[number % 64, 3], &mut a).unwrap();
        for _ in 0..4 {
            cuda.norm(&a, &weight, 1e-5, &mut b).unwrap();
            cuda.linear(&b, &matrix, &mut a).unwrap();
            cuda.activate(Activation::Silu, &mut a).unwrap();
        }
        // A buffer that is dropped while launches that use it are gathered.
        let mut brief = cuda.buffer(2, 64).unwrap();
        cuda.norm(&a, &weight, 1e-5, &mut brief).unwrap();
        cuda.add_scaled(&brief, 0.25, &mut a).unwrap();
        drop(brief);
        cuda.read(&a).unwrap().iter().map(|v| v.to_bits()).collect()
    };
    (0..steps).map(&mut step).collect()
}

#[test]
fn what_comes_again_is_replayed_and_gives_the_same_bits() {
    let (Some(plain), Some(kept)) = (Emulator::new(0, 1), Emulator::new(0, 1)) else { return };
    let expected = outputs(&mut Cuda::new(plain), 6);
    let mut cuda = Cuda::new(Replay::new(kept));
    assert!(outputs(&mut cuda, 6) == expected);
    // The twelve launches between the tokens and the buffer: once as they come, then five times as a graph.
    assert_eq!(cuda.machine().replays(), 5);
}

#[test]
fn only_so_many_graphs_are_kept_and_sequences_remembered() {
    let Some(machine) = Emulator::new(0, 1) else { return };
    let mut replay = Replay::new(machine);
    let mut memory = replay.allocate(1 << 12, "numbers").unwrap();
    let times = SEEN_MAX + 50;
    for round in 0..3 {
        for rows in 1..=times {
            let args = crate::cuda::args::cuckoo_elementwise {
                out: memory.address(),
                rows: rows as u32,
                cols: 1,
                a: 1.0,
                ..Default::default()
            };
            let extent = Extent { grid: [rows.div_ceil(256) as u32, 1, 1], threads: 256, shared_bytes: 0 };
            for _ in 0..GRAPH_LAUNCHES_MIN {
                // SAFETY: the structure of that kernel, with memory for so many rows.
                unsafe { replay.launch(c"cuckoo_scale", extent, bytemuck::bytes_of(&args)).unwrap() };
            }
            replay.write(&mut memory, 0, &[0]).unwrap();
            assert!(replay.graphs.len() <= GRAPHS_MAX && replay.seen.len() <= SEEN_MAX, "{round} {rows}");
        }
    }
    // More came in turn than are remembered, so none was known; the last one comes again and is.
    assert_eq!(replay.replays(), 0);
}

#[test]
fn rounds_are_of_what_was_gathered_and_run_that_often() {
    let Some(machine) = Emulator::new(0, 1) else { return };
    let mut cuda = Cuda::new(Replay::new(machine));
    let table = [1.0f32; 32];
    let source = MatrixSource { quant: Quant::F32, rows: 1, cols: 32, data: bytemuck::cast_slice(&table) };
    let matrix = cuda.matrix(&[source]).unwrap();
    let mut x = cuda.buffer(1, 32).unwrap();
    cuda.embed(&matrix, &[0], &mut x).unwrap();
    cuda.wait().unwrap();
    assert_eq!(cuda.machine().time_replays(3).unwrap(), Replayed::default(), "nothing was gathered");
    for _ in 0..2 {
        cuda.scale(2.0, None, &mut x).unwrap();
    }
    let brief = cuda.buffer(1, 32).unwrap();
    drop(brief);
    // A buffer is memory that is asked for, before which everything runs: what comes now is what is timed.
    for _ in 0..2 {
        cuda.scale(2.0, None, &mut x).unwrap();
    }
    let replayed = cuda.machine().time_replays(3).unwrap();
    assert_eq!((replayed.launches, replayed.rounds.len()), (2, 3));
    // Twice before, and one round more than was timed.
    assert_eq!(cuda.read(&x).unwrap(), [2f32.powi(2 + 2 * 4); 32]);
}
