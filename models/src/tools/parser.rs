//! Reads calls out of an output while it comes: pure, linear, and indifferent to how the text is cut.
//!
//! ```text
//!          trigger           opened           head            arguments end        nothing more of it
//!   Text ──────────▶ Opening ──────▶ Head ──────────▶ Arguments ──────▶ Closing ──────▶ Text
//!                       ▲                                                │ another call
//!                       └────────────────────────────────────────────────┘
//! ```
//!
//! No byte of a marker is ever content. What begins like a call and is none is content, whole. An output that is held to
//! a grammar cannot go wrong in the middle, so its arguments are given out as they come; of any other output a call is
//! given out when it is complete.

use std::mem;

use super::json::Scanner;
use super::syntax::{Body, Syntax};

/// Bytes of one call that is not known to be well-formed.
const UNSURE_BYTES_MAX: usize = 64 << 10;
/// Bytes from a call's beginning to its arguments.
const HEAD_BYTES_MAX: usize = 512;
/// Bytes of white space between two parts.
const SPACE_BYTES_MAX: usize = 128;

/// What an output consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Text for people.
    Content(String),
    /// A call begins. Calls are counted from 0.
    Call {
        /// Of the tool.
        name: String,
    },
    /// More of the arguments of the call that began last.
    Arguments(String),
}

/// What is known of an output before it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nothing.
    Unsure,
    /// A grammar holds it to text and well-formed calls.
    TextAndCalls,
    /// A grammar holds it to well-formed calls.
    Calls,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Parser {
    syntax: &'static Syntax,
    /// Names of the tools that there are.
    tools: Vec<String>,
    kept: Kept,
    state: State,
    /// Not yet understood.
    held: String,
    /// White space after text, which is content only if more text follows.
    space: String,
    /// Of a call that may yet turn out to be none: all of it, and what it would be.
    raw: String,
    pending: Vec<Event>,
    /// Whether anything but white space has come.
    begun: bool,
    calls: u32,
}

#[derive(Clone, Debug)]
enum State {
    Text,
    /// The parts that must come before a call's body.
    Opening(Vec<&'static str>),
    Head,
    /// `floor` brackets are open around the arguments.
    Arguments {
        scanner: Scanner,
        floor: usize,
    },
    /// What remains of an object whose arguments are complete.
    Rest(Scanner),
    CallClose,
    /// Another call of the list, or its end.
    Between,
}

/// How text compares with what is expected.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// It is there, and ends here.
    Whole(usize),
    /// It may yet come.
    Partly,
    No,
}

impl Parser {
    /// For an output that may call the tools of these names. Pieces of it should be small, as tokens are.
    pub fn new(syntax: &'static Syntax, tools: Vec<String>, kept: Kept) -> Self {
        Self {
            syntax,
            tools,
            kept,
            state: State::Text,
            held: String::new(),
            space: String::new(),
            raw: String::new(),
            pending: Vec::new(),
            begun: false,
            calls: 0,
        }
    }

    /// Calls that have begun, as far as they were given out.
    pub fn calls(&self) -> u32 {
        self.calls
    }

    /// Whether the output stands within a call that has begun.
    pub fn is_within_call(&self) -> bool {
        !matches!(self.state, State::Text | State::Between | State::CallClose)
    }

    /// Takes the next piece in.
    pub fn push(&mut self, piece: &str) -> Vec<Event> {
        let mut events = Vec::new();
        self.held.push_str(piece);
        while self.step(&mut events) {}
        events
    }

    /// The output is over: gives out what was held back. A call that a grammar promised and that was cut before its name
    /// is no content; one that nobody promised is.
    pub fn finish(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        match self.state {
            State::Text if self.kept == Kept::Calls => {}
            State::Text => {
                let mut rest = mem::take(&mut self.space);
                rest.push_str(&mem::take(&mut self.held));
                if self.calls == 0 || !rest.trim_ascii().is_empty() {
                    content(&mut events, rest);
                }
            }
            State::Between | State::CallClose => {}
            _ if self.is_sure() => {}
            _ => {
                self.raw.push_str(&self.held);
                content(&mut events, mem::take(&mut self.raw));
            }
        }
        self.held.clear();
        self.raw.clear();
        self.pending.clear();
        events
    }

    fn is_sure(&self) -> bool {
        self.kept != Kept::Unsure
    }

    /// Whether more can be understood of what is held.
    fn step(&mut self, events: &mut Vec<Event>) -> bool {
        match mem::replace(&mut self.state, State::Text) {
            State::Text => self.text(events),
            State::Opening(parts) => match expect(&self.held, parts[0]) {
                Found::Whole(end) => {
                    self.consume(end);
                    self.state = self.opening(parts[1..].to_vec());
                    true
                }
                Found::Partly => self.wait(State::Opening(parts)),
                Found::No => self.fail(events),
            },
            State::Head => self.head(events),
            State::Arguments { scanner, floor } => self.arguments(scanner, floor, events),
            State::Rest(scanner) => self.rest(scanner, events),
            State::CallClose => match expect(&self.held, self.syntax.call_close) {
                Found::Partly => self.wait(State::CallClose),
                found => {
                    // A model that forgets it has still made the call.
                    self.skip(&found);
                    self.state = State::Between;
                    true
                }
            },
            State::Between => self.between(),
        }
    }

