//! Products of the fast profile against f64, with themselves in other company, and on both kinds of architecture.

#![allow(clippy::unwrap_used)]

use bytemuck::cast_slice;
use half::{bf16, f16};

use super::*;
use crate::cuda::Emulator;
use crate::cuda::machine::Piece;
use crate::memory::Memory;
use crate::ops::{MatrixSource, Ops};

const KINDS: [Narrow; 2] = [Narrow::Bf16, Narrow::F16];

/// SplitMix64, as values between -1 and 1.
fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut value = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| value()).collect()
}

fn narrow(kind: Narrow, v: f32) -> u16 {
    match kind {
        Narrow::Bf16 => bf16::from_f32(v).to_bits(),
        Narrow::F16 => f16::from_f32(v).to_bits(),
    }
}

fn wide(kind: Narrow, bits: u16) -> f32 {
    match kind {
        Narrow::Bf16 => bf16::from_bits(bits).to_f32(),
        Narrow::F16 => f16::from_bits(bits).to_f32(),
    }
}

fn source<'a>(kind: Narrow, cols: usize, weights: &'a [u16]) -> MatrixSource<'a> {
    let quant = match kind {
        Narrow::Bf16 => Quant::BF16,
        Narrow::F16 => Quant::F16,
    };
    MatrixSource { quant, rows: weights.len() / cols, cols, data: cast_slice(weights) }
}

/// Emulators of both kinds, whose threads take turns in three orders.
fn machines() -> Vec<(String, Cuda<Emulator>)> {
    let machine = |architecture, order| {
        let machine = Emulator::new(order, 1)?.with_architecture(architecture);
        Some((format!("{architecture}, order {order}"), Cuda::with_profile(machine, Profile::Fast)))
    };
    [80, 90].into_iter().flat_map(|a| [0, 1, 7].into_iter().filter_map(move |order| machine(a, order))).collect()
}

/// Puts values into a buffer of more rows, with not-a-number in those that are left.
fn upload(ops: &mut Cuda<Emulator>, x: &[f32], cols: usize, more: usize) -> Buffer<Emulator> {
    let rows = x.len() / cols;
    let mut out = ops.buffer(rows + more, cols).unwrap();
    let all = [x, &vec![f32::NAN; more * cols]].concat();
    ops.machine.write(&mut out.memory, 0, cast_slice(&all)).unwrap();
    out.rows = rows;
    out
}

