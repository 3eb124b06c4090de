//! The oracle itself, by hand.
#![allow(clippy::unwrap_used)]
use super::*;
use crate::ops::Span;

/// Values worked out by hand, so that the oracle is not only compared with what was written after it.
#[test]
fn small_cases_by_hand() {
    let mut ops = Reference::new(Rounding::None);
    let mut identity = vec![0.0f32; 32 * 32];
    (0..32).for_each(|i| identity[33 * i] = (i + 1) as f32);
    let source = MatrixSource { quant: Quant::F32, rows: 32, cols: 32, data: bytemuck::cast_slice(&identity) };
    let w = ops.matrix(&[source]).unwrap();
    let (mut x, mut y) = (ops.buffer(2, 32).unwrap(), ops.buffer(2, 32).unwrap());
    ops.embed(&w, &[2, 0], &mut x).unwrap();
    assert_eq!(ops.read(&x).unwrap()[..4], [0.0, 0.0, 3.0, 0.0]);
    ops.linear(&x, &w, &mut y).unwrap();
    assert_eq!(y.rows[0][2], 9.0);
    ops.linear_add(&x, &w, &mut y).unwrap();
    assert_eq!((y.rows[0][2], y.rows[1][0], y.rows[1][1]), (18.0, 2.0, 0.0));
    let ones = ops.vector(&[2.0; 32]).unwrap();
    ops.norm(&x, &ones, 0.0, &mut y).unwrap();
    assert!((y.rows[0][2] - 2.0 * 32f64.sqrt()).abs() < 1e-12);
    let mut half = ops.buffer(2, 16).unwrap();
    x.rows[0][16 + 2] = 5.0;
    ops.gate(Activation::Silu, &x, &mut half).unwrap();
    assert!((half.rows[0][2] - 15.0 / (1.0 + (-3f64).exp())).abs() < 1e-12);
}

#[test]
fn attention_by_hand() {
    let mut ops = Reference::new(Rounding::AsBackends);
    let heads = Heads { query: 2, kv: 1, dim: 8 };
    let mut cache =
        ops.kv_cache(KvShape { layers: 1, kv_heads: 1, head_dim: 8, blocks: 3, kind: KvKind::F16 }).unwrap();
    let rope = Rope { frequencies: vec![1.0], magnitude: 1.0, pairs: RopePairs::Halves, positions: 40 };
    let span = Span { first_row: 0, rows: 2, first_position: 0, first_block: 0 };
    let step = StepLayout { spans: &[span], blocks: &[2] };
    let mut qkv = ops.buffer(2, heads.qkv_cols()).unwrap();
    // Queries look at value 7, which is not rotated; values are the position plus one.
    let row = |v: f64| {
        let mut row = vec![0.0; 32];
        (row[7], row[15], row[23]) = (1.0, 0.0, v);
        row[24..].fill(v);
        row
    };
    qkv.set(vec![row(1.0), row(2.0)]);
    ops.rope_store(Some(&rope), &step, heads, &mut qkv, &mut cache, 0).unwrap();
    let mask = Mask { scale: 1.0, softcap: None, window: None, causal: true };
    let mut out = ops.buffer(2, 16).unwrap();
    ops.attention(&step, heads, mask, None, &qkv, &cache, 0, &mut out).unwrap();
    assert_eq!(out.rows[0], vec![1.0; 16]);
    let (a, b) = (1f64.exp(), 2f64.exp());
    assert!((out.rows[1][0] - (a + 2.0 * b) / (a + b)).abs() < 1e-12);
    assert!((out.rows[1][8] - 1.5).abs() < 1e-12);
}

#[test]
fn rotation_by_hand() {
    let rope = |pairs| Rope { frequencies: vec![1.0, 0.05], magnitude: 1.0, pairs, positions: 9 };
    let mut head = [1.0, 0.0, 1.0, 0.0, 5.0];
    rotate(&rope(RopePairs::Adjacent), &mut head, 3);
    let expect = [3f64.cos(), 3f64.sin(), 0.15f64.cos(), 0.15f64.sin(), 5.0];
    assert!(head.iter().zip(expect).all(|(a, b)| (a - b).abs() < 1e-12));
    let mut head = [1.0, 1.0, 0.0, 0.0, 5.0];
    rotate(&rope(RopePairs::Halves), &mut head, 3);
    let expect = [3f64.cos(), 0.15f64.cos(), 3f64.sin(), 0.15f64.sin(), 5.0];
    assert!(head.iter().zip(expect).all(|(a, b)| (a - b).abs() < 1e-12));
}

#[test]
fn an_adapter_by_hand() {
    use crate::low_rank::{Adapted, LowRankSource};
    let mut ops = Reference::new(Rounding::None);
    let matrix = |rows, cols, data| MatrixSource { quant: Quant::F32, rows, cols, data: bytemuck::cast_slice(data) };
    // Rank 2 of three inputs and two outputs, from the second column on.
    let (a, b) = ([1.0f32, 2.0, 0.0, 0.0, 0.0, 3.0], [1.0f32, 10.0, 0.0, 1.0]);
    let part = LowRankSource { first_col: 1, a: matrix(2, 3, &a[..]), b: matrix(2, 2, &b[..]), scale: 0.5 };
    let by = ops.low_rank(&[part]).unwrap();
    let (mut x, mut out) = (ops.buffer(2, 3).unwrap(), ops.buffer(2, 3).unwrap());
    x.set(vec![vec![1.0, 1.0, 1.0], vec![2.0, 0.0, 1.0]]);
    out.set(vec![vec![7.0; 3]; 2]);
    ops.lora_add(&x, &[Adapted { rows: 1..2, by: &by }], &mut out).unwrap();
    // a x = (2, 3); b of that = (32, 3); half of it is added.
    assert_eq!(out.rows, vec![vec![7.0, 7.0, 7.0], vec![7.0, 23.0, 8.5]]);
}
