//! Every operation against the f64 oracle, and the backend against itself bit for bit: alone and batched, whole and in
//! chunks, on any number of threads, with any instruction set.
#![allow(clippy::unwrap_used)]

mod attention;
mod copies;
mod layer;
mod sizes;

use half::f16;

use super::*;
use crate::cuda::{Cuda, Emulator};
use crate::exact::Exact;
use crate::kv::KvKind;
use crate::ops::{ATTENTION_SPLIT, KV_BLOCK_TOKENS, RopePairs, Span};
use crate::quant::{Quant, dequantize_row};
use crate::reference::{Reference, Rounding};

/// SplitMix64: numbers for tests, the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Between -1 and 1.
    fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }

    /// A matrix whose values are about as large as those of models.
    pub(crate) fn matrix(&mut self, quant: Quant, rows: usize, cols: usize) -> OwnedMatrix {
        let mut data = Vec::new();
        for _ in 0..rows * cols / quant.block() {
            let v = self.value() / 8.0;
            let begin = data.len();
            data.resize_with(begin + quant.block_bytes(), || self.bits() as u8);
            // All bits are random but those of the scales, which are the size that makes values as large as those of models.
            let block = &mut data[begin..];
            let mut put = |at: usize, v: f32| block[at..at + 2].copy_from_slice(&f16::from_f32(v).to_le_bytes());
            match quant {
                Quant::F32 => block.copy_from_slice(&v.to_le_bytes()),
                Quant::F16 => put(0, v),
                Quant::BF16 => block.copy_from_slice(&half::bf16::from_f32(v).to_le_bytes()),
                Quant::Q4_0 | Quant::Q5_0 | Quant::Q8_0 | Quant::IQ4_NL => put(0, v / 16.0),
                Quant::Q4_1 | Quant::Q5_1 => [(0, v / 8.0), (2, -v / 2.0)].iter().for_each(|(at, v)| put(*at, *v)),
                Quant::Q4_K | Quant::Q5_K => [(0, v / 300.0), (2, v / 40.0)].iter().for_each(|(at, v)| put(*at, *v)),
                Quant::Q2_K => [(80, v / 20.0), (82, v / 20.0)].iter().for_each(|(at, v)| put(*at, *v)),
                Quant::Q3_K => put(108, v / 60.0),
                Quant::Q6_K => put(208, v / 900.0),
                Quant::IQ4_XS => put(0, v / 900.0),
                Quant::MXFP4 => block[0] = 120 + block[0] % 4,
                Quant::INT4 => {
                    block[..4].copy_from_slice(&f16::from_f32(v / 8.0).to_f32().to_le_bytes());
                    block[4..8].copy_from_slice(&(-v / 2.0).to_le_bytes());
                }
                Quant::FP8 => block[..4].copy_from_slice(&(v / 448.0).to_le_bytes()),
            }
        }
        OwnedMatrix { quant, rows, cols, data }
    }
}

pub(crate) struct OwnedMatrix {
    quant: Quant,
    rows: usize,
    cols: usize,
    data: Vec<u8>,
}

impl OwnedMatrix {
    pub(crate) fn source(&self) -> MatrixSource<'_> {
        MatrixSource { quant: self.quant, rows: self.rows, cols: self.cols, data: &self.data }
    }
}

/// Puts values into a buffer by the only door there is.
pub(crate) fn upload<O: Ops>(ops: &mut O, values: &[f32], cols: usize) -> O::Buffer {
    let rows = values.len() / cols;
    let source = MatrixSource { quant: Quant::F32, rows, cols, data: bytemuck::cast_slice(values) };
    let table = ops.matrix(&[source]).unwrap();
    let mut out = ops.buffer(rows, cols).unwrap();
    ops.embed(&table, &(0..rows as u32).collect::<Vec<_>>(), &mut out).unwrap();
    out
}

fn backends() -> Vec<Cpu> {
    let present = Isa::ALL.into_iter().filter(|isa| isa.is_present());
    present.flat_map(|isa| [1, 2, 3].map(|threads| Cpu::with_isa(threads, isa))).collect()
}