/// `[tokens][rows of all parts]`, and what stands in the two rows of the buffer after those in use.
fn product(
    ops: &mut Cuda<Emulator>,
    x: &[f32],
    parts: &[MatrixSource<'_>],
    before: Option<&[f32]>,
) -> (Vec<f32>, Vec<f32>) {
    let (cols, rows) = (parts[0].cols, parts.iter().map(|p| p.rows).sum::<usize>());
    let tokens = x.len() / cols;
    let (x, w) = (upload(ops, x, cols, 3), ops.matrix(parts).unwrap());
    let nan = vec![f32::NAN; tokens * rows];
    let mut out = upload(ops, before.unwrap_or(&nan), rows, 2);
    match before {
        Some(_) => ops.linear_add(&x, &w, &mut out).unwrap(),
        None => ops.linear(&x, &w, &mut out).unwrap(),
    }
    assert_eq!(out.memory.bytes(), (tokens + 2) * rows * 4);
    let mut rest = vec![0.0f32; 2 * rows];
    ops.machine.read(&out.memory, tokens * rows * 4, bytemuck::cast_slice_mut(&mut rest)).unwrap();
    (ops.read(&out).unwrap(), rest)
}

/// Relative L2 distance of `got` from the product in f64 of what `x` makes of activations.
fn distance(got: &[f32], activations: &[f32], weights: &[f32], cols: usize, before: Option<&[f32]>) -> f64 {
    let (mut error, mut total) = (0.0, 0.0);
    let expected = activations.chunks_exact(cols).flat_map(|x| {
        weights.chunks_exact(cols).map(|w| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>())
    });
    for (i, (got, product)) in got.iter().zip(expected).enumerate() {
        let expected = product + before.map_or(0.0, |b| f64::from(b[i]));
        error += (f64::from(*got) - expected).powi(2);
        total += expected.powi(2);
    }
    (error / total).sqrt()
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

/// Rows of two parts, columns, tokens: every path, whole tiles and ragged ones, a last step of half its columns, more tiles than
/// multiprocessors.
const SHAPES: [([usize; 2], usize, usize); 9] = [
    ([1, 5], 32, 1),
    ([16, 3], 96, 3),
    ([70, 1], 512, 8),
    ([33, 17], 160, 13),
    ([48, 31], 64, 32),
    ([129, 7], 224, 64),
    ([128, 64], 128, 65),
    ([300, 9], 96, 130),
    ([520, 257], 32, 200),
];

/// 2^-8 of a value is the most that rounding to bfloat16 changes, 2^-11 that to halves; sums of many such products are less far off. To
/// the products of the rounded values nothing but the sums in `f32` is added: 1e-5 (what was seen is 2e-7).
#[test]
fn fast_products_are_those_of_rounded_activations() {
    for (i, (parts, cols, tokens)) in SHAPES.into_iter().enumerate() {
        let kind = KINDS[i % 2];
        let weights: Vec<u16> =
            values(i as u64, (parts[0] + parts[1]) * cols).iter().map(|v| narrow(kind, *v)).collect();
        let (first, second) = weights.split_at(parts[0] * cols);
        let (x, before) = (values(100, tokens * cols), values(101, tokens * (parts[0] + parts[1])));
        let rounded: Vec<f32> = x.iter().map(|v| wide(kind, narrow(kind, *v))).collect();
        let exact: Vec<f32> = weights.iter().map(|v| wide(kind, *v)).collect();
        let mut results = Vec::new();
        for (name, mut ops) in machines() {
            let sources = [source(kind, cols, first), source(kind, cols, second)];
            for before in [None, Some(before.as_slice())] {
                let (got, rest) = product(&mut ops, &x, &sources, before);
                let sums = distance(&got, &rounded, &exact, cols, before);
                let whole = distance(&got, &x, &exact, cols, before);
                let rounding = if kind == Narrow::Bf16 { 2f64.powi(-8) } else { 2f64.powi(-11) };
                assert!(sums < 1e-5 && whole < rounding, "{name}: {parts:?} x {cols} x {tokens}: {sums:e}, {whole:e}");
                assert!(rest.iter().all(|v| v.is_nan()), "{name}: rows after those in use were written");
                results.push(bits(&got));
            }
        }
        assert!(results.chunks(2).all(|r| r == &results[..2]), "turns of threads, or architectures, differ");
    }
}

#[test]
fn a_row_is_the_same_in_every_company() {
    let (rows, cols) = (40, 160);
    for kind in KINDS {
        let weights: Vec<u16> = values(7, rows * cols).iter().map(|v| narrow(kind, *v)).collect();
        let x = values(8, 140 * cols);
        for (name, mut ops) in machines() {
            let sources = [source(kind, cols, &weights)];
            let (all, _) = product(&mut ops, &x, &sources, None);
            for (begin, tokens) in [(0, 1), (3, 1), (5, 8), (2, 9), (1, 17), (70, 40), (6, 64), (30, 65), (11, 129)] {
                let (some, _) = product(&mut ops, &x[begin * cols..][..tokens * cols], &sources, None);
                assert_eq!(bits(&some), bits(&all[begin * rows..][..tokens * rows]), "{name}: {tokens} from {begin}");
            }
        }
    }
}

/// Where halves end: rows of up to 60000, and more than there are halves for, beside rows of ones.
#[test]
fn large_activations_fit_halves() {
    let (rows, cols, tokens) = (24, 96, 70);
    let weights: Vec<u16> = values(13, rows * cols).iter().map(|v| narrow(Narrow::F16, *v)).collect();
    let exact: Vec<f32> = weights.iter().map(|v| wide(Narrow::F16, *v)).collect();
    let sizes = [1.0, 3e4, 6e4, 1e5, 3e9, 1e30];
    let size = |i: usize| sizes[i / cols % sizes.len()];
    let x: Vec<f32> = values(14, tokens * cols).iter().enumerate().map(|(i, v)| v * size(i)).collect();
    for (name, mut ops) in machines() {
        let (got, _) = product(&mut ops, &x, &[source(Narrow::F16, cols, &weights)], None);
        for (token, (got, x)) in got.chunks_exact(rows).zip(x.chunks_exact(cols)).enumerate() {
            let whole = distance(got, x, &exact, cols, None);
            assert!(whole < 2f64.powi(-11), "{name}: row {token}: {whole:e}");
        }
    }
}

#[test]
fn a_broken_row_breaks_no_other() {
    let (rows, cols, tokens) = (20, 96, 70);
    let mut x = values(10, tokens * cols);
    x[33 * cols + 40] = f32::NAN;
    x[50 * cols] = f32::INFINITY;
    for (kind, (name, mut ops)) in KINDS.into_iter().flat_map(|kind| machines().into_iter().map(move |m| (kind, m))) {
        let weights: Vec<u16> = values(9, rows * cols).iter().map(|v| narrow(kind, *v)).collect();
        let (got, _) = product(&mut ops, &x, &[source(kind, cols, &weights)], None);
        for (token, row) in got.chunks_exact(rows).enumerate() {
            assert!(row.iter().all(|v| v.is_finite() != (token == 33 || token == 50)), "{name}: {token}");
        }
    }
}

#[test]
fn other_weights_stay_exact_in_the_fast_profile() {
    let (cols, tokens) = (96, 5);
    let floats = values(11, 7 * cols);
    let eights: Vec<u8> =
        (0..3 * cols / 32 * 36).map(|i| if i % 36 < 4 { [0, 0, 0, 63][i % 36] } else { i as u8 & 0x77 }).collect();
    let parts = [
        MatrixSource { quant: Quant::F32, rows: 7, cols, data: cast_slice(&floats) },
        MatrixSource { quant: Quant::FP8, rows: 3, cols, data: &eights },
    ];
    let x = values(12, tokens * cols);
    for (_, mut fast) in machines() {
        let mut exact = Cuda::new(Emulator::new(0, 1).unwrap());
        let (expected, _) = product(&mut exact, &x, &parts, None);
        assert!(expected.iter().all(|v| v.is_finite()));
        assert_eq!(bits(&product(&mut fast, &x, &parts, None).0), bits(&expected));
    }
}

#[test]
fn a_step_without_rows_has_no_products() {
    let weights = vec![0u16; 64];
    for (_, mut ops) in machines() {
        assert_eq!(product(&mut ops, &[], &[source(Narrow::F16, 32, &weights)], None).0, []);
    }
}

#[test]
fn plans_fit_their_machines() {
    for rows in [1, 16, 100, 576, 4096, 28672, 151_936] {
        for tokens in [1, 8, 9, 16, 32, 33, 64, 65, 128, 500, 8192] {
            let generic = Plan::of(89, 128, rows, tokens);
            assert!(generic.shared_bytes <= 99 << 10 && generic.threads <= 256, "{generic:?}");
            let hopper = Plan::of(90, 132, rows, tokens);
            assert!(hopper.shared_bytes <= 227 << 10, "{hopper:?}");
            assert!(tokens > 64 || hopper.path == Path::Skinny, "{hopper:?}");
            assert!(hopper.path == Path::Skinny || hopper.blocks <= 132, "{hopper:?}");
        }
    }
    let path = |rows, tokens| Plan::of(90, 132, rows, tokens).path;
    assert_eq!([path(28672, 4096), path(4096, 512)], [Path::Hopper(256), Path::Hopper(128)]);
    assert_eq!([path(4096, 64), path(4096, 200), path(28672, 65)], [Path::Skinny, Path::Skinny, Path::Hopper(128)]);
    assert_eq!(Plan::of(86, 82, 28672, 4096).path, Path::Wide);
    // A decode with 4096 rows: two blocks of a warp for nearly every multiprocessor; with more, four warps share activations.
    let decode = Plan { blocks: 256, threads: 32, shared_bytes: 8 * (16 + 8) * 128, path: Path::Skinny };
    assert_eq!(Plan::of(90, 132, 4096, 1), decode);
    let decode = Plan { blocks: 448, threads: 128, shared_bytes: 4 * (64 + 64) * 128, path: Path::Skinny };
    assert_eq!(Plan::of(90, 132, 28672, 50), decode);
    let batch = Plan { blocks: 64 * 4, threads: 128, shared_bytes: 4 * (64 + 64) * 128, path: Path::Skinny };
    assert_eq!(Plan::of(90, 132, 4096, 200), batch);
}

#[test]
fn what_the_accelerator_cannot_load_is_an_error() {
    let sound = TiledMatrix {
        address: 4096,
        kind: Narrow::F16,
        rows: 9,
        cols: 96,
        row_bytes: 192,
        box_rows: 256,
        box_cols: 64,
    };
    let machine = Emulator::new(0, 1).unwrap();
    assert!(machine.tensor_map(&sound).is_ok());
    let broken = [
        TiledMatrix { address: 4104, ..sound },
        TiledMatrix { rows: 0, ..sound },
        TiledMatrix { cols: 0, ..sound },
        TiledMatrix { row_bytes: 190, ..sound },
        TiledMatrix { row_bytes: 200, ..sound },
        TiledMatrix { box_rows: 257, ..sound },
        TiledMatrix { box_cols: 128, ..sound },
    ];
    for of in broken {
        assert!(matches!(machine.tensor_map(&of), Err(OpsError::Fault(_))), "{of:?}");
    }
}

#[test]
fn a_map_of_another_machine_is_a_fault() {
    let mut ops = Cuda::new(Emulator::new(0, 1).unwrap());
    let mut args = cuckoo_gemm_mapped { x_map: cuckoo_tensor_map { words: [0; 16] }, ..bytemuck::Zeroable::zeroed() };
    (args.gemm.tokens, args.gemm.w.rows, args.gemm.w.cols) = (1, 1, 32);
    let plan = Plan::of(90, 1, 128, 128);
    // SAFETY: the map is refused before anything is read or written.
    let result = unsafe { ops.launch(plan.kernel(Narrow::Bf16), [1; 3], (plan.threads, plan.shared_bytes), &args) };
    let message = result.unwrap_err().to_string();
    assert!(message.contains("a tensor map that this machine has not made"), "{message}");
}
