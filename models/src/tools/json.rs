//! JSON (RFC 8259) byte by byte: where a value ends, and the first byte that cannot be part of one. It keeps no text and
//! does not recurse, so nesting costs a bit a level.

/// A byte that no JSON value has at this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// How far a value has been read.
#[derive(Clone, Debug)]
pub(super) struct Scanner {
    /// For each open bracket, whether it is an object's.
    open: Vec<bool>,
    next: Next,
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
    Text { is_key: bool, escape: Escape },
    Number(Number),
    Word { word: &'static [u8], at: usize },
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    No,
    Begun,
    /// Hexadecimal digits that are still to come.
    Digits(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Sign,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

impl Scanner {
    /// Before any value.
    pub(super) fn new() -> Self {
        Self { open: Vec::new(), next: Next::Value }
    }

    /// Brackets that are open.
    pub(super) fn depth(&self) -> usize {
        self.open.len()
    }

    /// Whether an object or array, or a text, is complete. Numbers outside of both never are: more digits may come.
    pub(super) fn is_done(&self) -> bool {
        self.next == Next::Nothing
    }

    /// Goes on past one byte; after an error the state says nothing.
    pub(super) fn push(&mut self, byte: u8) -> Result<(), Malformed> {
        let is_space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        self.next = match self.next {
            Next::Text { is_key, escape } => self.text(is_key, escape, byte)?,
            Next::Word { word, at } if word.get(at) == Some(&byte) => match at + 1 == word.len() {
                true => self.after_value(),
                false => Next::Word { word, at: at + 1 },
            },
            Next::Word { .. } => return Err(Malformed),
            Next::Number(number) => match number.push(byte) {
                Some(number) => Next::Number(number),
                None if number.may_end() => {
                    self.next = self.after_value();
                    return self.push(byte);
                }
                None => return Err(Malformed),
            },
            same if is_space => same,
            Next::Value | Next::ValueOrEnd => match byte {
                b']' if self.next == Next::ValueOrEnd => self.close(),
                _ => self.value(byte)?,
            },
            Next::Key | Next::KeyOrEnd => match byte {
                b'"' => Next::Text { is_key: true, escape: Escape::No },
                b'}' if self.next == Next::KeyOrEnd => self.close(),
                _ => return Err(Malformed),
            },
            Next::Colon if byte == b':' => Next::Value,
            Next::CommaOrEnd => match (byte, self.open.last()) {
                (b',', Some(true)) => Next::Key,
                (b',', Some(false)) => Next::Value,
                (b'}', Some(true)) | (b']', Some(false)) => self.close(),
                _ => return Err(Malformed),
            },
            Next::Colon | Next::Nothing => return Err(Malformed),
        };
        Ok(())
    }

    fn value(&mut self, byte: u8) -> Result<Next, Malformed> {
        let word = |word| Next::Word { word, at: 1 };
        Ok(match byte {
            b'{' => {
                self.open.push(true);
                Next::KeyOrEnd
            }
            b'[' => {
                self.open.push(false);
                Next::ValueOrEnd
            }
            b'"' => Next::Text { is_key: false, escape: Escape::No },
            b't' => word(b"true"),
            b'f' => word(b"false"),
            b'n' => word(b"null"),
            b'-' => Next::Number(Number::Sign),
            b'0' => Next::Number(Number::Zero),
            b'1'..=b'9' => Next::Number(Number::Whole),
            _ => return Err(Malformed),
        })
    }

    fn text(&mut self, is_key: bool, escape: Escape, byte: u8) -> Result<Next, Malformed> {
        let escape = match (escape, byte) {
            (Escape::No, b'"') if is_key => return Ok(Next::Colon),
            (Escape::No, b'"') => return Ok(self.after_value()),
            (Escape::No, b'\\') => Escape::Begun,
            (Escape::No, 0x20..) | (Escape::Begun, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                Escape::No
            }
            (Escape::Begun, b'u') => Escape::Digits(4),
            (Escape::Digits(1), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => Escape::No,
            (Escape::Digits(left), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => Escape::Digits(left - 1),
            _ => return Err(Malformed),
        };
        Ok(Next::Text { is_key, escape })
    }

    fn close(&mut self) -> Next {
        self.open.pop();
        self.after_value()
    }

    fn after_value(&self) -> Next {
        if self.open.is_empty() { Next::Nothing } else { Next::CommaOrEnd }
    }
}

impl Number {
    fn push(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Sign, b'0') => Self::Zero,
            (Self::Sign, b'1'..=b'9') | (Self::Whole, b'0'..=b'9') => Self::Whole,
            (Self::Zero | Self::Whole, b'.') => Self::Point,
            (Self::Point | Self::Fraction, b'0'..=b'9') => Self::Fraction,
            (Self::Zero | Self::Whole | Self::Fraction, b'e' | b'E') => Self::Exponent,
            (Self::Exponent, b'+' | b'-') => Self::ExponentSign,
            (Self::Exponent | Self::ExponentSign | Self::ExponentDigits, b'0'..=b'9') => Self::ExponentDigits,
            _ => return None,
        })
    }

    fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Whole | Self::Fraction | Self::ExponentDigits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes up to the end of the first value.
    fn scan(text: &[u8]) -> Result<Option<usize>, Malformed> {
        let mut scanner = Scanner::new();
        for (at, byte) in text.iter().enumerate() {
            scanner.push(*byte)?;
            if scanner.is_done() {
                return Ok(Some(at + 1));
            }
        }
        Ok(None)
    }

    #[test]
    fn values_end_where_they_end() {
        let value = r#"{"a": [1.5e-3, "x\"}]\u00e9", {"b": null}]}"#;
        assert_eq!(scan(format!("{value} tail").as_bytes()), Ok(Some(value.len())));
        assert_eq!(scan(b"[] "), Ok(Some(2)), "space after a value is none of it");
        assert_eq!(scan(br#"{"a": "#), Ok(None));
        for bad in [
            &b"{a"[..],
            b"{\"a\" 1",
            b"[1,]",
            b"{\"a\":1,}",
            b"[01]",
            b"[1.]",
            b"[\"\n\"]",
            b"[\"\\x\"]",
            b"[nul ",
            b"}",
            b"[}",
        ] {
            assert_eq!(scan(bad), Err(Malformed), "{}", String::from_utf8_lossy(bad));
        }
    }

    proptest! {
        /// What this accepts is what serde_json accepts, on texts that are JSON nearly.
        #[test]
        fn agrees_with_serde(text in r#"[\[{]["\\{}\[\],:0-9.eE+\-truefalsn u \n]{0,14}[\]}]?"#) {
            let blank = |rest: &str| rest.bytes().all(|byte| matches!(byte, b' ' | b'\n'));
            let mine = scan(text.as_bytes()).is_ok_and(|end| end.is_some_and(|end| blank(&text[end..])));
            prop_assert_eq!(mine, serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok());
        }
    }
}
