//! Where a PostgreSQL store is. It may hold a password, which is never printed.

use std::fmt;
use std::str::FromStr;

/// `postgresql://user:password@host/database`, with the parameters that `libpq` knows.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl(String);

/// A text that is no such address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a store is postgresql://user:password@host/database")]
pub struct NoUrl;

impl PostgresUrl {
    /// All of it, with the password.
    pub(in crate::ledger) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PostgresUrl {
    type Err = NoUrl;

    fn from_str(text: &str) -> Result<Self, NoUrl> {
        let known = ["postgresql://", "postgres://"].iter().any(|scheme| text.starts_with(scheme));
        let readable = sqlx::postgres::PgConnectOptions::from_str(text).is_ok();
        if known && readable { Ok(Self(text.to_owned())) } else { Err(NoUrl) }
    }
}

/// Without its parameters, one of which may be a password too.
impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.0.split_once("://").unwrap_or_default();
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        // A password may contain an `@` of its own if it was not encoded, so the last one counts.
        match rest.rsplit_once('@') {
            Some((who, place)) => match who.split_once(':') {
                Some((user, _)) => write!(f, "{scheme}://{user}:***@{place}"),
                None => write!(f, "{scheme}://{who}@{place}"),
            },
            None => write!(f, "{scheme}://{rest}"),
        }
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn passwords_are_never_printed() {
        let urls = [
            ("postgresql://me:secret@db.example:5433/market", "postgresql://me:***@db.example:5433/market"),
            ("postgres://me:se%40cret@h/x?password=secret&sslmode=disable", "postgres://me:***@h/x"),
            ("postgresql://me@h/x", "postgresql://me@h/x"),
            ("postgresql:///x?host=/run/postgresql&password=secret", "postgresql:///x"),
        ];
        for (text, shown) in urls {
            let url: PostgresUrl = text.parse().unwrap();
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), format!("PostgresUrl({shown})")));
            assert_eq!(url.as_str(), text);
        }
        for bad in ["", "market.db", "mysql://me:secret@h/x", "postgresql://h:port/x"] {
            assert_eq!(bad.parse::<PostgresUrl>(), Err(NoUrl), "{bad}");
        }
        assert!(!NoUrl.to_string().contains("secret"));
    }
}
