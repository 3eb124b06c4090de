//! What chat templates expect of Jinja in Python and of transformers: filters, functions, and how values look.

use std::{fmt, io};

use minijinja::{
    Error, ErrorKind, Output, State,
    value::{Value, ValueKind},
};
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

use super::OUTPUT_BYTES_MAX;

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

/// Writes a value as Python's `str` gives it.
pub(super) fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::String => minijinja::escape_formatter(out, state, value),
        _ => Ok(write_str(out, value)?),
    }
}

/// Python's `str`, as a filter.
pub(super) fn string(value: &Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::String {
        return Ok(value.clone());
    }
    let mut text = Bounded::default();
    write_str(&mut text, value)?;
    Ok(Value::from(text.into_string()?))
}

fn write_str(out: &mut impl fmt::Write, value: &Value) -> fmt::Result {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None if value.is_undefined() => Ok(()),
        None => write_repr(out, value),
    }
}

/// Writes what Python's `repr` gives: texts in quotes, and items of lists and dictionaries likewise.
fn write_repr(out: &mut impl fmt::Write, value: &Value) -> fmt::Result {
    if let Some(text) = value.as_str() {
        return write_quoted(out, text);
    }
    let items = || value.try_iter().map_err(|_| fmt::Error);
    match value.kind() {
        ValueKind::None => out.write_str("None"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) if number.is_finite() => out.write_str(&float(number)),
            _ => write!(out, "{value}"),
        },
        ValueKind::Seq => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.write_char(open)?;
            for (i, item) in items()?.enumerate() {
                out.write_str(if i > 0 { ", " } else { "" })?;
                write_repr(out, &item)?;
            }
            if value.is_tuple() && value.len() == Some(1) {
                out.write_char(',')?;
            }
            out.write_char(close)
        }
        ValueKind::Map => {
            out.write_char('{')?;
            for (i, key) in items()?.enumerate() {
                out.write_str(if i > 0 { ", " } else { "" })?;
                write_repr(out, &key)?;
                out.write_str(": ")?;
                write_repr(out, &value.get_item(&key).map_err(|_| fmt::Error)?)?;
            }
            out.write_char('}')
        }
        _ => write!(out, "{value}"),
    }
}

fn write_quoted(out: &mut impl fmt::Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            c if c == quote => write!(out, "\\{c}")?,
            c if is_printable(c) => out.write_char(c)?,
            c if u32::from(c) <= 0xff => write!(out, "\\x{:02x}", u32::from(c))?,
            c if u32::from(c) <= 0xffff => write!(out, "\\u{:04x}", u32::from(c))?,
            c => write!(out, "\\U{:08x}", u32::from(c))?,
        }
    }
    out.write_char(quote)
}

/// Python's `str.isprintable`.
fn is_printable(c: char) -> bool {
    use GeneralCategoryGroup::{Other, Separator};
    c == ' ' || !matches!(c.general_category_group(), Other | Separator)
}

/// Text that must not grow beyond a prompt's length: values may share parts, and so be far longer than the memory that
/// they take.
#[derive(Default)]
pub(super) struct Bounded(Vec<u8>);

impl Bounded {
    pub(super) fn into_string(self) -> Result<String, Error> {
        String::from_utf8(self.0).map_err(|why| Error::new(ErrorKind::InvalidOperation, why.to_string()))
    }
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        io::Write::write_all(self, text.as_bytes()).map_err(|_| fmt::Error)
    }
}

/// A finite number as Python's `repr` gives it: the fewest digits that read back as `number`, with an exponent below 1e-4
/// and from 1e16.
pub(super) fn float(number: f64) -> String {
    if number == 0.0 || (1e-4..1e16).contains(&number.abs()) {
        let text = number.to_string();
        return if text.contains('.') { text } else { text + ".0" };
    }
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// Python's `None` cannot be iterated over, which templates ask of absent tools; undefined values can.
pub(super) fn is_iterable(value: &Value) -> bool {
    !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Bytes)
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
