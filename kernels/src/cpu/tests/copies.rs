//! Blocks that go to the host and back.

use super::*;
use crate::cuda::Bounds;

const SHAPE: KvShape = KvShape { layers: 2, kv_heads: 2, head_dim: 32, blocks: 5, kind: KvKind::F16 };
const HEADS: Heads = Heads { query: 4, kv: 2, dim: 32 };
const ROWS: usize = 40;

/// What attention sees in both layers after blocks were copied out and back to others, and what it saw before.
fn attended<O: Ops>(mut ops: O, kind: KvKind) -> (Vec<u32>, Vec<u32>) {
    let shape = KvShape { kind, ..SHAPE };
    let mut qkv = upload(&mut ops, &Random(5).values(ROWS * HEADS.qkv_cols()), HEADS.qkv_cols());
    let (mut cache, mut host) = (ops.kv_cache(shape).unwrap(), ops.host_kv(KvShape { blocks: 3, ..shape }).unwrap());
    let mut out = ops.buffer(ROWS, HEADS.query * HEADS.dim).unwrap();
    let spans = [Span { first_row: 0, rows: ROWS, first_position: 0, first_block: 0 }];
    let mask = Mask { scale: 0.2, softcap: None, window: None, causal: true };
    let mut see = |ops: &mut O, cache: &O::KvCache, qkv: &O::Buffer, blocks: &[u32]| {
        let mut seen = Vec::new();
        for layer in 0..SHAPE.layers {
            ops.attention(&StepLayout { spans: &spans, blocks }, HEADS, mask, None, qkv, cache, layer, &mut out)
                .unwrap();
            seen.extend(ops.read(&out).unwrap().into_iter().map(f32::to_bits));
        }
        seen
    };
    for layer in 0..SHAPE.layers {
        // Layers differ.
        ops.scale(0.7, None, &mut qkv).unwrap();
        ops.rope_store(None, &StepLayout { spans: &spans, blocks: &[3, 0, 1] }, HEADS, &mut qkv, &mut cache, layer)
            .unwrap();
    }
    let before = see(&mut ops, &cache, &qkv, &[3, 0, 1]);
    // The first goes where the last is, which has left by then; the last to a slot that the first had.
    ops.copy_out(&cache, &mut host, &[(3, 0), (1, 1)]).unwrap();
    ops.copy_in(&host, &mut cache, &[(0, 1)]).unwrap();
    ops.copy_out(&cache, &mut host, &[(4, 0), (0, 0), (0, 2)]).unwrap();
    ops.copy_in(&host, &mut cache, &[(0, 4), (1, 4), (2, 2), (0, 2)]).unwrap();
    (before, see(&mut ops, &cache, &qkv, &[1, 2, 4]))
}

#[test]
fn blocks_come_back_from_the_host_bit_for_bit() {
    for kind in KvKind::ALL {
        let (before, after) = attended(Exact::new(), kind);
        assert!(before == after && before.iter().any(|bits| *bits != 0));
        let (reference_before, reference_after) = attended(Reference::new(Rounding::AsBackends), kind);
        assert_eq!(reference_before, reference_after);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_present()) {
            let (cpu_before, cpu_after) = attended(crate::Timed::new(Cpu::with_isa(2, isa)), kind);
            assert!(cpu_before == before && cpu_after == before, "{kind}, {isa:?}");
        }
        // Packed all at once, and one at a time.
        for (order, staging_bytes) in [(0, 1 << 20), (1, 1), (7, 3 * SHAPE.block_bytes())] {
            let Some(emulator) = Emulator::new(order, 1) else { return };
            let ops = Cuda::new(emulator).bounded(Bounds { staging_bytes, ..Bounds::default() });
            let (cuda_before, cuda_after) = attended(ops, kind);
            assert!(cuda_before == before && cuda_after == before, "{kind}, order {order}");
        }
    }
}
