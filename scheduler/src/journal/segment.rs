//! The log of accepted tokens: one segment a commit, and how outputs are read back from them.

use std::collections::HashMap;
use std::ops::Range;

use cuckoo_wire::PeerId;
use cuckoo_wire::message::{Price, RequestId};
use serde::{Deserialize, Serialize};

use super::{Append, Made, Maker};

/// What a segment begins with: a length that no list of parts has, so that a version before this form takes it for damaged and
/// not for another list; and the form's number.
const FORM: [u8; 5] = [0xff, 0xff, 0xff, 0x7f, 2];

/// A part as it was before there were forms, when nobody asked how a maker computes.
type OldPart = (RequestId, u32, Vec<u32>, Option<(PeerId, Price)>);

/// Tokens that one commit added to the log, of all requests together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment(pub Vec<Part>);

/// Of one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Which.
    pub request: RequestId,
    /// The number of its first token.
    pub first: u32,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Who made them; `None` is whoever made those before.
    pub by: Option<Maker>,
}

/// A request's output, as far as a log was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// The segment with which it begins. One before may speak of the request too, from when it was had before.
    pub from: i64,
    /// All tokens.
    pub tokens: Vec<u32>,
    /// Who made them, in order.
    pub makers: Vec<Made>,
}

impl Output {
    /// Nothing yet, of what is in segments from this one on.
    pub fn beginning(from: i64) -> Self {
        Self { from, ..Self::default() }
    }
}

/// A segment, or what is kept of an ended request, is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal is damaged: {0}")]
pub struct Damaged(pub String);

/// Parts as a segment has them in its bytes, for who gathers many of them and needs no list.
#[derive(Debug, Default)]
pub struct Parts {
    count: usize,
    bytes: Vec<u8>,
}

impl Parts {
    /// Adds what was accepted.
    pub fn add(&mut self, append: &Append<'_>) {
        let Append { request, first, tokens, by, .. } = *append;
        // A part has no more bytes than its fields have.
        let bytes = postcard::to_extend(&(request, first, tokens, by), std::mem::take(&mut self.bytes));
        self.bytes = bytes.expect("plain values can be written");
        self.count += 1;
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// As [`Segment::to_bytes`] has them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = postcard::to_extend(&self.count, FORM.to_vec()).expect("a number can be written");
        bytes.extend_from_slice(&self.bytes);
        bytes
    }

    /// There are none any more.
    pub fn clear(&mut self) {
        self.count = 0;
        self.bytes.clear();
    }
}

impl Segment {
    /// Adds what was accepted. Parts of one request that follow each other become one.
    pub fn add(&mut self, request: RequestId, first: u32, tokens: &[u32], by: Option<Maker>) {
        let follows =
            |last: &Part| last.request == request && last.first as usize + last.tokens.len() == first as usize;
        match self.0.last_mut() {
            Some(last) if by.is_none() && follows(last) => last.tokens.extend_from_slice(tokens),
            _ => self.0.push(Part { request, first, tokens: tokens.to_vec(), by }),
        }
    }

    /// Adds that part of an output, a part a maker.
    pub fn add_output(&mut self, request: RequestId, tokens: &[u32], makers: &[Made], part: Range<usize>) {
        let starts = makers.iter().map(|made| (made.first as usize, Some(made.by)));
        let mut starts: Vec<(usize, Option<Maker>)> = starts.filter(|(first, _)| part.contains(first)).collect();
        if starts.first().is_none_or(|(first, _)| *first > part.start) {
            starts.insert(0, (part.start, None));
        }
        let ends = starts.iter().skip(1).map(|(first, _)| *first).chain([part.end]);
        for (&(first, by), end) in starts.iter().zip(ends) {
            if let Some(tokens) = tokens.get(first..end).filter(|tokens| !tokens.is_empty()) {
                self.add(request, first as u32, tokens, by);
            }
        }
    }

    /// As kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_extend(self, FORM.to_vec()).expect("plain lists can be written")
    }

    /// Reads [`Self::to_bytes`] back.
    ///
    /// # Errors
    /// If it is something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Damaged> {
        let damaged = |e: postcard::Error| Damaged(format!("a segment cannot be read ({e})"));
        if let Some(bytes) = bytes.strip_prefix(&FORM) {
            return postcard::from_bytes(bytes).map_err(damaged);
        }
        if let Some([form, ..]) = bytes.strip_prefix(&FORM[..4]) {
            return Err(Damaged(format!(
                "a segment is of form {form}; this program knows {} and older: update it",
                FORM[4]
            )));
        }
        let parts: Vec<OldPart> = postcard::from_bytes(bytes).map_err(damaged)?;
        let part = |(request, first, tokens, by): OldPart| {
            let by = by.map(|(miner, ask)| Maker { miner, ask, numerics: None });
            Part { request, first, tokens, by }
        };
        Ok(Self(parts.into_iter().map(part).collect()))
    }

    /// Adds what the segment, number `seq` of its log, says of requests in `outputs`. What is there already must be the
    /// same.
    ///
    /// # Errors
    /// If tokens are missing before it, or differ.
    pub fn replay(&self, seq: i64, outputs: &mut HashMap<RequestId, Output>) -> Result<(), Damaged> {
        for Part { request, first, tokens, by } in &self.0 {
            let Some(Output { tokens: output, makers, .. }) = outputs.get_mut(request).filter(|o| o.from <= seq) else {
                continue;
            };
            if let Some(by) = by.filter(|_| makers.last().is_none_or(|last| last.first < *first)) {
                makers.push(Made { first: *first, by });
            }
            let first = *first as usize;
            let Some(there) = output.get(first..) else {
                return Err(Damaged(format!("{request} lacks tokens {} to {first}", output.len())));
            };
            let same = there.len().min(tokens.len());
            if there[..same] != tokens[..same] {
                return Err(Damaged(format!("{request} has two outputs from token {first} on")));
            }
            output.extend_from_slice(&tokens[same..]);
        }
        Ok(())
    }
}
