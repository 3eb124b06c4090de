//! Tokens to text as it may be shown: whole characters only, and nothing that may turn out to begin a stop string. Pure.

use cuckoo_models::Decoder;
use cuckoo_models::tools::{Event, Parser, overlap};

/// The text side of one request's output.
#[derive(Debug)]
pub(crate) struct Output {
    decoder: Decoder,
    scanner: StopScanner,
    calls: Option<CallReader>,
}

/// Finds calls of tools in an output.
#[derive(Debug)]
pub(crate) struct CallReader {
    /// What reads them.
    pub(crate) parser: Parser,
    /// Control tokens that are parts of calls, with their names.
    pub(crate) marks: Vec<(u32, String)>,
}

impl Output {
    /// Ends before any of `stops`, or after it where `include_stop`. Stop strings are looked for in text, not in calls.
    pub(crate) fn new(decoder: Decoder, stops: Vec<String>, include_stop: bool, calls: Option<CallReader>) -> Self {
        Self { decoder, scanner: StopScanner::new(stops, include_stop), calls }
    }

    /// Adds what one more token shows, in order. Whether a stop string was found: nothing after it counts.
    pub(crate) fn push(&mut self, token: u32, shown: &mut Vec<Event>) -> bool {
        if self.scanner.stops.is_empty() {
            return self.push_unscanned(token, shown);
        }
        let mut events = Vec::new();
        self.read(token, &mut events);
        self.scan(events, shown)
    }

    /// [`Self::push`] where stop strings do not count yet; none may be pushed before that does.
    pub(crate) fn push_unscanned(&mut self, token: u32, shown: &mut Vec<Event>) -> bool {
        self.read(token, shown);
        false
    }

    fn read(&mut self, token: u32, events: &mut Vec<Event>) {
        match &mut self.calls {
            Some(calls) => {
                let mark = calls.marks.iter().find(|(mark, _)| *mark == token);
                let text = match mark {
                    // A character that was begun before it never becomes whole.
                    Some((_, name)) => Some(self.decoder.finish().unwrap_or_default() + name),
                    None => self.decoder.push(token),
                };
                events.extend(text.into_iter().flat_map(|text| calls.parser.push(&text)));
            }
            None => events.extend(self.decoder.push(token).map(Event::Content)),
        }
    }

    fn scan(&mut self, events: Vec<Event>, shown: &mut Vec<Event>) -> bool {
        for event in events {
            let (scanned, event) = match event {
                Event::Content(text) => (self.scanner.push(&text), None),
                // No stop string reaches over a call.
                event => (Scanned { text: self.scanner.finish(), stopped: false }, Some(event)),
            };
            shown.extend(content(scanned.text));
            if scanned.stopped {
                return true;
            }
            shown.extend(event);
        }
        false
    }

    /// What was held back, once nothing more can come.
    pub(crate) fn finish(&mut self) -> Vec<Event> {
        // The beginning of a character after a stop string counts for nothing, nor does anything else.
        let mut events = Vec::new();
        if !self.scanner.stopped {
            let tail = self.decoder.finish();
            if let Some(calls) = &mut self.calls {
                let mut last = calls.parser.push(&tail.unwrap_or_default());
                last.extend(calls.parser.finish());
                self.scan(last, &mut events);
                events.extend(content(self.scanner.finish()));
            } else {
                events.extend(content(self.scanner.finish() + &tail.unwrap_or_default()));
            }
            return events;
        }
        events.extend(content(self.scanner.finish()));
        events
    }

    /// Whether tools were called, and whether a call is still going on.
    pub(crate) fn calls(&self) -> (bool, bool) {
        let parser = self.calls.as_ref().map(|calls| &calls.parser);
        (parser.is_some_and(|parser| parser.calls() > 0), parser.is_some_and(Parser::is_within_call))
    }
}

fn content(text: String) -> Option<Event> {
    (!text.is_empty()).then_some(Event::Content(text))
}

/// Looks for the first of several stop strings across pieces of text, and holds back no more than could begin one.
#[derive(Debug)]
pub(crate) struct StopScanner {
    stops: Vec<String>,
    include_stop: bool,
    held: String,
    stopped: bool,
}

/// What may be shown after a piece of text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// Text that is certainly before any stop string.
    pub(crate) text: String,
    /// Whether a stop string was found: nothing after it counts.
    pub(crate) stopped: bool,
}

impl StopScanner {
    pub(crate) fn new(stops: Vec<String>, include_stop: bool) -> Self {
        Self { stops, include_stop, held: String::new(), stopped: false }
    }

