//! What is planned for a step: pure, so any step can be looked at.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::ops::Span;

fn step() -> impl Strategy<Value = Vec<(usize, usize)>> {
    prop::collection::vec((0usize..3000, prop_oneof![Just(1usize), 1usize..200]), 1..12)
}

proptest! {
    /// Each row goes through each split that it sees once, in parts that nobody else has, in no more memory than there may be.
    #[test]
    fn every_row_meets_every_split_once(
        spans in step(),
        (kv, group, dim) in (1usize..5, 1usize..40, 1usize..33),
        window in prop::option::of(1usize..2000),
        (causal, fill, parts_kib) in (any::<bool>(), 0usize..2000, 0usize..4000),
    ) {
        let heads = Heads { query: kv * group, kv, dim: dim * 16 };
        let mask = Mask { scale: 1.0, softcap: None, window, causal };
        let bounds = Bounds { fill, parts_bytes: parts_kib << 10, ..Bounds::default() };
        let (mut rows, mut layout) = (0, Vec::new());
        for (first_position, count) in spans {
            layout.push(Span { first_row: rows, rows: count, first_position, first_block: 0 });
            rows += count;
        }
        let shapes = [&NARROW, &WIDE[2].1];
        let plan = Plan::new((&StepLayout { spans: &layout, blocks: &[] }, heads), &mask, shapes, bounds);
        prop_assert!(plan.part_rows * heads.query * part_floats(heads.dim) * 4 <= bounds.parts_bytes);
        let (mut met, mut parts) = (HashMap::new(), HashMap::new());
        for (tile, shape) in plan.narrow.iter().map(|t| (t, &NARROW)).chain(plan.wide.iter().map(|t| (t, shapes[1]))) {
            prop_assert!(tile.rows as usize * shape.heads_each(heads) <= shape.queries);
            prop_assert!(tile.part == NO_PART || tile.split_end == tile.split + 1);
            for row in tile.first_row..tile.first_row + tile.rows {
                for split in tile.split..tile.split_end {
                    prop_assert!(met.insert((row, split), tile.part == NO_PART).is_none(), "row {row}, split {split} twice");
                }
                if tile.part != NO_PART {
                    let part = tile.part + row - tile.first_row;
                    prop_assert!((part as usize) < plan.part_rows);
                    prop_assert!(parts.insert(part, (row, tile.split)).is_none(), "part {part} twice");
                }
            }
        }
        for span in &layout {
            for i in 0..span.rows {
                let (seen, row) = (mask.seen(span, i), (span.first_row + i) as u32);
                let splits = (seen.start / ATTENTION_SPLIT) as u32..seen.end.div_ceil(ATTENTION_SPLIT) as u32;
                let alone: Vec<_> = splits.map(|split| met.get(&(row, split)).copied()).collect();
                prop_assert!(alone.iter().all(|whole| whole.is_some() && *whole == alone[0]), "row {row}: {alone:?}");
            }
        }
        // What is joined is what was left.
        let mut joined = 0;
        for tile in &plan.joins {
            for split in tile.split..tile.split_end {
                for i in 0..tile.rows {
                    let part = tile.part + (split - tile.split) * tile.rows + i;
                    prop_assert_eq!(parts.get(&part), Some(&(tile.first_row + i, split)));
                    joined += 1;
                }
            }
        }
        prop_assert_eq!(joined, parts.len());
    }
}