/// The CUDA kernels, whose threads take turns in some order.
fn emulated() -> Vec<Cuda<Emulator>> {
    [0, 1, 7].into_iter().filter_map(|order| Emulator::new(order, 1)).map(Cuda::new).collect()
}

/// Mean square of the difference by mean square of what is expected.
fn nmse(got: &[f32], expect: &[f32]) -> f64 {
    assert_eq!(got.len(), expect.len());
    let square = |v: f64| v * v;
    let error: f64 = got.iter().zip(expect).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    error / expect.iter().map(|v| square(f64::from(*v))).sum::<f64>().max(f64::MIN_POSITIVE)
}

pub(crate) fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

/// Runs `f` on every backend, checks that all agree with the contract bit for bit, and with the oracle within `tolerance`
/// (NMSE).
macro_rules! agree {
    ($tolerance:expr, $ops:ident => $result:expr) => {{
        let oracle: Vec<f32> = {
            let $ops = &mut Reference::new(Rounding::AsBackends);
            $result
        };
        let exact: Vec<f32> = {
            let $ops = &mut Exact::new();
            $result
        };
        for mut backend in backends() {
            let name = backend.describe();
            let got: Vec<f32> = {
                let $ops = &mut backend;
                $result
            };
            let error = nmse(&got, &oracle);
            assert!(error < $tolerance, "{name}: {error:e} off the oracle");
            assert_eq!(bits(&exact), bits(&got), "{name} differs from the contract");
        }
        for mut backend in emulated() {
            let name = backend.describe();
            let got: Vec<f32> = {
                let $ops = &mut backend;
                $result
            };
            assert_eq!(bits(&exact), bits(&got), "{name} differs from the contract");
        }
    }};
}

mod low_rank;

#[test]
fn linear_in_all_formats_and_ragged_shapes() {
    let mut random = Random(1);
    let shapes = [(1, 32), (5, 96), (8, 64), (19, 1536), (64, 576), (33, 160), (17, 256), (3, 768)];
    for (i, quant) in Quant::ALL.into_iter().enumerate() {
        for (rows, cols) in shapes.into_iter().filter(|(_, cols)| cols % quant.block() == 0) {
            let w = random.matrix(quant, rows, cols);
            // A second part of another format, after a part whose last tile may be incomplete.
            let others = Quant::ALL.into_iter().cycle().skip(i + 5);
            let v = random.matrix(others.into_iter().find(|q| cols % q.block() == 0).unwrap(), 11, cols);
            for tokens in [1, 2, 3, 5, 8, 17] {
                let x = random.values(tokens * cols);
                agree!(2e-12, ops => {
                    let x = upload(ops, &x, cols);
                    let w = ops.matrix(&[w.source(), v.source()]).unwrap();
                    let mut out = ops.buffer(tokens + 1, rows + 11).unwrap();
                    ops.linear(&x, &w, &mut out).unwrap();
                    ops.linear_add(&x, &w, &mut out).unwrap();
                    let mut both = ops.read(&out).unwrap();
                    ops.linear_fine(&x, &w, &mut out).unwrap();
                    both.extend(ops.read(&out).unwrap());
                    both
                });
            }
        }
    }
}

#[test]
fn embeddings_are_the_dequantized_rows() {
    let mut random = Random(2);
    for quant in Quant::ALL {
        let (a, b) = (random.matrix(quant, 13, 256), random.matrix(Quant::Q8_0, 6, 256));
        let mut expect = Vec::new();
        let tokens = [18u32, 0, 12, 13, 5, 12];
        for &token in &tokens {
            let (m, row) = if token < 13 { (&a, token as usize) } else { (&b, token as usize - 13) };
            let (mut values, bytes) = ([0.0; 256], m.quant.row_bytes(256));
            dequantize_row(m.quant, &m.data[row * bytes..][..bytes], &mut values);
            expect.extend(values);
        }
        agree!(f64::MIN_POSITIVE, ops => {
            let table = ops.matrix(&[a.source(), b.source()]).unwrap();
            let mut out = ops.buffer(6, 256).unwrap();
            ops.embed(&table, &tokens, &mut out).unwrap();
            let read = ops.read(&out).unwrap();
            assert_eq!(bits(&read), bits(&expect), "{quant}");
            read
        });
    }
}

