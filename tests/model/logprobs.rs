//! Log-probabilities of prompt and output: against the logits themselves, whoever else is there and whatever is cached.

use cuckoo_wire::message::PromptLogprobs;

use super::*;

/// Holds found log-probabilities against a softmax of the row that they are of.
fn assert_logprobs(found: &Logprobs, row: &[f32], token: u32, top: usize) {
    let max = row.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = row.iter().map(|l| (f64::from(*l) - f64::from(max)).exp()).sum();
    let near = |got: f32, id: u32| {
        let expected = f64::from(row[id as usize]) - f64::from(max) - sum.ln();
        (f64::from(got) - expected).abs() <= expected.abs() * 1e-7 + 1e-9
    };
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
    assert!(near(found.logprob, token), "{found:?} of {token}");
    assert_eq!(order[found.rank as usize - 1], token);
    assert_eq!(found.top.iter().map(|t| t.0).collect::<Vec<_>>(), order[..top]);
    assert!(found.top.iter().all(|(id, logprob)| near(*logprob, *id)));
}

#[test]
fn log_probabilities_are_those_of_the_logits_however_they_are_computed() {
    let files = files();
    let prompt = files.tokenizer.encode(&TEXTS.join("\n"), true).unwrap();
    let ask = |id, from: Option<u32>| Assign {
        logprobs: Some(4),
        prompt_logprobs: from.map(|from| PromptLogprobs { top: 3, from }),
        ..assign(id, &prompt, prompt.len(), 6, &sampled(3))
    };
    let alone = generate(&files, ALONE, vec![ask(0, Some(1))]).remove(0);
    assert_eq!((alone.prompt.len(), alone.logprobs.len()), (prompt.len() - 1, 6));
    let all = [prompt.as_slice(), &alone.tokens].concat();
    let rows = logits(Cpu::new(2), &files, &all);
    for (at, found) in alone.prompt.iter().chain(&alone.logprobs).enumerate() {
        assert_logprobs(found, &rows[at], all[at + 1], if at + 1 < prompt.len() { 3 } else { 4 });
    }
    // After somebody with the same prompt, whose blocks are in the cache: what is to be scored is computed all the same.
    let asks = vec![ask(0, None), ask(1, Some(1)), ask(2, Some(60)), ask(3, None)];
    let check = |outputs: Vec<Output>| {
        assert_eq!([&outputs[0].prompt, &outputs[3].prompt], [&vec![], &vec![]]);
        assert_eq!(outputs[1], alone);
        assert_eq!(outputs[2].prompt, alone.prompt[59..], "what was scored elsewhere is not scored again");
        assert!(outputs.iter().all(|o| o.logprobs == alone.logprobs && o.tokens == alone.tokens));
    };
    let (outputs, stats) = generate_counting(&files, ALONE, asks.clone());
    check(outputs);
    let whole = (prompt.len() as u64 - 1) / 16 * 16;
    assert_eq!(stats.prefix_hit_tokens, 48 + whole, "three blocks before position 59, and all for who scores nothing");
    for shape in [
        Shape { batch: 4, step_tokens: 16, ..ALONE },
        Shape { batch: 4, step_tokens: 50, threads: 1, in_flight: 2, kv_blocks: 14, ..ALONE },
    ] {
        check(generate(&files, shape, asks.clone()));
    }
}
