//! Every hot operation of the CPU backend at the shapes of a real model (135 million parameters), one thread. It never
//! judges: it prints times, GB/s of what an operation must move at least, and products or values a second.

#[path = "gpu/data.rs"]
#[allow(dead_code, reason = "weights are drawn in other formats here")]
mod data;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use cuckoo_kernels::cpu::{Buffer, Matrix};
use cuckoo_kernels::low_rank::{Adapted, LowRankSource};
use cuckoo_kernels::ops::{Activation, Heads, KvShape, Mask, MatrixSource, Rope, RopePairs, Span, StepLayout};
use cuckoo_kernels::sampling::{LogprobRequest, SampleRequest, SamplingParams, TokenHistory};
use cuckoo_kernels::{Cpu, KvKind, Memory, Ops, Quant};
use half::f16;

use self::data::Random;

const HIDDEN: usize = 576;
const FFN: usize = 1536;
const VOCABULARY: usize = 49152;
const HEADS: Heads = Heads { query: 9, kv: 3, dim: 64 };

/// A matrix and its bytes in a file.
fn matrix(ops: &mut Cpu, quant: Quant, rows: usize, cols: usize) -> (Matrix, usize) {
    let mut random = Random(7);
    let mut data = Vec::with_capacity(rows * quant.row_bytes(cols));
    for _ in 0..rows * cols / quant.block() {
        let v = random.value() / 64.0;
        match quant {
            Quant::F32 => data.extend(v.to_le_bytes()),
            Quant::Q4_1 => data.extend([v, -8.0 * v].map(|v| f16::from_f32(v).to_le_bytes()).concat()),
            _ => data.extend(f16::from_f32(v).to_le_bytes()),
        }
        data.resize_with(data.len().next_multiple_of(quant.block_bytes()), || random.bits() as u8);
    }
    let source = MatrixSource { quant, rows, cols, data: &data };
    (ops.matrix(&[source]).expect("the matrix fits"), data.len())
}

/// Random activations.
fn activations(ops: &mut Cpu, rows: usize, cols: usize) -> Buffer {
    let (table, _) = matrix(ops, Quant::F32, rows, cols);
    let mut out = ops.buffer(rows, cols).expect("the buffer fits");
    ops.embed(&table, &(0..rows as u32).collect::<Vec<_>>(), &mut out).expect("the CPU has no faults");
    out
}

/// Weights are read once for all rows; an element is a multiplication or an addition.
fn linear(c: &mut Criterion) {
    let mut ops = Cpu::new(1);
    let shapes = [
        ("qkv", Quant::Q4_1, HEADS.qkv_cols(), HIDDEN),
        ("output", Quant::Q4_1, HIDDEN, HIDDEN),
        ("gate_up", Quant::Q4_1, 2 * FFN, HIDDEN),
        ("down", Quant::Q4_1, HIDDEN, FFN),
        ("head", Quant::Q8_0, VOCABULARY, HIDDEN),
        ("float", Quant::F16, 2 * FFN, HIDDEN),
    ];
    for (name, quant, rows, cols) in shapes {
        let (w, w_bytes) = matrix(&mut ops, quant, rows, cols);
        let mut group = c.benchmark_group(format!("linear/{name}"));
        group.sample_size(20);
        for tokens in [1, 4, 16, 128] {
            let x = activations(&mut ops, tokens, cols);
            let mut out = ops.buffer(tokens, rows).expect("the buffer fits");
            let bytes = (w_bytes + 4 * tokens * (rows + cols)) as u64;
            group.throughput(Throughput::ElementsAndBytes { elements: (2 * tokens * rows * cols) as u64, bytes });
            group.bench_function(BenchmarkId::from_parameter(tokens), |b| b.iter(|| ops.linear(&x, &w, &mut out)));
        }
    }
}

/// What an adapter of rank 16 adds to the queries, keys and values, or to the network, of rows that all use it.
fn lora_add(c: &mut Criterion) {
    let mut ops = Cpu::new(1);
    let rank = 16;
    let mut random = Random(11);
    let mut values = |n: usize| (0..n).flat_map(|_| f16::from_f32(random.value()).to_le_bytes()).collect::<Vec<u8>>();
    let mut group = c.benchmark_group("lora_add");
    for (name, outputs, inputs) in
        [("qkv", HEADS.qkv_cols(), HIDDEN), ("gate_up", 2 * FFN, HIDDEN), ("down", HIDDEN, FFN)]
    {
        let (a, b) = (values(rank * inputs), values(outputs * rank));
        let matrix = |rows, cols, data| MatrixSource { quant: Quant::F16, rows, cols, data };
        let part =
            LowRankSource { first_col: 0, a: matrix(rank, inputs, &a), b: matrix(outputs, rank, &b), scale: 1.0 };
        let by = ops.low_rank(&[part]).expect("the adapter fits");
        for rows in [1, 16, 128] {
            let (x, mut out) = (activations(&mut ops, rows, inputs), activations(&mut ops, rows, outputs));
            let bytes = (a.len() + b.len() + 4 * rows * (inputs + 2 * outputs)) as u64;
            let elements = (2 * rows * rank * (inputs + outputs)) as u64;
            group.throughput(Throughput::ElementsAndBytes { elements, bytes });
            let adapted = [Adapted { rows: 0..rows, by: &by }];
            group.bench_function(BenchmarkId::new(name, rows), |b| b.iter(|| ops.lora_add(&x, &adapted, &mut out)));
        }
    }
}

