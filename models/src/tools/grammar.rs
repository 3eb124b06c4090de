//! The grammar of outputs that may or must call tools, in llguidance's variant of Lark's syntax.

use std::collections::BTreeMap;

use serde_json::Value;

use super::syntax::{Body, Syntax};
use crate::constraint::{ConstraintError, embedded_schema, quoted};

/// White space between the parts of a call: enough for any writer, too little to go on for ever.
const SPACE: &str = r"[\x20\n]{0,4}";
/// White space as the parser takes it.
const ANY_SPACE: &str = r"[\x20\t\r\n\x0c]*";

/// What an output that may call tools looks like.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CallGrammar {
    /// How calls are written.
    pub syntax: &'static Syntax,
    /// Each tool's name and the JSON schema of its arguments.
    pub functions: Vec<(String, String)>,
    /// Text may come before calls, or instead of them.
    pub text: bool,
    /// More than one call may come.
    pub many: bool,
}

impl CallGrammar {
    /// The grammar, given the vocabulary's control tokens: where one of them is a part of the syntax, it is that token
    /// and not its name spelled out.
    pub(crate) fn lark(&self, control: &BTreeMap<String, u32>) -> Result<String, ConstraintError> {
        let schemas = self.functions.iter().map(|(name, schema)| {
            let schema: Value = serde_json::from_str(schema)
                .map_err(|e| ConstraintError::Invalid(format!("the schema of '{name}' is not valid JSON: {e}")))?;
            embedded_schema(schema)
        });
        let schemas: Vec<Value> = schemas.collect::<Result<_, _>>()?;
        if schemas.is_empty() {
            return Err(ConstraintError::Unsatisfiable("there is no tool to call".to_owned()));
        }
        let writer = Writer { syntax: self.syntax, control };
        let mut rules = vec![self.start(&writer), format!("LAST: /{SPACE}/"), "TEXT: /(?s:.*)/".to_owned()];
        let open = writer.marker(self.syntax.trigger);
        rules.push(format!("open: {open}"));
        rules.push(format!("spelled[lazy]: TEXT {}", quoted(self.syntax.trigger)));
        let call = (0..schemas.len()).map(|i| format!("call{i}")).collect::<Vec<_>>().join(" | ");
        rules.push(format!(
            "call: {} ({call}) {}",
            writer.part(self.syntax.call_open),
            writer.part(self.syntax.call_close)
        ));
        let more = match self.syntax.between {
            Some(between) if self.many => format!("({} call)*", writer.part(between)),
            _ => String::new(),
        };
        let (first, last) = (writer.part(self.syntax.list_open), writer.part(self.syntax.list_close));
        rules.push(format!("calls: {first} call {more} {last}"));
        for (i, (schema, (name, _))) in schemas.iter().zip(&self.functions).enumerate() {
            let (head, end) = writer.head(name);
            rules.push(format!("call{i}: {head} args{i} {end}\nargs{i}: %json {schema}"));
        }
        Ok(rules.join("\n"))
    }

    fn start(&self, writer: &Writer<'_>) -> String {
        let again = self.many && self.syntax.between.is_none();
        if self.syntax.bare {
            let names = self.functions.iter().map(|(name, _)| regex(name)).collect::<Vec<_>>().join("|");
            let (s, trigger) = (ANY_SPACE, regex(self.syntax.trigger));
            let begins = format!(r#"{s}({trigger}|\x7b{s}"name"{s}:{s}"({names})")(?s:.*)"#);
            let text = format!("\nOTHER: /(?s:.*)/ & ~/{begins}/");
            return match self.text {
                true => format!("start: open? calls LAST | OTHER{text}"),
                false => "start: open? calls LAST".to_owned(),
            };
        }
        // A control token ends text by itself; what is spelled ends it when it is complete.
        let opening = match writer.is_control(self.syntax.trigger) {
            true => "(TEXT open | spelled)",
            false => "spelled",
        };
        match (self.text, again || (self.many && self.text)) {
            (true, true) => format!("start: ({opening} calls)* TEXT"),
            (true, false) => format!("start: {opening} calls LAST | TEXT"),
            (false, true) => "start: open calls (open calls)* LAST".to_owned(),
            (false, false) => "start: open calls LAST".to_owned(),
        }
    }
}

/// Parts of a syntax as parts of rules.
struct Writer<'a> {
    syntax: &'static Syntax,
    control: &'a BTreeMap<String, u32>,
}

impl Writer<'_> {
    /// A part with white space before it, or nothing.
    fn part(&self, text: &str) -> String {
        if text.trim_ascii().is_empty() { String::new() } else { self.marker(text) }
    }

    fn marker(&self, text: &str) -> String {
        let mut pieces = Vec::new();
        let (mut plain, mut rest, mut space) = (String::new(), text.trim_ascii_start(), SPACE);
        while let Some(c) = rest.chars().next() {
            let token = self.control.iter().filter(|(name, _)| rest.starts_with(name.as_str()));
            match token.max_by_key(|(name, _)| name.len()) {
                Some((name, id)) => {
                    if !plain.is_empty() || !space.is_empty() {
                        pieces.push(format!("/{space}{}/", regex(&plain)));
                    }
                    pieces.push(format!("<[{id}]>"));
                    (plain, space, rest) = (String::new(), "", &rest[name.len()..]);
                }
                None => {
                    plain.push(c);
                    rest = &rest[c.len_utf8()..];
                }
            }
        }
        if !plain.is_empty() {
            pieces.push(format!("/{space}{}/", regex(&plain)));
        }
        pieces.join(" ")
    }

    fn is_control(&self, text: &str) -> bool {
        self.control.contains_key(text)
    }

    /// What comes before a call's arguments, in one piece where that can be, and after them.
    fn head(&self, name: &str) -> (String, String) {
        let name = regex(name);
        match self.syntax.body {
            Body::Object(key) => (
                format!(r#"/{SPACE}\x7b{SPACE}"name"{SPACE}:{SPACE}"{name}"{SPACE},{SPACE}"{key}"{SPACE}:{SPACE}/"#),
                format!(r"/{SPACE}\x7d/"),
            ),
            Body::Named(separator) => (format!("/{SPACE}{name}/ {}", self.marker(separator)), String::new()),
        }
    }
}

/// A text as a regular expression that matches it alone.
fn regex(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' => out.push(c),
            _ => out.push_str(&format!(r"\u{{{:x}}}", u32::from(c))),
        }
    }
    out
}