#[test]
fn norm_swiglu_gather() {
    let mut random = Random(3);
    for cols in [32, 96, 576, 1536] {
        for rows in [1, 2, 3, 17, 40] {
            let x: Vec<f32> = random.values(rows * cols).iter().map(|v| v * 20.0).collect();
            let weight = random.values(cols);
            agree!(1e-13, ops => {
                let x = upload(ops, &x, cols);
                let weight = ops.vector(&weight).unwrap();
                let mut out = ops.buffer(rows, cols).unwrap();
                ops.norm(&x, &weight, 1e-5, &mut out).unwrap();
                ops.read(&out).unwrap()
            });
            agree!(1e-13, ops => {
                let x = upload(ops, &x, cols);
                let mut out = ops.buffer(rows, cols / 2).unwrap();
                ops.gate(Activation::Silu, &x, &mut out).unwrap();
                ops.read(&out).unwrap()
            });
            let picked: Vec<usize> = (0..rows).rev().step_by(2).collect();
            agree!(f64::MIN_POSITIVE, ops => {
                let x = upload(ops, &x, cols);
                let mut out = ops.buffer(rows, cols).unwrap();
                ops.gather(&x, &picked, &mut out).unwrap();
                ops.read(&out).unwrap()
            });
        }
    }
}

#[test]
fn activations_biases_and_scales() {
    let mut random = Random(31);
    let activations = [
        Activation::Silu,
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 },
    ];
    for (cols, rows) in [(32, 1), (96, 3), (1536, 17)] {
        let x: Vec<f32> = random.values(rows * cols).iter().map(|v| v * 12.0).collect();
        let (weight, bias) = (random.values(cols), random.values(cols));
        for activation in activations {
            agree!(1e-11, ops => {
                let mut x = upload(ops, &x, cols);
                let mut out = ops.buffer(rows, cols / 2).unwrap();
                ops.gate(activation, &x, &mut out).unwrap();
                ops.activate(activation, &mut x).unwrap();
                [ops.read(&out).unwrap(), ops.read(&x).unwrap()].concat()
            });
        }
        agree!(1e-13, ops => {
            let mut x = upload(ops, &x, cols);
            let [weight, bias] = [&weight, &bias].map(|v| ops.vector(v).unwrap());
            let [mut y, mut z] = [rows, rows].map(|rows| ops.buffer(rows, cols).unwrap());
            ops.layer_norm(&x, &weight, &bias, 1e-5, &mut y).unwrap();
            ops.norm(&y, &weight, 1e-5, &mut z).unwrap();
            ops.add_scaled(&y, 0.22, &mut z).unwrap();
            ops.add_bias(&bias, &mut z).unwrap();
            let heads = ops.vector(&[0.5, 1.5, -2.0, 3.0].repeat(4)).unwrap();
            ops.norm_heads(&heads, 1e-6, 1..cols / 16, &mut z).unwrap();
            ops.scale(-3.0, None, &mut x).unwrap();
            [ops.read(&x).unwrap(), ops.read(&z).unwrap()].concat()
        });
        agree!(1e-11, ops => {
            let mut x = upload(ops, &x, cols);
            ops.scale(0.5, Some(3.0), &mut x).unwrap();
            ops.read(&x).unwrap()
        });
    }
    // A vocabulary need not be whole vectors.
    let (w, x) = (random.matrix(Quant::F32, 37, 32), random.values(64));
    agree!(1e-11, ops => {
        let (w, x) = (ops.matrix(&[w.source()]).unwrap(), upload(ops, &x, 32));
        let mut out = ops.buffer(2, 37).unwrap();
        ops.linear(&x, &w, &mut out).unwrap();
        ops.scale(4.0, Some(2.0), &mut out).unwrap();
        ops.read(&out).unwrap()
    });
}

