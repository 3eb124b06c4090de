//! What is counted is what is taken.

use super::*;
use crate::low_rank::{Adapted, LowRankSource};
use crate::memory::{Counted, Memory};

/// Adapters of three parts, whose matrices have odd sizes, with data or without.
fn adapters<M: Memory>(memory: &mut M, matrices: &[OwnedMatrix], counted: bool) {
    let source = |m: usize| match counted {
        true => MatrixSource { data: &[], ..matrices[m].source() },
        false => matrices[m].source(),
    };
    let part = |n: usize| LowRankSource { first_col: 64 * n, a: source(2 * n), b: source(2 * n + 1), scale: 0.5 };
    memory.low_rank(&[part(0), part(1), part(2)]).unwrap();
    memory.low_rank(&[part(1)]).unwrap();
}

/// What [`adapters`] loads.
fn adapter_matrices(random: &mut Random, quant: Quant) -> Vec<OwnedMatrix> {
    [(3, 96), (64, 3), (16, 96), (17, 16), (33, 96), (40, 33)]
        .map(|(rows, cols)| random.matrix(quant, rows, cols))
        .into()
}

#[test]
fn what_adapters_take_is_counted_with_what_they_compute_between() {
    let mut random = Random(5);
    for quant in [Quant::F32, Quant::F16, Quant::BF16] {
        let matrices = adapter_matrices(&mut random, quant);
        let (mut cpu, mut sizes) = (Cpu::new(1), Sizes::default());
        cpu.buffer(7, 96).unwrap();
        sizes.buffer(7, 96).unwrap();
        adapters(&mut cpu, &matrices, false);
        adapters(&mut sizes, &matrices, true);
        assert_eq!(sizes.bytes(), cpu.bytes(), "{quant}");
        // Rows that come later want more between the products.
        cpu.buffer(9, 96).unwrap();
        sizes.buffer(9, 96).unwrap();
        assert_eq!(sizes.bytes(), cpu.bytes(), "{quant}");
    }
}

#[test]
fn nothing_is_taken_while_adapters_are_added() {
    let mut random = Random(6);
    let matrices = adapter_matrices(&mut random, Quant::F16);
    let mut cpu = Cpu::new(2);
    let x = upload(&mut cpu, &random.values(9 * 96), 96);
    let mut out = upload(&mut cpu, &random.values(9 * 192), 192);
    let part = |n: usize| {
        let (a, b) = (matrices[2 * n].source(), matrices[2 * n + 1].source());
        LowRankSource { first_col: 64 * n, a, b, scale: 0.5 }
    };
    let (many, one) = (cpu.low_rank(&[part(0), part(1), part(2)]).unwrap(), cpu.low_rank(&[part(1)]).unwrap());
    let before = cpu.bytes();
    cpu.lora_add(&x, &[Adapted { rows: 0..9, by: &many }], &mut out).unwrap();
    cpu.lora_add(&x, &[Adapted { rows: 0..2, by: &one }, Adapted { rows: 2..9, by: &many }], &mut out).unwrap();
    assert_eq!(cpu.bytes(), before);
}

/// Loads and allocates all that a model might, at odd sizes.
fn take<M: Memory>(memory: &mut M, matrices: &[Vec<MatrixSource<'_>>]) {
    for (i, parts) in matrices.iter().enumerate() {
        memory.matrix(parts).unwrap();
        memory.vector(&vec![0.5; 17 * i]).unwrap();
        memory.buffer(3 + i % 5, parts[0].cols).unwrap();
    }
    let frequencies = vec![0.1; 24];
    let rope = Rope { frequencies, magnitude: 1.0, pairs: RopePairs::Halves, positions: 1_000 };
    memory.rope_table(&rope).unwrap();
    for (blocks, kind) in [1, 0, 700].into_iter().zip(KvKind::ALL) {
        let shape = KvShape { layers: 3, kv_heads: 2, head_dim: 48, blocks, kind };
        memory.kv_cache(shape).unwrap();
        memory.host_kv(KvShape { blocks: blocks * 2, ..shape }).unwrap();
    }
}

#[test]
fn what_is_counted_is_what_is_taken_in_every_format() {
    let mut random = Random(3);
    let mut all = Vec::new();
    for quant in Quant::ALL {
        let matrices: Vec<OwnedMatrix> =
            [(16, 256), (1, 512), (37, 256), (5, 256)].map(|(rows, cols)| random.matrix(quant, rows, cols)).into();
        let source = OwnedMatrix::source;
        let parts =
            vec![vec![source(&matrices[0])], vec![source(&matrices[1])], matrices[2..].iter().map(source).collect()];
        let (mut cpu, mut sizes) = (Cpu::new(1), Sizes::default());
        take(&mut cpu, &parts);
        // The counting needs no data.
        let bare = |m: &MatrixSource<'_>| MatrixSource { data: &[], ..*m };
        let parts: Vec<Vec<_>> = parts.iter().map(|parts| parts.iter().map(bare).collect()).collect();
        take(&mut sizes, &parts);
        assert_eq!(sizes.bytes(), cpu.bytes(), "{quant}");
        all.extend(matrices);
    }
    // All of them in one arena, beyond its first chunk; and a large one, which gets a chunk of its own.
    all.push(random.matrix(Quant::F32, 40_000, 256));
    all.push(random.matrix(Quant::Q8_0, 33, 256));
    let parts: Vec<Vec<_>> = all.iter().map(|m| vec![m.source()]).collect();
    let (mut cpu, mut sizes) = (Cpu::new(1), Sizes::default());
    take(&mut cpu, &parts);
    take(&mut sizes, &parts);
    assert!(sizes.bytes() > 3 * (32 << 20), "{}", sizes.bytes());
    assert_eq!(sizes.bytes(), cpu.bytes());
}

/// A product needs no memory beyond what was there when it was loaded.
#[test]
fn nothing_is_taken_while_computing() {
    let mut random = Random(4);
    let (a, b) = (random.matrix(Quant::Q4_1, 48, 320), random.matrix(Quant::F16, 48, 320));
    let mut cpu = Cpu::new(2);
    let x = upload(&mut cpu, &random.values(9 * 320), 320);
    let (a, b) = (cpu.matrix(&[a.source()]).unwrap(), cpu.matrix(&[b.source()]).unwrap());
    let mut out = cpu.buffer(9, 48).unwrap();
    let before = cpu.bytes();
    for w in [&a, &b] {
        cpu.linear(&x, w, &mut out).unwrap();
        cpu.linear_fine(&x, w, &mut out).unwrap();
        cpu.linear_add(&x, w, &mut out).unwrap();
    }
    assert_eq!(cpu.bytes(), before);
}
