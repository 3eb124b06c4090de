//! The fields of a request that were not used, for the response header that lists them. Never longer than a header may be.

use std::collections::BTreeSet;

use axum::http::{HeaderName, HeaderValue};

/// Lists the fields of a request that had no effect.
pub(super) const X_CUCKOO_IGNORED: HeaderName = HeaderName::from_static("x-cuckoo-ignored");

/// Names that are kept.
const NAMES_MAX: usize = 32;
/// Characters of a name that are kept.
const NAME_CHARS_MAX: usize = 64;

/// Names of unused fields, each once, without the indices of arrays.
#[derive(Debug, Default)]
pub(super) struct Ignored {
    names: BTreeSet<String>,
    more: bool,
}

impl Ignored {
    /// Notes a field by the name that errors would use.
    pub(super) fn add(&mut self, path: &str) {
        if self.names.len() < NAMES_MAX {
            self.names.insert(plain(path));
        } else if !self.more {
            self.more = !self.names.contains(&plain(path));
        }
    }

    /// The header's value, if there is anything to list.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        if self.names.is_empty() {
            return None;
        }
        let mut text = self.names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        if self.more {
            text.push_str(", ...");
        }
        Some(HeaderValue::try_from(text).expect("names hold visible ASCII only"))
    }
}

/// A name that is safe in a header and in a comma-separated list: whoever sent the request chose it.
fn plain(path: &str) -> String {
    let mut within_index = false;
    let mut name = String::new();
    for c in path.chars() {
        match c {
            '[' => within_index = true,
            ']' => within_index = false,
            '0'..='9' if within_index => continue,
            _ => {}
        }
        name.push(if c.is_ascii_graphic() && c != ',' { c } else { '?' });
        if name.len() == NAME_CHARS_MAX {
            break;
        }
    }
    name
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn header(names: &[&str]) -> Option<String> {
        let mut ignored = Ignored::default();
        names.iter().for_each(|name| ignored.add(name));
        ignored.header().map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn names_are_listed_once_without_indices() {
        assert_eq!(header(&[]), None);
        assert_eq!(header(&["user", "messages[0].name", "messages[17].name"]).unwrap(), "messages[].name, user");
    }

    #[test]
    fn no_name_can_break_out_of_the_header() {
        assert_eq!(header(&["a\r\nset-cookie: x", "b,c", "ü"]).unwrap(), "?, a??set-cookie:?x, b?c");
    }

    #[test]
    fn a_flood_of_names_is_cut() {
        let names: Vec<_> = (0..1000).map(|i| format!("field_{i:04}")).collect();
        let text = header(&names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        assert!(text.ends_with("field_0031, ..."), "{text}");
    }

    proptest! {
        #[test]
        fn any_name_makes_a_header(names: Vec<String>) {
            header(&names.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
}
