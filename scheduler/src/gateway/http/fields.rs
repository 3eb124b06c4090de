//! A JSON object taken apart field by field, each with its type; what is left over is known. Never guesses or clamps.

use cuckoo_wire::message::Refusal;
use serde_json::{Map, Value};

use super::ignored::Ignored;

/// What an error quotes of a wrong value at most.
const QUOTE_CHARS_MAX: usize = 48;

/// The fields of an object that nobody has asked for yet. Taking one removes it; `null` means absent.
pub(super) struct Fields {
    path: String,
    left: Map<String, Value>,
}

impl Fields {
    /// The fields of a request's body.
    pub(super) fn of_body(object: Map<String, Value>) -> Self {
        Self { path: String::new(), left: object }
    }

    /// The fields of an object within the body, which errors call `path`.
    pub(super) fn nested(path: &str, value: Value) -> Result<Self, Refusal> {
        match value {
            Value::Object(left) => Ok(Self { path: format!("{path}."), left }),
            other => Err(wrong(path, "an object", &other)),
        }
    }

    /// What errors call this field.
    pub(super) fn path_of(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// Any value.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.left.remove(name).filter(|value| !value.is_null())
    }

    /// A string.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(&self.path_of(name), "a string", &other)),
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong(&self.path_of(name), "true or false", &other)),
        }
    }

    /// A number, as sampling uses it. One that does not fit becomes infinite and is refused by its range.
    pub(super) fn number(&mut self, name: &str) -> Result<Option<f32>, Refusal> {
        self.take(name).map(|value| number(&self.path_of(name), &value)).transpose()
    }

    /// A whole number that is not negative.
    pub(super) fn count(&mut self, name: &str) -> Result<Option<u32>, Refusal> {
        self.take(name).map(|value| count(&self.path_of(name), &value)).transpose()
    }

    /// A whole number of 64 bits, signed or not. Negative ones are taken in two's complement, so that each number of
    /// either kind is a seed.
    pub(super) fn seed(&mut self, name: &str) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match (value.as_u64(), value.as_i64()) {
            (Some(unsigned), _) => Ok(Some(unsigned)),
            (None, Some(signed)) => Ok(Some(signed.cast_unsigned())),
            (None, None) => Err(wrong(&self.path_of(name), "a whole number of 64 bits", &value)),
        }
    }

    /// Whole numbers that are not negative.
    pub(super) fn counts(&mut self, name: &str) -> Result<Option<Vec<u32>>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => {
                let path = |i: usize| format!("{}[{i}]", self.path_of(name));
                items.iter().enumerate().map(|(i, item)| count(&path(i), item)).collect::<Result<_, _>>().map(Some)
            }
            Some(other) => Err(wrong(&self.path_of(name), "an array of token ids", &other)),
        }
    }

    /// One string or several.
    pub(super) fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(vec![text])),
            Some(Value::Array(items)) => items
                .into_iter()
                .enumerate()
                .map(|(i, item)| match item {
                    Value::String(text) => Ok(text),
                    other => Err(wrong(&format!("{}[{i}]", self.path_of(name)), "a string", &other)),
                })
                .collect::<Result<_, _>>()
                .map(Some),
            Some(other) => Err(wrong(&self.path_of(name), "a string or an array of strings", &other)),
        }
    }

    /// Notes what nobody asked for; a `null` asks for nothing.
    pub(super) fn rest(self, ignored: &mut Ignored) {
        let asked = self.left.iter().filter(|(_, value)| !value.is_null());
        asked.for_each(|(name, _)| ignored.add(&self.path_of(name)));
    }
}

/// Takes fields out that would change the answer and cannot be honoured, and refuses the first that asks for something: each
/// has the values, as JSON, that ask for nothing.
pub(super) fn refuse_unsupported(fields: &mut Fields, unsupported: &[(&str, &[&str])]) -> Result<(), Refusal> {
    for &(name, neutral) in unsupported {
        let Some(value) = fields.take(name) else { continue };
        if !neutral.contains(&value.to_string().as_str()) {
            let instead = match neutral.first() {
                Some(neutral) => format!("leave it out or send {neutral}"),
                None => "leave it out".to_owned(),
            };
            let got = quoted(&value);
            return Err(Refusal::invalid(name, format!("{name} is {got}, which is not supported: {instead}")));
        }
    }
    Ok(())
}

/// A number, as sampling uses it.
pub(super) fn number(path: &str, value: &Value) -> Result<f32, Refusal> {
    match value.as_f64() {
        Some(number) => Ok(number as f32),
        None => Err(wrong(path, "a number", value)),
    }
}

/// A whole number that is not negative.
pub(super) fn count(path: &str, value: &Value) -> Result<u32, Refusal> {
    match value.as_u64() {
        Some(count) => {
            u32::try_from(count).map_err(|_| Refusal::invalid(path, format!("{path} is {count}: too large")))
        }
        None => Err(wrong(path, "a whole number of 0 or more", value)),
    }
}

/// The refusal of a value of another type.
pub(super) fn wrong(path: &str, expected: &str, got: &Value) -> Refusal {
    let got = match got {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        plain => quoted(plain),
    };
    Refusal::invalid(path, format!("{path} must be {expected}, not {got}"))
}

/// The beginning of a value, as JSON.
pub(super) fn quoted(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(QUOTE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::of_body(value.as_object().unwrap().clone())
    }

    #[test]
    fn types_are_exact() {
        let bad = || fields(json!({"a": "1", "b": -1, "c": 1.5, "d": [1], "e": {"x": 1}, "f": 4_294_967_296_u64}));
        for name in ["a", "b", "c", "d", "e", "f"] {
            assert_eq!(bad().count(name).unwrap_err().param.as_deref(), Some(name));
        }
        assert!(bad().number("a").is_err() && bad().number("d").is_err());
        assert!(bad().flag("a").is_err() && bad().flag("b").is_err());
        assert!(bad().text("b").is_err() && bad().text("e").is_err());
        assert!(bad().texts("d").is_err() && bad().texts("e").is_err());
        assert_eq!(bad().texts("d").unwrap_err().param.as_deref(), Some("d[0]"));
        assert!(bad().seed("c").is_err() && bad().seed("a").is_err());
    }

    #[test]
    fn null_is_absent_and_the_rest_is_listed() {
        let mut f = fields(json!({"temperature": null, "user": "me", "seed": -1, "gone": null}));
        assert_eq!(f.number("temperature").unwrap(), None);
        assert_eq!(f.seed("seed").unwrap(), Some(u64::MAX));
        let mut ignored = Ignored::default();
        f.rest(&mut ignored);
        assert_eq!(ignored.header().unwrap(), "user");
    }

    #[test]
    fn seeds_cover_both_kinds_of_64_bits() {
        for (value, seed) in
            [(json!(i64::MIN), 1 << 63), (json!(-1), u64::MAX), (json!(u64::MAX), u64::MAX), (json!(7), 7)]
        {
            assert_eq!(fields(json!({"seed": value})).seed("seed").unwrap(), Some(seed));
        }
    }

    #[test]
    fn quotes_are_short_and_never_split_a_character() {
        let long = quoted(&json!("ü".repeat(1000)));
        assert_eq!(long.chars().count(), QUOTE_CHARS_MAX + 1);
    }
}
