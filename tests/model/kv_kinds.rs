//! Formats of keys and values on the real model.

use super::*;

#[test]
fn every_format_of_keys_and_values_is_the_contracts_and_near_unrounded_ones() {
    let files = files();
    let tokens = files.tokenizer.encode(TEXTS[0], true).unwrap();
    let unrounded = logits(Reference::new(Rounding::None), &files, &tokens);
    let mut means = Vec::new();
    for kind in KvKind::ALL {
        let cpu = logits_kept(kind, Cpu::new(2), &files, &tokens);
        let contract = logits_kept(kind, Exact::new(), &files, &tokens);
        let mut difference = 0.0;
        for (at, next) in tokens.iter().enumerate().skip(1) {
            let same = cpu[at - 1].iter().zip(&contract[at - 1]).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{kind}: position {at}");
            difference += (log_probability(&cpu[at - 1], *next) - log_probability(&unrounded[at - 1], *next)).abs();
        }
        means.push((kind, difference / (tokens.len() - 1) as f64));
    }
    println!("mean difference of log-probabilities from unrounded ones: {means:?}");
    assert!(means.iter().all(|(_, mean)| *mean < 0.1), "{means:?}");
}

#[test]
fn every_format_of_keys_and_values_is_the_same_however_it_is_batched_and_spilled() {
    let files = files();
    let assigns: Vec<Assign> =
        (0..5).map(|i| assign(i, &prompts(&files)[10 + i % 3], 75 + i % 3 * 7, 12, &sampled(i as u64))).collect();
    let of = |kv_kind| {
        let alone = generate(&files, Shape { kv_kind, ..ALONE }, assigns.clone());
        let together =
            Shape { batch: 3, threads: 3, step_tokens: 48, kv_blocks: 16, spill_bytes: 16 << 20, kv_kind, ..ALONE };
        let (outputs, stats) = generate_counting(&files, together, assigns.clone());
        assert_eq!(alone, outputs, "{kv_kind}");
        assert!(stats.restored > 0, "{kv_kind}: {stats:?}");
        alone
    };
    let all = KvKind::ALL.map(of);
    assert!(all[0] != all[1] && all[1] != all[2], "they are different formats");
}