#[test]
fn means_of_rows_and_rows_of_length_one() {
    let mut random = Random(32);
    for (cols, rows) in [(32, 1), (96, 5), (384, 40), (768, 130)] {
        let mut x: Vec<f32> = random.values(rows * cols).iter().map(|v| v * 20.0).collect();
        let spans = [0..rows, 0..1, rows / 3..rows / 3 + 1, rows / 2..rows, 0..rows];
        agree!(1e-12, ops => {
            let x = upload(ops, &x, cols);
            let mut out = ops.buffer(spans.len(), cols).unwrap();
            ops.mean_rows(&x, &spans, &mut out).unwrap();
            let means = ops.read(&out).unwrap();
            ops.normalize(&mut out).unwrap();
            [means, ops.read(&out).unwrap()].concat()
        });
        // A row of zeros stays what it is, and one that is very short does not become infinite.
        x[..cols].fill(0.0);
        x[(rows - 1) * cols..].fill(0.0);
        x[rows * cols - 1] = 1e-15;
        agree!(1e-12, ops => {
            let mut x = upload(ops, &x, cols);
            ops.normalize(&mut x).unwrap();
            let read = ops.read(&x).unwrap();
            assert!(rows == 1 || read[..cols].iter().all(|v| *v == 0.0));
            assert!((read[rows * cols - 1] - 1e-3).abs() < 1e-9);
            read
        });
    }
}

#[test]
fn swiglu_at_the_ends() {
    let mut gate_up = vec![1.0f32; 64];
    gate_up[..8].copy_from_slice(&[-200.0, -88.5, -87.0, 200.0, 0.0, -1e30, 1e30, f32::NAN]);
    for mut ops in backends() {
        let x = upload(&mut ops, &gate_up, 64);
        let mut out = ops.buffer(1, 32).unwrap();
        ops.gate(Activation::Silu, &x, &mut out).unwrap();
        let y = ops.read(&out).unwrap();
        assert!(y[..3].iter().all(|v| v.abs() < 1e-35) && y[5].abs() < 1e-6, "{y:?}");
        assert_eq!((y[3], y[4], y[6]), (200.0, 0.0, 1e30));
        assert!(y[7].is_nan());
    }
}

/// Attention alone, of every kind of mask, against the oracle.
#[test]
fn attention_sees_what_the_mask_says() {
    let heads = Heads { query: 6, kv: 2, dim: 32 };
    let x: Vec<f32> = Random(50).values(53 * heads.qkv_cols()).iter().map(|v| v * 2.0).collect();
    let kv = KvShape { layers: 1, kv_heads: heads.kv, head_dim: heads.dim, blocks: 4, kind: KvKind::F16 };
    let spans = [Span { first_row: 0, rows: 53, first_position: 0, first_block: 0 }];
    let step = StepLayout { spans: &spans, blocks: &[2, 0, 3, 1] };
    let sinks = [0.5, -1.0, 2.0, 0.0, 8.0, -30.0];
    for (i, (causal, window)) in
        [(true, None), (true, Some(7)), (false, None), (false, Some(20)), (true, Some(33))].into_iter().enumerate()
    {
        for softcap in [None, Some(1.5)] {
            let kv = KvShape { kind: KvKind::ALL[(i + usize::from(softcap.is_some())) % 3], ..kv };
            let mask = Mask { scale: 0.4, softcap, window, causal };
            agree!(1e-11, ops => {
                let (mut qkv, mut cache) = (upload(ops, &x, heads.qkv_cols()), ops.kv_cache(kv).unwrap());
                let mut out = ops.buffer(53, 192).unwrap();
                ops.rope_store(None, &step, heads, &mut qkv, &mut cache, 0).unwrap();
                ops.attention(&step, heads, mask, None, &qkv, &cache, 0, &mut out).unwrap();
                let plain = ops.read(&out).unwrap();
                let sinks = ops.vector(&sinks).unwrap();
                ops.attention(&step, heads, mask, Some(&sinks), &qkv, &cache, 0, &mut out).unwrap();
                [plain, ops.read(&out).unwrap()].concat()
            });
        }
    }
}

