//! Where a stream of server-sent events stands: the `id` of each of them, and what a client that lost its connection sends
//! back as `Last-Event-ID` (HTML Living Standard §9.2). Pure.

use std::fmt;

use axum::http::{HeaderMap, HeaderName};
use cuckoo_wire::message::{Refusal, Reply, RequestId};

use super::failure::Failure;

/// The header of the standard.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// A place in the events of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) request: RequestId,
    /// All that these tokens show was sent.
    pub(super) after: u32,
    /// Of what comes then, so many events too: where tools may be called, a token may show several, and so does the end.
    pub(super) events: u32,
}

/// Counts the events of one request.
#[derive(Debug)]
pub(super) struct Counter {
    at: Cursor,
    /// Whether events are counted one by one, rather than by the tokens that they show.
    one_by_one: bool,
    /// Events that are there already.
    known: u32,
}

impl Cursor {
    /// Before everything.
    pub(super) fn start(request: RequestId) -> Self {
        Self { request, after: 0, events: 0 }
    }

    /// What a client sent, if it comes back.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Failure> {
        let Some(text) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
        let text = String::from_utf8_lossy(text.as_bytes());
        let why = || {
            let text = text.escape_debug();
            format!("Last-Event-ID is '{text}': send the id of the last event that came, or leave it out to begin anew")
        };
        Ok(Some(Self::parse(&text).ok_or_else(|| Refusal::invalid("Last-Event-ID", why()))?))
    }

    fn parse(text: &str) -> Option<Self> {
        let (request, place) = text.split_once(':')?;
        let (after, events) = place.split_once('.').unwrap_or((place, "0"));
        Some(Self { request: request.parse().ok()?, after: after.parse().ok()?, events: events.parse().ok()? })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.events {
            0 => write!(f, "{}:{}", self.request, self.after),
            events => write!(f, "{}:{}.{events}", self.request, self.after),
        }
    }
}

impl Counter {
    /// From a place on. Where tools may be called, replies have one token each.
    pub(super) fn new(from: Cursor, calls_tools: bool) -> Self {
        Self { at: Cursor { events: 0, ..from }, one_by_one: calls_tools, known: from.events }
    }

    /// Where it stands.
    pub(super) fn at(&self) -> Cursor {
        self.at
    }

    /// A reply comes.
    pub(super) fn reply(&mut self, reply: Option<&Reply>) {
        let (first, tokens) = match reply {
            Some(Reply::Delta { first, tokens, .. }) if !tokens.is_empty() => (first, tokens),
            // What the end shows is of no token.
            Some(Reply::Finished { .. } | Reply::Refused(_)) => {
                self.one_by_one = true;
                return;
            }
            _ => return,
        };
        let next = if self.one_by_one { *first } else { *first + tokens.len() as u32 };
        if next != self.at.after {
            // What was there was of the token where this began.
            (self.at.after, self.at.events, self.known) = (next, 0, 0);
        }
    }

    /// One of its events: its id, or nothing if it is there already.
    pub(super) fn event(&mut self) -> Option<Cursor> {
        if self.one_by_one {
            self.at.events += 1;
        }
        (self.at.events > self.known || !self.one_by_one).then_some(self.at)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn request() -> RequestId {
        RequestId([7; 16])
    }

    fn delta(first: u32, tokens: usize) -> Reply {
        Reply::Delta { first, tokens: vec![1; tokens], text: String::new(), logprobs: Vec::new(), calls: Vec::new() }
    }

    /// The ids of what `shown` says each reply shows, from `from` on.
    fn ids(from: Cursor, calls_tools: bool, shown: &[(Reply, usize)]) -> Vec<String> {
        let mut counter = Counter::new(from, calls_tools);
        let mut ids = Vec::new();
        for (reply, events) in shown {
            counter.reply(Some(reply));
            ids.extend((0..*events).filter_map(|_| counter.event()).map(|id| id.to_string()));
        }
        ids
    }

    #[test]
    fn a_cursor_is_what_it_says_and_garbage_is_named() {
        let with = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LAST_EVENT_ID, HeaderValue::from_str(text).unwrap());
            Cursor::of(&headers)
        };
        for cursor in [Cursor::start(request()), Cursor { request: request(), after: 12, events: 3 }] {
            assert_eq!(with(&cursor.to_string()).unwrap(), Some(cursor));
        }
        for garbage in ["", "1", "req_1:1", &format!("{}:", request()), &format!("{}:-1", request())] {
            assert!(with(garbage).is_err(), "{garbage}");
        }
        assert_eq!(Cursor::of(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn text_is_counted_by_tokens() {
        let shown = [(delta(0, 1), 1), (delta(1, 3), 1), (delta(4, 1), 0), (delta(5, 1), 1)];
        let start = Cursor::start(request());
        let places: Vec<String> = ids(start, false, &shown).iter().map(|id| id[37..].to_owned()).collect();
        assert_eq!(places, ["1", "4", "6"]);
    }

    #[test]
    fn the_end_is_counted_event_by_event() {
        let end = || Reply::Refused(Refusal::new(cuckoo_wire::message::RefusalCode::Internal, "x"));
        let shown = || [(delta(0, 2), 1), (end(), 3)];
        let all = ids(Cursor::start(request()), false, &shown());
        let places: Vec<&str> = all.iter().map(|id| &id[37..]).collect();
        assert_eq!(places, ["2", "2.1", "2.2", "2.3"]);
        for (came, id) in all.iter().enumerate() {
            let rest = ids(Cursor::parse(id).unwrap(), false, &[(end(), 3)]);
            assert_eq!(rest, all[came + 1..]);
        }
    }

    proptest! {
        /// Whatever has come, the rest comes, once: each token may show several events, in several replies.
        #[test]
        fn what_follows_a_cursor_is_the_rest(
            tokens in prop::collection::vec(prop::collection::vec(0..3_usize, 1..4), 1..9),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut shown = Vec::new();
            for (first, events) in tokens.iter().enumerate() {
                for (i, events) in events.iter().enumerate() {
                    shown.push((delta(first as u32, usize::from(i == 0)), *events));
                }
            }
            let all = ids(Cursor::start(request()), true, &shown);
            prop_assume!(!all.is_empty());
            let cut = cut.index(all.len());
            let from = Cursor::parse(&all[cut]).unwrap();
            let rest: Vec<(Reply, usize)> = shown
                .into_iter()
                .skip_while(|(reply, _)| !matches!(reply, Reply::Delta { first, .. } if *first == from.after))
                .collect();
            prop_assert_eq!(&ids(from, true, &rest), &all[cut + 1..]);
        }
    }
}
