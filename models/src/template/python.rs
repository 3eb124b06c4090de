//! What chat templates expect of Jinja in Python and of transformers: filters, functions, and how values look.

use std::io;

use minijinja::{
    Error, ErrorKind, Output, State,
    value::{Kwargs, Value, ValueKind},
};
use serde::Serialize;

/// The message of a template's `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

pub(super) fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

/// The local time in Python's `strftime` notation.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let wrong = |why: jiff::Error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {why}"));
    jiff::fmt::strtime::format(format, &jiff::Zoned::now()).map_err(wrong)
}

/// Writes a value as Python would print it where that differs from Jinja in Rust: `None`, `True`, `False`.
pub(super) fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => Ok(out.write_str("None")?),
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// Python's `None` cannot be iterated over, which templates ask of absent tools; undefined values can.
pub(super) fn is_iterable(value: &Value) -> bool {
    !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Bytes)
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`, which is what transformers puts in place of Jinja's filter:
/// nothing is escaped for HTML.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted by transformers; escaping to ASCII is refused rather than ignored.
    if options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: ensure_ascii is not supported"));
    }
    options.assert_all_used()?;
    let indent = indent.map(|indent| " ".repeat(indent.min(64)));
    let mut json = Vec::new();
    let layout = Layout { indent, depth: 0, empty: true };
    let written = value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, layout));
    let json = written.ok().and_then(|()| String::from_utf8(json).ok());
    json.ok_or_else(|| Error::new(ErrorKind::BadSerialization, "tojson: the value cannot be written as JSON"))
}

/// Python's spacing: `", "` and `": "` on one line; with an indent, one item a line.
struct Layout {
    indent: Option<String>,
    depth: usize,
    empty: bool,
}

impl Layout {
    fn begin(&mut self, out: &mut (impl io::Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        out.write_all(bracket)
    }

    fn item(&mut self, out: &mut (impl io::Write + ?Sized), first: bool) -> io::Result<()> {
        self.empty = false;
        match (&self.indent, first) {
            (None, true) => Ok(()),
            (None, false) => out.write_all(b", "),
            (Some(_), true) => self.line(out),
            (Some(_), false) => {
                out.write_all(b",")?;
                self.line(out)
            }
        }
    }

    fn end(&mut self, out: &mut (impl io::Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !std::mem::take(&mut self.empty) && self.indent.is_some() {
            self.line(out)?;
        }
        out.write_all(bracket)
    }

    fn line(&self, out: &mut (impl io::Write + ?Sized)) -> io::Result<()> {
        out.write_all(b"\n")?;
        let indent = self.indent.as_deref().unwrap_or_default().as_bytes();
        (0..self.depth).try_for_each(|_| out.write_all(indent))
    }
}

impl serde_json::ser::Formatter for Layout {
    fn begin_array<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"[")
    }

    fn begin_array_value<W: io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first)
    }

    fn end_array<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"]")
    }

    fn begin_object<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"{")
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn end_object<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"}")
    }
}

/// Replaces transformers' `{% generation %}` and `{% endgeneration %}`, which only mark text for training, by tags that
/// do nothing and trim the same whitespace.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        result.push_str(before);
        let inner = tag.trim_start_matches(['-', '+']);
        result.push_str(&tag[..tag.len() - inner.len()]);
        rest = inner;
        let word = inner.trim_start();
        for (mark, replacement) in [("generation", " if true "), ("endgeneration", " endif ")] {
            let end = word.strip_prefix(mark).map(str::trim_start);
            if let Some(end) = end.filter(|end| ["%}", "-%}", "+%}"].iter().any(|close| end.starts_with(close))) {
                result.push_str(replacement);
                rest = end;
                break;
            }
        }
    }
    result.push_str(rest);
    result
}