/// Contexts of several splits, seen whole, through a window that begins within one, and with a sink.
#[test]
fn attention_joins_splits_in_order() {
    let heads = Heads { query: 2, kv: 1, dim: 16 };
    let rows = 2 * ATTENTION_SPLIT + 20;
    let x: Vec<f32> = Random(51).values(rows * heads.qkv_cols()).iter().map(|v| v * 2.0).collect();
    let kv =
        KvShape { layers: 1, kv_heads: 1, head_dim: 16, blocks: rows.div_ceil(KV_BLOCK_TOKENS), kind: KvKind::F16 };
    let spans = [Span { first_row: 0, rows, first_position: 0, first_block: 0 }];
    let blocks: Vec<u32> = (0..kv.blocks as u32).rev().collect();
    let step = StepLayout { spans: &spans, blocks: &blocks };
    for (causal, window) in [(true, None), (true, Some(300)), (false, None)] {
        let mask = Mask { scale: 0.4, softcap: None, window, causal };
        agree!(1e-11, ops => {
            let (mut qkv, mut cache) = (upload(ops, &x, heads.qkv_cols()), ops.kv_cache(kv).unwrap());
            let mut out = ops.buffer(rows, 32).unwrap();
            ops.rope_store(None, &step, heads, &mut qkv, &mut cache, 0).unwrap();
            let sinks = ops.vector(&[0.5, 6.0]).unwrap();
            ops.attention(&step, heads, mask, Some(&sinks), &qkv, &cache, 0, &mut out).unwrap();
            ops.read(&out).unwrap()
        });
    }
}

#[test]
fn sampling_is_the_same_on_every_backend() {
    let logits = Random(8).values(5 * 1024);
    let params = crate::sampling::SamplingParams { temperature: 0.7, top_p: 0.95, ..Default::default() };
    let history = crate::sampling::TokenHistory::default();
    let mask: crate::sampling::TokenMask = (0..1024).filter(|t| t % 7 == 3).collect();
    let requests: Vec<_> = (0..40)
        .map(|i| SampleRequest {
            row: i % 5,
            seed: 9,
            position: i as u64,
            allowed: (i % 3 == 0).then_some(&mask),
            ..SampleRequest::new(&params, &history)
        })
        .collect();
    agree!(f64::MIN_POSITIVE, ops => {
        let logits = upload(ops, &logits, 1024);
        ops.sample(&logits, &requests).unwrap().iter().map(|s| s.token as f32).collect()
    });
    let questions: Vec<_> =
        (0..40).map(|i| LogprobRequest { row: i % 5, token: 25 * i as u32, top: i as u32 % 21 }).collect();
    agree!(f64::MIN_POSITIVE, ops => {
        let logits = upload(ops, &logits, 1024);
        let answers = ops.logprobs(&logits, &questions).unwrap();
        let values = |a: &crate::sampling::Logprobs| {
            let top: Vec<f32> = a.top.iter().flat_map(|(id, logprob)| [*id as f32, *logprob]).collect();
            [vec![a.logprob, a.rank as f32], top].concat()
        };
        answers.iter().flat_map(values).collect()
    });
    let mut broken = logits.clone();
    broken[3 * 1024 + 7] = f32::NAN;
    let mut ops = Cpu::new(2);
    let broken = upload(&mut ops, &broken, 1024);
    assert!(matches!(ops.sample(&broken, &requests), Err(OpsError::Fault(_))));
    assert!(matches!(ops.logprobs(&broken, &questions), Err(OpsError::Fault(_))));
}

#[test]
fn broken_activations_show_in_every_product() {
    fn all_broken(ops: &mut impl Ops, w: &OwnedMatrix) -> bool {
        let mut x = vec![1.0f32; 256];
        x[40] = f32::NAN;
        let (x, w) = (upload(ops, &x, 256), ops.matrix(&[w.source()]).unwrap());
        let mut out = ops.buffer(1, 9).unwrap();
        ops.linear(&x, &w, &mut out).unwrap();
        ops.read(&out).unwrap().iter().all(|v| v.is_nan())
    }
    for quant in Quant::ALL {
        let w = Random(10).matrix(quant, 9, 256);
        assert!(backends().iter_mut().all(|ops| all_broken(ops, &w)), "{quant}");
        assert!(emulated().iter_mut().all(|ops| all_broken(ops, &w)), "{quant}, emulated");
    }
}

