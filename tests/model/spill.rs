//! Blocks that are copied to the host when their room is needed, and back when they are wanted again.

use super::*;

/// Prompts that come twice, on a device that has room for little more than one of them.
#[test]
fn spilled_and_brought_back_equals_undisturbed() {
    let files = files();
    let words = files.tokenizer.encode(&TEXTS.join("\n").repeat(3), true).unwrap();
    let prompt = |i: usize| &words[i * 25..i * 25 + 90];
    let assigns: Vec<Assign> = (0..8)
        .map(|i| assign(i, prompt(i % 4), 90, 12, &if i % 3 == 0 { plain(i as u64) } else { sampled(i as u64) }))
        .collect();
    let alone = |a: &Assign| generate(&files, ALONE, vec![Assign { sequence: SequenceId(0), ..a.clone() }]).remove(0);
    let undisturbed: Vec<Output> = assigns.iter().map(alone).collect();
    let tight = Shape { kv_blocks: 9, ..ALONE };
    let (forgotten, stats) = generate_counting(&files, tight, assigns.clone());
    assert!(forgotten == undisturbed && stats.restored == 0, "{stats:?}");
    assert_eq!(stats.prefix_hit_tokens, 0, "nothing is left of a prompt when it comes again: {stats:?}");
    for (batch, kv_blocks, in_flight) in [(1, 9, 1), (2, 12, 1), (3, 14, 2)] {
        let shape = Shape { batch, kv_blocks, in_flight, step_tokens: 64, spill_bytes: 16 << 20, ..ALONE };
        let (spilled, stats) = generate_counting(&files, shape, assigns.clone());
        println!("{batch} together, {in_flight} in flight: {stats:?}");
        assert_eq!(undisturbed, spilled, "{batch} together, {in_flight} in flight");
        assert!(stats.spilled >= 20 && stats.restored >= 10, "{stats:?}");
        if batch == 1 {
            // All but the last token of each, as far as blocks are full.
            assert_eq!((stats.prefix_hit_tokens, stats.restored), (4 * 80, 4 * 5), "{stats:?}");
        }
    }
}

/// The same with layers that see a window: both groups give blocks away and get them back.
#[test]
fn windowed_blocks_are_spilled_and_brought_back() {
    let Some(path) = other("gemma-3-270m.Q4_K_M.gguf") else { return };
    let files = open(&path);
    let text = include_str!("../../benches/peers/text.txt").repeat(2);
    let words = files.tokenizer.encode(&text, true).unwrap();
    let assigns: Vec<Assign> =
        (0..4).map(|i| assign(i, &words[i % 2 * 700..i % 2 * 700 + 640], 640, 6, &plain(i as u64))).collect();
    let tight = Shape { kv_blocks: 42, step_tokens: 128, ..ALONE };
    let (undisturbed, stats) = generate_counting(&files, tight, assigns.clone());
    assert_eq!(stats.prefix_hit_tokens, 0, "{stats:?}");
    let (spilled, stats) = generate_counting(&files, Shape { spill_bytes: 64 << 20, ..tight }, assigns);
    assert_eq!(undisturbed, spilled);
    assert!(stats.prefix_hit_tokens == 2 * 624 && stats.restored > 2 * 39, "in both groups: {stats:?}");
}
