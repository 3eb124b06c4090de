//! Every way to cut a product with integers, launched where `Tiling::of` would not choose it.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::cpu::tests::{Random, bits, upload};
use crate::cuda::Emulator;
use crate::exact::Exact;
use crate::memory::Memory;
use crate::ops::Ops;

/// Columns before those that a product writes, and at least as many after them.
const MARGIN: usize = 3;

/// `tokens` rows of activations times a matrix of one part, added to what is in `out` or not.
fn product(
    cuda: &mut Cuda<Emulator>,
    tiling: Tiling,
    (w, x, planes): (&Matrix<Emulator>, &Buffer<Emulator>, usize),
    (out, add): (&mut Buffer<Emulator>, bool),
) {
    let x = (cuda.rounded(x, planes as u32).unwrap(), x.rows);
    let Weights::Integers { kind, args, .. } = &w.parts[0].weights else { panic!("weights in integers") };
    let args = cuckoo_linear_integers {
        w: *args,
        q: x.0.q,
        factors: if kind.halves { x.0.halves } else { x.0.factors },
        out: out.written(),
        tokens: x.1 as u32,
        planes: planes as u32,
        out_cols: out.cols as u32,
        first_row: MARGIN as u32,
        add: u32::from(add),
        tile: 0,
    };
    // SAFETY: `out` has rows for all tokens, and columns for all rows of the matrix and the margins.
    unsafe { cuda.integer_product(kind, tiling, args).unwrap() }
}

/// What every tiling makes of the first rows of `x`, held against what `expect` says of them.
fn check(quant: Quant, (rows, cols): (usize, usize), planes: usize, counts: &[usize]) {
    let mut random = Random(rows as u64 + planes as u64);
    let w = random.matrix(quant, rows, cols);
    let most = *counts.iter().max().unwrap();
    let width = (rows + 2 * MARGIN).next_multiple_of(32);
    let (x, before) = (random.values(most * cols), random.values(most * width));
    let expect = {
        let mut ops = Exact::new();
        let (x, w) = (upload(&mut ops, &x, cols), ops.matrix(&[w.source()]).unwrap());
        let mut out = ops.buffer(most, rows).unwrap();
        if planes == 2 { ops.linear_fine(&x, &w, &mut out) } else { ops.linear(&x, &w, &mut out) }.unwrap();
        ops.read(&out).unwrap()
    };
    for mut cuda in [0, 1, 7].into_iter().filter_map(|order| Emulator::new(order, 1)).map(Cuda::new) {
        let w = cuda.matrix(&[w.source()]).unwrap();
        for &tokens in counts {
            let x = upload(&mut cuda, &x[..tokens * cols], cols);
            for tiling in [Tiling::Few, Tiling::Some(16), Tiling::Some(32), Tiling::Wide(64), Tiling::Wide(128)] {
                if tiling == Tiling::Few && tokens > FEW_TOKENS || tiling == Tiling::Wide(128) && planes == 2 {
                    continue;
                }
                let add = tokens % 2 == 1;
                let mut out = upload(&mut cuda, &before[..tokens * width], width);
                product(&mut cuda, tiling, (&w, &x, planes), (&mut out, add));
                let mut wanted = before[..tokens * width].to_vec();
                for (wanted, expect) in wanted.chunks_exact_mut(width).zip(expect.chunks_exact(rows)) {
                    for (wanted, expect) in wanted[MARGIN..].iter_mut().zip(expect) {
                        *wanted = if add { *wanted + *expect } else { *expect };
                    }
                }
                let what = format!("{quant} {rows}x{cols}, {tokens} tokens in {planes} planes, {tiling:?}");
                assert_eq!(bits(&cuda.read(&out).unwrap()), bits(&wanted), "{what}, {}", cuda.describe());
            }
        }
    }
}

#[test]
fn every_tiling_gives_the_contracts_bits_in_every_format() {
    for quant in Quant::ALL.into_iter().filter(|quant| !quant.is_float()) {
        // Three segments; a tile that is not full.
        let cols = if quant.block() == 32 { 544 } else { 768 };
        for planes in [1, 2] {
            check(quant, (37, cols), planes, &[3, 8, 9]);
        }
    }
}

#[test]
fn every_tiling_keeps_to_the_edges_of_what_there_is() {
    for planes in [1, 2] {
        check(Quant::Q4_0, (1, 32), planes, &[1, 2, 4, 5, 17]);
        check(Quant::Q8_0, (130, 288), planes, &[1, 17, 64, 70]);
        check(Quant::Q4_1, (65, 224), planes, &[33]);
        check(Quant::Q2_K, (16, 256), planes, &[64]);
    }
    // More than one block of everything, and more segments than a block of few tokens takes at once.
    check(Quant::Q4_0, (130, 160), 1, &[130]);
    check(Quant::Q4_K, (17, 19 * 256), 2, &[1, 8]);
    check(Quant::Q6_K, (17, 19 * 256), 1, &[7]);
}

#[test]
fn tiles_are_as_large_as_keeps_a_device_busy() {
    let facts = [
        ((4096, 1, 1), Tiling::Few),
        ((128_256, 8, 2), Tiling::Few),
        ((4096, 9, 1), Tiling::Some(16)),
        ((28_672, 32, 1), Tiling::Some(32)),
        ((28_672, 64, 1), Tiling::Wide(64)),
        ((4096, 64, 1), Tiling::Some(32)),
        ((4096, 256, 1), Tiling::Wide(64)),
        ((4096, 2048, 1), Tiling::Wide(128)),
        ((4096, 2048, 2), Tiling::Wide(64)),
        ((64, 2048, 2), Tiling::Some(32)),
    ];
    for ((rows, tokens, planes), tiling) in facts {
        assert_eq!(Tiling::of(rows, tokens, planes), tiling, "{rows} rows by {tokens} tokens in {planes} planes");
    }
}

#[test]
fn activations_of_few_tokens_fit_whatever_their_width() {
    for cols in (32..40_000).step_by(32) {
        for (tokens, planes) in [(1, 1), (1, 2), (3, 1), (8, 1), (8, 2)] {
            let (segments_each, bytes) = Tiling::Few.shared(cols, tokens, planes);
            assert!(segments_each % WARPS == 0 && segments_each > 0 && bytes <= SHARED_BYTES, "{cols} columns");
        }
    }
}