#[test]
fn a_step_may_have_no_rows() {
    let w = Random(11).matrix(Quant::Q4_1, 12, 32);
    agree!(f64::MIN_POSITIVE, ops => {
        let (w, norm) = (ops.matrix(&[w.source()]).unwrap(), ops.vector(&[1.0; 32]).unwrap());
        let [mut x, mut y, mut z] = [32, 32, 12].map(|cols| ops.buffer(4, cols).unwrap());
        ops.embed(&w, &[], &mut x).unwrap();
        ops.norm(&x, &norm, 1e-5, &mut y).unwrap();
        ops.gather(&y, &[], &mut x).unwrap();
        ops.linear(&x, &w, &mut z).unwrap();
        ops.linear_add(&x, &w, &mut z).unwrap();
        assert!(ops.sample(&z, &[]).unwrap().is_empty());
        ops.read(&z).unwrap()
    });
}

/// Two sequences that write to one block would race; the step is refused as the bug it is.
#[test]
#[should_panic(expected = "same place of the KV cache")]
fn sequences_cannot_write_to_the_same_slot() {
    let (mut ops, heads) = (Cpu::new(2), Heads { query: 1, kv: 1, dim: 16 });
    let rope = Rope { frequencies: vec![0.5; 8], magnitude: 1.0, pairs: RopePairs::Halves, positions: 16 };
    let rope = ops.rope_table(&rope).unwrap();
    let mut cache =
        ops.kv_cache(KvShape { layers: 1, kv_heads: 1, head_dim: 16, blocks: 2, kind: KvKind::F16 }).unwrap();
    let mut qkv = upload(&mut ops, &[0.5; 2 * 96], 96);
    qkv.cols = heads.qkv_cols();
    let span = Span { first_row: 0, rows: 1, first_position: 3, first_block: 0 };
    let spans = [span, Span { first_row: 1, first_block: 1, ..span }];
    let step = StepLayout { spans: &spans, blocks: &[1, 1] };
    ops.rope_store(Some(&rope), &step, heads, &mut qkv, &mut cache, 0).unwrap();
}

#[test]
fn contradictory_matrices_are_refused() {
    let data = vec![0u8; 4096];
    let source = |quant, rows, cols, bytes| MatrixSource { quant, rows, cols, data: &data[..bytes] };
    let bad = [
        vec![source(Quant::F32, 2, 48, 384)],
        vec![source(Quant::Q4_1, 2, 64, 79)],
        vec![source(Quant::Q4_1, 0, 64, 0)],
        vec![source(Quant::Q4_1, 2, 0, 0)],
        vec![source(Quant::Q4_1, usize::MAX, 64, 80)],
        vec![source(Quant::Q8_0, 2, 64, 136), source(Quant::Q8_0, 2, 32, 68)],
    ];
    for parts in bad {
        let results = [Cpu::new(1).matrix(&parts).err(), Reference::new(Rounding::None).matrix(&parts).err()];
        for error in results {
            assert!(matches!(error, Some(OpsError::BadMatrix { .. })), "{parts:?}: {error:?}");
        }
    }
    assert!(Cpu::new(1).matrix(&[source(Quant::Q4_1, 2, 64, 80)]).is_ok());
}

#[test]
fn more_memory_than_there_is_is_an_error() {
    let shape = KvShape { layers: 1 << 20, kv_heads: 1 << 10, head_dim: 64, blocks: 1 << 30, kind: KvKind::F16 };
    assert!(matches!(Cpu::new(1).kv_cache(shape), Err(OpsError::OutOfMemory { .. })));
    assert!(matches!(Cpu::new(1).buffer(usize::MAX / 2, 64), Err(OpsError::OutOfMemory { .. })));
}