/// One layer: decode rows at some depth, and a prompt. An element is a multiplication or an addition.
fn attention(c: &mut Criterion) {
    let mut ops = Cpu::new(1);
    let blocks: Vec<u32> = (0..128).map(|b| b * 37 % 128).collect();
    let shape = KvShape { layers: 1, kv_heads: HEADS.kv, head_dim: HEADS.dim, blocks: blocks.len(), kind: KvKind::F16 };
    let mut cache = ops.kv_cache(shape).expect("the cache fits");
    let frequencies = (0..HEADS.dim / 2).map(|i| 1e5f64.powf(-2.0 * i as f64 / HEADS.dim as f64)).collect();
    let rope = Rope { frequencies, magnitude: 1.0, pairs: RopePairs::Adjacent, positions: 2048 };
    let rope = ops.rope_table(&rope).expect("the table fits");
    let mut all = activations(&mut ops, 2048, HEADS.qkv_cols());
    let span = Span { first_row: 0, rows: 2048, first_position: 0, first_block: 0 };
    let step = StepLayout { spans: &[span], blocks: &blocks };
    ops.rope_store(Some(&rope), &step, HEADS, &mut all, &mut cache, 0).expect("the CPU has no faults");

    let mask = Mask { scale: 0.125, softcap: None, window: None, causal: true };
    let mut group = c.benchmark_group("attention");
    for (name, rows, first_position) in [("decode", 1, 127), ("decode", 1, 1023), ("prompt", 128, 0)] {
        let span = Span { rows, first_position, ..span };
        let step = StepLayout { spans: &[span], blocks: &blocks };
        let mut qkv = activations(&mut ops, rows, HEADS.qkv_cols());
        let mut out = ops.buffer(rows, HIDDEN).expect("the buffer fits");
        let pairs: usize = (first_position + 1..=first_position + rows).sum();
        let elements = (4 * pairs * HEADS.query * HEADS.dim) as u64;
        let bytes = (8 * rows * HIDDEN + 4 * (first_position + rows) * HEADS.kv * HEADS.dim) as u64;
        group.throughput(Throughput::ElementsAndBytes { elements, bytes });
        let depth = first_position + rows;
        group.bench_function(BenchmarkId::new(name, depth), |b| {
            b.iter(|| ops.attention(&step, HEADS, mask, None, &qkv, &cache, 0, &mut out));
        });
        group.throughput(Throughput::Bytes((8 * rows * 768 + 4 * rows * HEADS.kv * HEADS.dim) as u64));
        group.bench_function(BenchmarkId::new(format!("{name}_rope_store"), depth), |b| {
            b.iter(|| ops.rope_store(Some(&rope), &step, HEADS, &mut qkv, &mut cache, 0));
        });
    }
}

/// Operations that treat rows by themselves.
fn rows(c: &mut Criterion) {
    let mut ops = Cpu::new(1);
    let (table, _) = matrix(&mut ops, Quant::Q8_0, VOCABULARY, HIDDEN);
    let weight = ops.vector(&[1.0; HIDDEN]).expect("the vector fits");
    let mut group = c.benchmark_group("rows");
    for rows in [1, 128] {
        let (x, gate_up) = (activations(&mut ops, rows, HIDDEN), activations(&mut ops, rows, 2 * FFN));
        let mut hidden = ops.buffer(rows, HIDDEN).expect("the buffer fits");
        let mut narrow = ops.buffer(rows, FFN).expect("the buffer fits");
        let tokens: Vec<u32> = (0..rows as u32).map(|t| t * 379 % VOCABULARY as u32).collect();
        group.throughput(Throughput::Bytes((rows * (Quant::Q8_0.row_bytes(HIDDEN) + 4 * HIDDEN)) as u64));
        group.bench_function(BenchmarkId::new("embed", rows), |b| b.iter(|| ops.embed(&table, &tokens, &mut hidden)));
        group.throughput(Throughput::Bytes((8 * rows * HIDDEN + 4 * HIDDEN) as u64));
        group.bench_function(BenchmarkId::new("norm", rows), |b| b.iter(|| ops.norm(&x, &weight, 1e-5, &mut hidden)));
        group.throughput(Throughput::Bytes((12 * rows * FFN) as u64));
        group.bench_function(BenchmarkId::new("swiglu", rows), |b| {
            b.iter(|| ops.gate(Activation::Silu, &gate_up, &mut narrow))
        });
        let text = std::iter::once(0..rows).collect::<Vec<_>>();
        group.throughput(Throughput::Bytes((4 * HIDDEN * (rows + 1)) as u64));
        group.bench_function(BenchmarkId::new("mean_rows", rows), |b| b.iter(|| ops.mean_rows(&x, &text, &mut hidden)));
        group.throughput(Throughput::Bytes((8 * rows * HIDDEN) as u64));
        let mut vectors = activations(&mut ops, rows, HIDDEN);
        group.bench_function(BenchmarkId::new("normalize", rows), |b| b.iter(|| ops.normalize(&mut vectors)));
    }
}