    /// Takes the next piece in.
    pub(crate) fn push(&mut self, piece: &str) -> Scanned {
        self.held.push_str(piece);
        let found = |stop: &String| self.held.find(stop.as_str()).map(|at| (at, at + stop.len()));
        if let Some((start, end)) = self.stops.iter().filter_map(found).min() {
            self.stopped = true;
            self.held.truncate(if self.include_stop { end } else { start });
            return Scanned { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let shown = self.held.len() - keep;
        let held = self.held.split_off(shown);
        Scanned { text: std::mem::replace(&mut self.held, held), stopped: false }
    }

    /// What was held back, once nothing more can come.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use cuckoo_models::tools::Kept;
    use cuckoo_models::{Syntax, Tokenizer};

    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut scanner = StopScanner::new(stops.iter().map(|s| (*s).to_owned()).collect(), false);
        let mut out = String::new();
        for piece in pieces {
            let scanned = scanner.push(piece);
            out.push_str(&scanned.text);
            if scanned.stopped {
                return (out, true);
            }
        }
        out.push_str(&scanner.finish());
        (out, false)
    }

    #[test]
    fn finds_stops_across_pieces_and_shows_what_cannot_be_one() {
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), ("a ".to_owned(), true));
        assert_eq!(run(&["END"], &["a E", "N", "X"]), ("a ENX".to_owned(), false));
        assert_eq!(run(&["日本"], &["x日", "曜"]), ("x日曜".to_owned(), false));
        assert_eq!(run(&["b", "ab"], &["xa", "b"]), ("x".to_owned(), true), "the earliest match wins");
        assert_eq!(run(&[], &["a", "b"]), ("ab".to_owned(), false));
        let mut scanner = StopScanner::new(vec!["\n\n".to_owned()], false);
        let including = |stop: &str| StopScanner::new(vec![stop.to_owned(), "NDX".to_owned()], true);
        assert_eq!(including("END").push("a END b"), Scanned { text: "a END".to_owned(), stopped: true });
        assert_eq!(scanner.push("one"), Scanned { text: "one".to_owned(), stopped: false });
    }

    /// Printable ASCII, one token a character, and a control token.
    fn tokenizer() -> Tokenizer {
        let mut vocab: Vec<String> = (b'!'..=b'~').map(|b| char::from(b).to_string()).collect();
        vocab.extend(["Ġ".to_owned(), "Ċ".to_owned()]);
        let entries: serde_json::Map<String, serde_json::Value> =
            vocab.iter().enumerate().map(|(id, text)| (text.clone(), id.into())).collect();
        let json = serde_json::json!({
            "model": {"type": "BPE", "vocab": entries, "merges": []},
            "added_tokens": [{"id": vocab.len(), "content": "[TOOL_CALLS]", "special": true}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}, "decoder": {"type": "ByteLevel"},
        });
        Tokenizer::from_hf_json(&json.to_string(), None).unwrap()
    }

    /// Everything that is shown of a text whose control tokens are tokens, and whether a stop string ended it.
    fn shown(syntax: &str, stops: &[&str], text: &str) -> (Vec<Event>, bool) {
        let (tokenizer, syntax) = (tokenizer(), Syntax::named(syntax).unwrap());
        let parser = Parser::new(syntax, vec!["f".to_owned()], Kept::TextAndCalls);
        let reader = CallReader { parser, marks: syntax.marks(&tokenizer) };
        let stops = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut output = Output::new(tokenizer.decoder(), stops, false, Some(reader));
        let mut events: Vec<Event> = Vec::new();
        let mut add = |event| match (events.last_mut(), event) {
            (Some(Event::Content(all)), Event::Content(more))
            | (Some(Event::Arguments(all)), Event::Arguments(more)) => {
                all.push_str(&more);
            }
            (_, event) => events.push(event),
        };
        for token in tokenizer.encode(text, true).unwrap() {
            let mut shown = Vec::new();
            let stopped = output.push(token, &mut shown);
            shown.into_iter().for_each(&mut add);
            if stopped {
                output.finish().into_iter().for_each(&mut add);
                return (events, true);
            }
        }
        output.finish().into_iter().for_each(&mut add);
        (events, false)
    }

    #[test]
    fn stop_strings_count_in_text_and_not_in_calls() {
        let call = r#"<tool_call>{"name": "f", "arguments": {"a": "END"}}</tool_call>"#;
        let content = |text: &str| Event::Content(text.to_owned());
        let called = [Event::Call { name: "f".to_owned() }, Event::Arguments(r#"{"a": "END"}"#.to_owned())];
        let whole = |before: &str, after: &str| {
            let text = [content(before)].into_iter().chain(called.clone()).chain([content(after)]);
            text.filter(|event| *event != content("")).collect::<Vec<_>>()
        };
        let stops = ["END", "name", "\n\n"];
        assert_eq!(shown("hermes", &stops, &format!("Well. EN{call}")), (whole("Well. EN", ""), false));
        assert_eq!(shown("hermes", &stops, &format!("{call} and END{call}")), (whole("", " and "), true));
        assert_eq!(shown("hermes", &stops, &format!("no END {call}")), (vec![content("no ")], true));
        assert_eq!(shown("hermes", &stops, "a\n\nb"), (vec![content("a")], true));
        assert_eq!(shown("hermes", &stops, "a \n"), (vec![content("a \n")], false));
    }

    #[test]
    fn a_control_token_of_a_call_is_read_and_never_shown() {
        let expected = [
            Event::Content("So:".to_owned()),
            Event::Call { name: "f".to_owned() },
            Event::Arguments("{}".to_owned()),
            Event::Call { name: "f".to_owned() },
            Event::Arguments(r#"{"a": 1}"#.to_owned()),
        ];
        let text = r#"So: [TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"a": 1}}]"#;
        assert_eq!(shown("mistral", &[], text), (expected.to_vec(), false));
    }

    proptest! {
        /// However the text is cut, the outcome is that of the whole.
        #[test]
        fn cuts_do_not_matter(text in "[ab日\n]{0,40}", stops in prop::collection::vec("[ab日\n]{1,4}", 0..4), cuts in prop::collection::vec(0usize..40, 0..10)) {
            let chars: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(chars.len())).collect();
            cuts.extend([0, chars.len()]);
            cuts.sort_unstable();
            let pieces: Vec<String> = cuts.windows(2).map(|w| chars[w[0]..w[1]].iter().collect()).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let first = stops.iter().filter_map(|s| text.find(s)).min();
            // Pieces may reveal a stop that ends earlier before one that begins earlier is complete.
            let (out, stopped) = run(&stops, &pieces);
            prop_assert_eq!(stopped, first.is_some());
            match first {
                None => prop_assert_eq!(out, text),
                Some(_) => prop_assert!(text.starts_with(&out) && stops.iter().any(|s| text[out.len()..].starts_with(s))),
            }
        }
    }
}
