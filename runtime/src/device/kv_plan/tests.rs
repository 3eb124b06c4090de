use std::time::Duration;

use super::*;

const LIMITS: BatchLimits = BatchLimits {
    sequences_max: 16,
    step_tokens_max: 64,
    step_target: Duration::MAX,
    drafts_max: 0,
    kv_blocks: 4_096,
    kv_kind: KvKind::F16,
    spill_bytes: 0,
    context_tokens: 32_768,
};

fn plan(groups: &[(Option<u32>, u64)], limits: &BatchLimits) -> KvPlan {
    KvPlan::of(groups.iter().copied(), limits)
}

/// Every beginning and every number of rows in flight, counted block by block.
#[test]
fn no_window_needs_more_blocks_than_it_says() {
    for window in 1..70u32 {
        let mut most = 0;
        for computed in 0..200u32 {
            for rows in 1..40u32 {
                let first = (computed + 1).saturating_sub(window) / 16;
                let held = (computed + rows).div_ceil(16) - first;
                assert!(held <= window_blocks(window) + rows / 16, "window {window}, {rows} rows after {computed}");
                most = most.max(if rows < 16 { held } else { 0 });
            }
        }
        assert_eq!(most, window_blocks(window), "and it is no more than it must be");
    }
    assert!(window_blocks(u32::MAX) > 1_000_000, "no window overflows");
}

#[test]
fn windows_take_what_a_batch_uses_and_what_conversations_need() {
    // Gemma 3 270M: three layers of sixteen KiB a block see everything, fifteen see 512 positions.
    let groups = [(None, 3 * 16_384), (Some(512), 15 * 16_384)];
    let gemma = plan(&groups, &LIMITS);
    let running = 16 * 34 + 8;
    let kept = 4_096 * 34 / 128;
    assert_eq!(gemma.groups.iter().map(|g| g.blocks).collect::<Vec<_>>(), [4_096, running + kept]);
    assert_eq!(gemma.device_bytes(), 4_096 * 3 * 16_384 + u64::from(running + kept) * 15 * 16_384);
    assert!(gemma.device_bytes() * 100 < 4_096 * 18 * 16_384 * 51, "about half of what it is without windows");
    // Never more than the layers that see everything.
    let small = plan(&groups, &BatchLimits { kv_blocks: 20, ..LIMITS });
    assert_eq!(small.groups.iter().map(|g| g.blocks).collect::<Vec<_>>(), [20, 20]);
    // A window so large that hardly a sequence leaves it.
    assert_eq!(plan(&[(Some(4_096), 1)], &LIMITS).groups[0].blocks, 4_096);
}

#[test]
fn any_sequence_that_is_let_in_fits_alone() {
    for window in [1, 15, 16, 17, 100, 512, 4_096] {
        for kv_blocks in 1..300 {
            let limits = BatchLimits { sequences_max: 1, step_tokens_max: 1, kv_blocks, ..LIMITS };
            let blocks = plan(&[(None, 1), (Some(window), 1)], &limits).groups[1].blocks;
            assert!(blocks >= kv_blocks.min(window_blocks(window)), "{blocks} of {kv_blocks} for a window of {window}");
        }
    }
}

#[test]
fn every_group_keeps_the_same_share_of_its_blocks_on_the_host() {
    let groups = [(None, 3 * 16_384), (Some(512), 15 * 16_384)];
    let without = plan(&groups, &LIMITS);
    assert_eq!(without.host_bytes(), 0);
    let spill_bytes = without.device_bytes() / 2;
    let with = plan(&groups, &BatchLimits { spill_bytes, ..LIMITS });
    assert_eq!(with.device_bytes(), without.device_bytes(), "in memory of its own");
    for group in &with.groups {
        assert_eq!(group.host_blocks, group.blocks / 2);
    }
    assert!(with.host_bytes() <= spill_bytes && with.host_bytes() > spill_bytes / 100 * 99);
    let all = plan(&groups, &BatchLimits { spill_bytes: u64::MAX, ..LIMITS });
    assert!(all.groups.iter().all(|group| group.host_blocks <= HOST_BLOCKS_MAX), "no number overflows");
}
