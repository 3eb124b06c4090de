//! Activations that are left rounded: when they are, and that nobody uses those of other contents.

use bytemuck::cast_slice;

use super::*;
use crate::exact::Exact;
use crate::kv::KvKind;
use crate::memory::Memory;
use crate::ops::{Activation, Heads, KvShape, Mask, MatrixSource, Ops, Span, StepLayout};
use crate::quant::Quant;

fn recorded(order: u32) -> Option<Cuda<Emulator>> {
    Emulator::new(order, 1).map(Cuda::new)
}

/// Some values, the same everywhere.
fn values(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
}

fn upload<O: Ops>(ops: &mut O, values: &[f32], cols: usize) -> O::Buffer {
    let rows = values.len() / cols;
    let table = ops.matrix(&[MatrixSource { quant: Quant::F32, rows, cols, data: cast_slice(values) }]).unwrap();
    let mut out = ops.buffer(rows, cols).unwrap();
    ops.embed(&table, &(0..rows as u32).collect::<Vec<_>>(), &mut out).unwrap();
    out
}

const COLS: usize = 96;

/// A matrix of `Q8_0` whose scales are a 16th.
fn weights(rows: usize, cols: usize) -> Vec<u8> {
    let block = |i: usize| {
        let codes = (0..32).map(move |c| (i * 37 + c * 11) as u8);
        half::f16::from_f32(1.0 / 16.0).to_le_bytes().into_iter().chain(codes)
    };
    (0..rows * cols / 32).flat_map(block).collect()
}

/// What products give after a buffer that was left rounded is written to by one operation or another.
fn changed<O: Ops>(ops: &mut O) -> Vec<Vec<u32>> {
    let data = weights(8, COLS);
    let w = ops.matrix(&[MatrixSource { quant: Quant::Q8_0, rows: 8, cols: COLS, data: &data }]).unwrap();
    let (x, other) = (upload(ops, &values(3 * COLS, 1), COLS), upload(ops, &values(3 * COLS, 2), COLS));
    let [weight, bias, head] = [(COLS, 3), (COLS, 4), (16, 5)].map(|(n, seed)| ops.vector(&values(n, seed)).unwrap());
    let [mut y, mut out, mut wide] = [COLS, 8, 2 * COLS].map(|cols| ops.buffer(3, cols).unwrap());
    let square = weights(COLS, COLS);
    let square = ops.matrix(&[MatrixSource { quant: Quant::Q8_0, rows: COLS, cols: COLS, data: &square }]).unwrap();
    let mut results = Vec::new();
    for change in 0..14 {
        // Twice, so that the norm knows the second time what is wanted.
        for _ in 0..2 {
            ops.norm(&x, &weight, 1e-5, &mut y).unwrap();
            ops.linear(&y, &w, &mut out).unwrap();
            ops.linear_fine(&y, &w, &mut out).unwrap();
        }
        ops.norm(&x, &weight, 1e-5, &mut y).unwrap();
        match change {
            0 => ops.add_bias(&bias, &mut y).unwrap(),
            1 => ops.add_scaled(&other, 0.5, &mut y).unwrap(),
            2 => ops.scale(0.3, None, &mut y).unwrap(),
            3 => ops.norm_heads(&head, 1e-5, 1..4, &mut y).unwrap(),
            4 => ops.activate(Activation::Silu, &mut y).unwrap(),
            5 => ops.normalize(&mut y).unwrap(),
            6 => ops.zero(2, &mut y).unwrap(),
            7 => ops.gather(&other, &[2, 0], &mut y).unwrap(),
            8 => ops.scatter_add(&other, &[(0, 0.5), (2, 2.0), (1, 1.0)], &mut y).unwrap(),
            9 => ops.linear_add(&other, &square, &mut y).unwrap(),
            10 => ops.linear(&other, &square, &mut y).unwrap(),
            11 => ops.layer_norm(&other, &weight, &bias, 1e-5, &mut y).unwrap(),
            12 => ops.mean_rows(&other, &[0..2, 1..3], &mut y).unwrap(),
            _ => {
                ops.linear(&other, &square, &mut y).unwrap();
                ops.zero(3, &mut wide).unwrap();
                ops.gate(Activation::GeluTanh, &wide, &mut y).unwrap();
            }
        }
        ops.linear(&y, &w, &mut out).unwrap();
        let first = ops.read(&out).unwrap();
        ops.linear_fine(&y, &w, &mut out).unwrap();
        results.push([first, ops.read(&out).unwrap()].concat().into_iter().map(f32::to_bits).collect());
    }
    results
}

#[test]
fn what_is_written_to_is_rounded_anew() {
    let expect = changed(&mut Exact::new());
    for order in [0, 1, 7] {
        let Some(mut ops) = recorded(order) else { return };
        assert_eq!(changed(&mut ops), expect, "order {order}");
    }
}

#[test]
fn an_operation_leaves_rounded_what_was_wanted_last_time() {
    let heads = Heads { query: 3, kv: 1, dim: 32 };
    let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 32, blocks: 20, kind: KvKind::F16 };
    let blocks: Vec<u32> = (0..20).collect();
    // One row alone, and one whose splits are joined.
    let spans = [0, 299].map(|first_position| Span { first_row: 0, rows: 1, first_position, first_block: 0 });
    let mask = Mask { scale: 0.2, softcap: None, window: None, causal: true };
    let data = weights(8, COLS);
    let run = |ops: &mut Cuda<Emulator>| {
        let w = ops.matrix(&[MatrixSource { quant: Quant::Q8_0, rows: 8, cols: COLS, data: &data }]).unwrap();
        let (mut x, weight) = (upload(ops, &values(COLS, 1), COLS), ops.vector(&values(COLS, 2)).unwrap());
        let mut qkv = upload(ops, &values(heads.qkv_cols(), 3), heads.qkv_cols());
        let mut cache = ops.kv_cache(shape).unwrap();
        let [mut y, mut z, mut attended, mut out, gate_up] =
            [COLS, COLS, COLS, 8, 2 * COLS].map(|cols| ops.buffer(1, cols).unwrap());
        let (mut seen, mut gate_up) = (Vec::new(), gate_up);
        for span in spans {
            let step = StepLayout { spans: &[span], blocks: &blocks };
            for _ in 0..2 {
                ops.machine.launched.clear();
                ops.norm(&x, &weight, 1e-5, &mut y).unwrap();
                ops.linear_fine(&y, &w, &mut out).unwrap();
                ops.rope_store(None, &step, heads, &mut qkv, &mut cache, 0).unwrap();
                ops.attention(&step, heads, mask, None, &qkv, &cache, 0, &mut attended).unwrap();
                ops.linear(&attended, &w, &mut out).unwrap();
                ops.zero(1, &mut gate_up).unwrap();
                ops.gate(Activation::Silu, &gate_up, &mut z).unwrap();
                ops.linear(&z, &w, &mut out).unwrap();
                ops.activate(Activation::Silu, &mut x).unwrap();
                ops.linear(&x, &w, &mut out).unwrap();
            }
            seen.push(ops.machine.launched.iter().filter(|name| ***name == *c"cuckoo_quantize_rows").count());
        }
        seen
    };
    let Some(mut ops) = recorded(0) else { return };
    assert_eq!(run(&mut ops), [0, 0], "products find everything rounded");
}