    fn text(&mut self, events: &mut Vec<Event>) -> bool {
        let trigger = self.syntax.trigger;
        if self.syntax.bare {
            // Only the very beginning may be a call.
            let start = self.held.len() - self.held.trim_ascii_start().len();
            if self.begun || self.calls > 0 {
                self.plain(self.held.len(), events);
                return false;
            }
            match expect(&self.held, trigger) {
                Found::Whole(end) => return self.open(end),
                _ if start <= SPACE_BYTES_MAX && self.held[start..].starts_with('{') => return self.open(start),
                Found::Partly => return false,
                Found::No => {
                    self.plain(self.held.len(), events);
                    return false;
                }
            }
        }
        if let Some(start) = self.held.find(trigger) {
            self.plain(start, events);
            return self.open(trigger.len());
        }
        let keep = overlap(&self.held, trigger);
        self.plain(self.held.len() - keep, events);
        false
    }

    /// The first `end` bytes of what is held are text.
    fn plain(&mut self, end: usize, events: &mut Vec<Event>) {
        let text: String = self.held.drain(..end).collect();
        let shown = text.trim_ascii_end().len();
        if shown > 0 {
            let mut out = mem::take(&mut self.space);
            out.push_str(&text[..shown]);
            self.begun = true;
            content(events, out);
        }
        self.space.push_str(&text[shown..]);
    }

    /// Calls begin after `end` bytes.
    fn open(&mut self, end: usize) -> bool {
        self.raw = mem::take(&mut self.space);
        self.consume(end);
        self.state = self.opening(vec![self.syntax.list_open, self.syntax.call_open]);
        true
    }

    fn opening(&self, parts: Vec<&'static str>) -> State {
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        if parts.is_empty() { State::Head } else { State::Opening(parts) }
    }

    fn head(&mut self, events: &mut Vec<Event>) -> bool {
        let seen = &self.held[..self.held.floor_char_boundary(HEAD_BYTES_MAX)];
        let (name, end) = match head(seen, &self.syntax.body) {
            Head::Whole { name, end } if self.tools.iter().any(|tool| tool == name) => (name.to_owned(), end),
            Head::Partly if self.held.len() < HEAD_BYTES_MAX => return self.wait(State::Head),
            _ => return self.fail(events),
        };
        let (mut scanner, mut floor) = (Scanner::new(), 0);
        if matches!(self.syntax.body, Body::Object(_)) {
            floor = 1;
            if self.held[..end].bytes().try_for_each(|byte| scanner.push(byte)).is_err() {
                return self.fail(events);
            }
        }
        self.consume(end);
        self.give(Event::Call { name }, events);
        self.state = State::Arguments { scanner, floor };
        true
    }

    fn arguments(&mut self, mut scanner: Scanner, floor: usize, events: &mut Vec<Event>) -> bool {
        let (mut end, room) = (None, self.room());
        for (at, byte) in self.held[..room].bytes().enumerate() {
            if scanner.push(byte).is_err() {
                let valid = self.held.floor_char_boundary(at);
                self.take_arguments(valid, events);
                return self.fail(events);
            }
            if scanner.depth() == floor {
                end = Some(at + 1);
                break;
            }
        }
        let is_too_long = end.is_none() && room < self.held.len();
        self.take_arguments(end.unwrap_or(room), events);
        if is_too_long {
            return self.fail(events);
        }
        match (end, floor) {
            (None, _) => return self.wait(State::Arguments { scanner, floor }),
            (Some(_), 0) => self.complete(events),
            (Some(_), _) => self.state = State::Rest(scanner),
        }
        true
    }

    fn take_arguments(&mut self, end: usize, events: &mut Vec<Event>) {
        if end > 0 {
            let text = self.held[..end].to_owned();
            self.consume(end);
            self.give(Event::Arguments(text), events);
        }
    }

    /// Members after the arguments are of no use here.
    fn rest(&mut self, mut scanner: Scanner, events: &mut Vec<Event>) -> bool {
        let room = self.room();
        for (at, byte) in self.held[..room].bytes().enumerate() {
            if scanner.push(byte).is_err() {
                self.consume(self.held.floor_char_boundary(at));
                return self.fail(events);
            }
            if scanner.is_done() {
                self.consume(at + 1);
                self.complete(events);
                return true;
            }
        }
        let is_too_long = room < self.held.len();
        self.consume(room);
        if is_too_long { self.fail(events) } else { self.wait(State::Rest(scanner)) }
    }

    /// How many of the bytes that are held may belong to the call: one that is not promised has an end.
    fn room(&self) -> usize {
        match self.is_sure() {
            true => self.held.len(),
            false => self.held.floor_char_boundary(UNSURE_BYTES_MAX.saturating_sub(self.raw.len())),
        }
    }