/// Operations on each value of a row, or on rows by number.
fn values(c: &mut Criterion) {
    let mut ops = Cpu::new(1);
    let vector = |ops: &mut Cpu, len| ops.vector(&vec![0.5; len]).expect("the vector fits");
    let (of_row, of_head) = (vector(&mut ops, HIDDEN), vector(&mut ops, HEADS.dim));
    let mut group = c.benchmark_group("values");
    for rows in [1, 128] {
        let x = activations(&mut ops, rows, HIDDEN);
        let mut out = activations(&mut ops, rows, HIDDEN);
        let heads = 0..HIDDEN / HEADS.dim;
        let to: Vec<(usize, f32)> = (0..rows).map(|row| (rows - 1 - row, 0.01)).collect();
        group.throughput(Throughput::Bytes((8 * rows * HIDDEN) as u64));
        group.bench_function(BenchmarkId::new("add_bias", rows), |b| b.iter(|| ops.add_bias(&of_row, &mut out)));
        group.bench_function(BenchmarkId::new("scale", rows), |b| b.iter(|| ops.scale(0.99, Some(30.0), &mut out)));
        group.bench_function(BenchmarkId::new("norm_heads", rows), |b| {
            b.iter(|| ops.norm_heads(&of_head, 1e-5, heads.clone(), &mut out));
        });
        group.bench_function(BenchmarkId::new("layer_norm", rows), |b| {
            b.iter(|| ops.layer_norm(&x, &of_row, &of_row, 1e-12, &mut out));
        });
        group.bench_function(BenchmarkId::new("activate", rows), |b| {
            b.iter(|| ops.activate(Activation::GeluErf, &mut out));
        });
        group.throughput(Throughput::Bytes((12 * rows * HIDDEN) as u64));
        group.bench_function(BenchmarkId::new("add_scaled", rows), |b| b.iter(|| ops.add_scaled(&x, 1e-3, &mut out)));
        group.bench_function(BenchmarkId::new("scatter_add", rows), |b| b.iter(|| ops.scatter_add(&x, &to, &mut out)));
    }
}

/// One token from a whole vocabulary, the logits spread like a model's.
fn sample(c: &mut Criterion) {
    let mut ops = Cpu::new(1);
    let mut random = Random(3);
    let bell = |random: &mut Random| (0..6).map(|_| random.value()).sum::<f32>() * 2.0;
    let logits: Vec<u8> = (0..VOCABULARY).flat_map(|_| bell(&mut random).to_le_bytes()).collect();
    let source = MatrixSource { quant: Quant::F32, rows: 1, cols: VOCABULARY, data: &logits };
    let table = ops.matrix(&[source]).expect("the matrix fits");
    let mut x = ops.buffer(1, VOCABULARY).expect("the buffer fits");
    ops.embed(&table, &[0], &mut x).expect("the CPU has no faults");
    let history = TokenHistory::default();
    let plain = SamplingParams::default();
    let ways = [
        ("greedy", SamplingParams { temperature: 0.0, ..plain.clone() }),
        ("plain", plain.clone()),
        ("top_k", SamplingParams { top_k: 40, ..plain.clone() }),
        ("top_p", SamplingParams { top_p: 0.9, ..plain.clone() }),
        ("min_p", SamplingParams { min_p: 0.05, ..plain.clone() }),
        ("typical_p", SamplingParams { typical_p: 0.9, ..plain.clone() }),
        ("xtc", SamplingParams { xtc_probability: 1.0, ..plain }),
    ];
    let mut group = c.benchmark_group("sample");
    group.throughput(Throughput::Bytes(4 * VOCABULARY as u64));
    for (name, params) in &ways {
        let mut position = 0;
        group.bench_function(*name, |b| {
            b.iter(|| {
                position += 1;
                let request = SampleRequest { seed: 1, position, ..SampleRequest::new(params, &history) };
                black_box(ops.sample(&x, &[request]))
            });
        });
    }
    let question = [LogprobRequest { row: 0, token: 17, top: 20 }];
    group.bench_function("logprobs", |b| b.iter(|| black_box(ops.logprobs(&x, &question))));
}

criterion_group!(ops, linear, lora_add, attention, rows, values, sample);
criterion_main!(ops);
