//! Outputs of models that may hold calls, in every syntax: however they are cut, the same comes out, nothing is lost, and
//! what is given out as arguments is JSON.
#![no_main]

use cuckoo_models::tools::{Event, Kept, Parser, SYNTAXES};
use libfuzzer_sys::fuzz_target;

/// Content, and each call's name and arguments.
type Told = (String, Vec<(String, String)>);

fn read<'t>(parser: &mut Parser, pieces: impl Iterator<Item = &'t str>) -> Told {
    let mut events: Vec<Event> = pieces.flat_map(|piece| parser.push(piece)).collect();
    events.extend(parser.finish());
    let mut told = Told::default();
    for event in events {
        match event {
            Event::Content(text) => told.0.push_str(&text),
            Event::Call { name } => told.1.push((name, String::new())),
            Event::Arguments(text) => told.1.last_mut().expect("a call has begun").1.push_str(&text),
        }
    }
    told
}

fuzz_target!(|input: (u8, u8, u8, String)| {
    let (which, kept, step, text) = input;
    let syntax = &SYNTAXES[usize::from(which) % SYNTAXES.len()];
    let kept = [Kept::Unsure, Kept::TextAndCalls, Kept::Calls][usize::from(kept) % 3];
    let parser = || Parser::new(syntax, vec!["f".to_owned(), "get_x".to_owned()], kept);
    let whole = read(&mut parser(), std::iter::once(text.as_str()));
    let step = usize::from(step) % 7 + 1;
    let mut ends: Vec<usize> = text.char_indices().map(|(at, _)| at).step_by(step).collect();
    ends.push(text.len());
    let cut = read(&mut parser(), ends.windows(2).map(|pair| &text[pair[0]..pair[1]]));
    if kept == Kept::Unsure {
        assert_eq!(whole, cut);
        if whole.1.is_empty() {
            assert_eq!(whole.0, text);
        }
        for (_, arguments) in &whole.1 {
            serde_json::from_str::<serde::de::IgnoredAny>(arguments).expect("arguments are JSON");
        }
    }
});