    /// The call is one.
    fn complete(&mut self, events: &mut Vec<Event>) {
        self.calls += self.pending.iter().filter(|event| matches!(event, Event::Call { .. })).count() as u32;
        events.append(&mut self.pending);
        self.raw.clear();
        self.state = if self.syntax.call_close.is_empty() { State::Between } else { State::CallClose };
    }

    fn between(&mut self) -> bool {
        let closed = match self.syntax.list_close {
            "" => Found::Whole(0),
            close => expect(&self.held, close),
        };
        // The next call is recognized by all that is between it and this one.
        let next = match (self.syntax.between.map(str::trim_ascii), self.syntax.call_open) {
            (None, _) => Found::No,
            (Some(""), "") => expect(&self.held, "{"),
            (Some(""), open) => expect(&self.held, open),
            (Some(between), _) => expect(&self.held, between),
        };
        match (closed, next) {
            (Found::Whole(end), _) => {
                self.consume(end);
                self.raw.clear();
                true
            }
            (_, Found::Whole(end)) => {
                if self.syntax.between.is_some_and(|between| !between.trim_ascii().is_empty()) {
                    self.consume(end);
                }
                self.state = self.opening(vec![self.syntax.call_open]);
                true
            }
            (Found::Partly, _) | (_, Found::Partly) => self.wait(State::Between),
            // A list without an end: its calls are calls, and this is text.
            (Found::No, Found::No) => true,
        }
    }

    /// Nothing was what it seemed.
    fn fail(&mut self, events: &mut Vec<Event>) -> bool {
        self.pending.clear();
        self.state = State::Text;
        self.begun = true;
        let raw = mem::take(&mut self.raw);
        let shown = raw.trim_ascii_end().len();
        self.space = raw[shown..].to_owned();
        content(events, raw[..shown].to_owned());
        !self.held.is_empty()
    }

    fn give(&mut self, event: Event, events: &mut Vec<Event>) {
        if !self.is_sure() {
            return self.pending.push(event);
        }
        self.raw.clear();
        self.calls += u32::from(matches!(event, Event::Call { .. }));
        events.push(event);
    }

    fn consume(&mut self, end: usize) {
        self.raw.extend(self.held.drain(..end));
    }

    fn skip(&mut self, found: &Found) {
        if let Found::Whole(end) = found {
            self.held.drain(..*end);
        }
    }

    fn wait(&mut self, state: State) -> bool {
        self.state = state;
        false
    }
}

fn content(events: &mut Vec<Event>, text: String) {
    if !text.is_empty() {
        events.push(Event::Content(text));
    }
}

/// White space, then `literal`, which is there without any of its own before it.
fn expect(text: &str, literal: &str) -> Found {
    let literal = literal.trim_ascii_start();
    let rest = text.trim_ascii_start();
    if text.len() - rest.len() > SPACE_BYTES_MAX {
        return Found::No;
    }
    if rest.starts_with(literal) {
        return Found::Whole(text.len() - rest.len() + literal.len());
    }
    if literal.starts_with(rest) { Found::Partly } else { Found::No }
}

/// All of `literals`, one after the other; what follows them.
fn expect_all<'t>(mut text: &'t str, literals: &[&str]) -> Result<&'t str, Found> {
    for literal in literals {
        match expect(text, literal) {
            Found::Whole(end) => text = &text[end..],
            found => return Err(found),
        }
    }
    Ok(text)
}

/// Length of the longest end of `text` that is a beginning of `marker`, and not all of it.
pub fn overlap(text: &str, marker: &str) -> usize {
    let candidates = marker.char_indices().map(|(at, _)| at).filter(|at| *at > 0 && *at <= text.len());
    candidates.filter(|at| text.ends_with(&marker[..*at])).max().unwrap_or(0)
}

/// What stands before a call's arguments, which begin with a bracket.
enum Head<'t> {
    Whole { name: &'t str, end: usize },
    Partly,
    No,
}

fn head<'t>(text: &'t str, body: &Body) -> Head<'t> {
    let read = || {
        let named = match body {
            Body::Object(_) => expect_all(text, &["{", "\"name\"", ":", "\""])?,
            Body::Named(_) => text.trim_ascii_start(),
        };
        let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let name = &named[..named.find(|c| !is_letter(c)).unwrap_or(named.len())];
        let rest = &named[name.len()..];
        let after = match body {
            Body::Object(_) if !rest.starts_with('"') && !rest.is_empty() => return Err(Found::No),
            Body::Object(key) => expect_all(rest, &["\"", ",", "\"", key, "\"", ":", "{"])?,
            Body::Named(separator) => expect_all(rest, &[separator, "{"])?,
        };
        Ok((name, text.len() - after.len() - 1))
    };
    match read() {
        Ok((name, end)) => Head::Whole { name, end },
        Err(Found::Partly) => Head::Partly,
        Err(_) => Head::No,
    }
}
