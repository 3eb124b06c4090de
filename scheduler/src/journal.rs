//! The journal of requests, pure: what a request is, who runs it and which tokens of it are accepted, so that another
//! process can go on where one stopped. Knows no money, no clock and no disk.
//!
//! ```text
//! open ──▶ append … append ──▶ end          by the owner, in the epoch that it was given
//!            ▲        │
//!            └ taken over: another owner, the next epoch; whatever the old one still writes is fenced off
//! ```
//!
//! Tokens are numbered from 0 and follow each other without a gap. What is written twice counts once.

use cuckoo_wire::PeerId;
use cuckoo_wire::limits::PROMPT_TOKENS_MAX;
use cuckoo_wire::message::{FinishReason, Numerics, Price, Refusal, RequestId};
use foldhash::{HashMap, HashMapExt};
use serde::{Deserialize, Serialize};

use crate::ledger::ClientId;

mod segment;
#[cfg(test)]
mod tests;

pub use segment::{Damaged, Output, Part, Parts, Segment};

/// Bytes of a [`Entry::Open::spec`]: an assignment fits, with its prompt as token ids.
pub const SPEC_BYTES_MAX: usize = 1 << 20;
/// Tokens of one request's output.
pub const OUTPUT_TOKENS_MAX: usize = PROMPT_TOKENS_MAX;
/// Bytes of a failure's message in [`Ending::Failed`], as kept.
pub const ENDING_BYTES_MAX: usize = 4 << 10;

/// Which of a request's owners, in order, somebody is. Every takeover makes a new one, and only the newest may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Epoch(pub u32);

impl Epoch {
    /// Of the scheduler that opened the request.
    pub const FIRST: Self = Self(1);

    /// Of whoever takes over from this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// How a request ended, for whoever asks again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// As it should.
    Finished {
        /// Why.
        reason: FinishReason,
        /// How often it had moved to another miner.
        migrations: u32,
    },
    /// The developer went away and did not come back.
    Gone,
    /// Nobody could go on.
    Failed(Refusal),
}

/// Who makes tokens, and for how much: whoever goes on with a request must pay those who had it before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maker {
    /// Who.
    pub miner: PeerId,
    /// What it asked when it was chosen.
    pub ask: Price,
    /// How it computes; `None` where it was written down by a version that did not ask.
    pub numerics: Option<Numerics>,
}

/// A maker's part of an output: from a token on, up to the next one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// The number of its first token.
    pub first: u32,
    /// Whose.
    pub by: Maker,
}

/// Something to be written down about one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// It begins.
    Open {
        /// Which.
        request: RequestId,
        /// Whose.
        client: ClientId,
        /// What another process needs to go on with it, at most [`SPEC_BYTES_MAX`]. Empty if nobody could: then it is
        /// only known to be open.
        spec: Vec<u8>,
    },
    /// More of its output is accepted.
    Append {
        /// Which.
        request: RequestId,
        /// The writer's.
        epoch: Epoch,
        /// The number of the first of `tokens`.
        first: u32,
        /// At least one.
        tokens: Vec<u32>,
        /// Who made them; `None` is whoever made those before.
        by: Option<Maker>,
    },
    /// It is over.
    End {
        /// Which.
        request: RequestId,
        /// The writer's.
        epoch: Epoch,
        /// How.
        ending: Ending,
    },
}

/// An [`Entry::Append`] that is not kept.
#[derive(Clone, Copy, Debug)]
pub struct Append<'a> {
    /// Which.
    pub request: RequestId,
    /// The writer's.
    pub epoch: Epoch,
    /// The number of the first of `tokens`.
    pub first: u32,
    /// At least one.
    pub tokens: &'a [u32],
    /// Who made them; `None` is whoever made those before.
    pub by: Option<Maker>,
}

/// Why nothing was written down.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Somebody else has taken the request over.
    #[error("{0} was taken over by another scheduler, or by a later run of it here: stop working on it")]
    Fenced(RequestId),
    /// Tokens are missing before these, or others are there already.
    #[error("{request} has {accepted} tokens accepted and cannot go on with token {first}: read it again")]
    OutOfOrder {
        /// Which.
        request: RequestId,
        /// So many are there.
        accepted: u32,
        /// Where the writer wanted to go on.
        first: u32,
    },
    /// It is over already.
    #[error("{0} has ended: a new request needs a new id")]
    Ended(RequestId),
    /// Never opened, or ended and forgotten.
    #[error("{0} is not in the journal: open it first")]
    Unknown(RequestId),
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
}

/// What is known of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Whose it is.
    pub client: ClientId,
    /// Who may write.
    pub owner: PeerId,
    /// In which epoch.
    pub epoch: Epoch,
    /// Whether another process could go on.
    pub resumable: bool,
    /// Where in its owner's log its tokens begin, at the earliest.
    pub first_segment: i64,
    /// All accepted tokens; of a request of another owner none are known.
    pub tokens: Vec<u32>,
    /// Who made them, in order.
    pub makers: Vec<Made>,
    /// How it ended, if it has.
    pub ending: Option<Ending>,
}

/// What an entry did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// Something new.
    Now,
    /// It was there before.
    Before,
    /// There is no such request: opened and forgotten long ago, or never. The books know which.
    Unknown,
}

/// Requests as one scheduler sees them. A store keeps one with the requests that run here, and shows it what else a batch
/// speaks of.
#[derive(Clone, Debug, PartialEq)]
pub struct Journal {
    me: PeerId,
    /// The number that the next segment of the log will have.
    next_segment: i64,
    rows: HashMap<RequestId, Row>,
}

impl Entry {
    /// The request that it is about.
    pub fn request(&self) -> RequestId {
        match self {
            Self::Open { request, .. } | Self::Append { request, .. } | Self::End { request, .. } => *request,
        }
    }

    /// About how many bytes it adds to a batch.
    pub fn weight(&self) -> usize {
        match self {
            Self::Open { spec, .. } => spec.len(),
            Self::Append { tokens, .. } => tokens.len() * 4,
            Self::End { .. } => ENDING_BYTES_MAX,
        }
    }
}

impl Journal {
    /// That of `me`, with nothing in it.
    pub fn new(me: PeerId, next_segment: i64) -> Self {
        Self { me, next_segment, rows: HashMap::new() }
    }

    /// Whose it is.
    pub fn me(&self) -> PeerId {
        self.me
    }

    /// What is known of a request.
    pub fn row(&self, request: &RequestId) -> Option<&Row> {
        self.rows.get(request)
    }

    /// All that is known, in no order.
    pub fn rows(&self) -> impl Iterator<Item = (&RequestId, &Row)> {
        self.rows.iter()
    }

    /// The number that the next segment of the log will have.
    pub fn next_segment(&self) -> i64 {
        self.next_segment
    }

    /// A segment was written.
    pub fn segment_written(&mut self) {
        self.next_segment += 1;
    }

    /// States what is known of a request.
    pub fn set(&mut self, request: RequestId, row: Row) {
        self.rows.insert(request, row);
    }

    /// Gives out what is known of `requests`, for a transaction that is about them: nothing is accepted for them here before
    /// [`Self::take_back`].
    pub fn lend(&mut self, requests: impl Iterator<Item = RequestId>) -> Self {
        let mut lent = Self::new(self.me, self.next_segment);
        lent.rows.extend(requests.filter_map(|request| self.rows.remove_entry(&request)));
        lent
    }

    /// Takes back what [`Self::lend`] gave out, as it is now.
    pub fn take_back(&mut self, lent: Self) {
        self.rows.extend(lent.rows);
    }

    /// Keeps what `me` may still write to, and forgets the rest.
    pub fn keep_running(&mut self) {
        let me = self.me;
        self.rows.retain(|_, row| row.owner == me && row.ending.is_none());
    }

    /// Keeps what `keep` says.
    pub fn retain(&mut self, keep: impl Fn(&RequestId, &Row) -> bool) {
        self.rows.retain(|request, row| keep(request, row));
    }

    /// Where the log of `me` must be kept from; [`Self::next_segment`] if nothing of it is needed.
    pub fn first_needed(&self) -> i64 {
        let running = self.rows.values().filter(|row| row.owner == self.me && row.ending.is_none());
        running.map(|row| row.first_segment).min().unwrap_or(self.next_segment)
    }

    /// Whether `entry` can be written down, and what it would do. Changes nothing.
    ///
    /// # Errors
    /// The reason, if it cannot.
    pub fn check(&self, entry: &Entry) -> Result<Noted, Refused> {
        let request = entry.request();
        let row = self.rows.get(&request);
        match entry {
            Entry::Open { client, spec, .. } => self.check_open(request, *client, spec, row),
            Entry::Append { epoch, first, tokens, .. } => {
                let row = row.ok_or(Refused::Unknown(request))?;
                check_owner(self.me, request, row, *epoch)?;
                check_append(request, row, *first, tokens)
            }
            Entry::End { epoch, ending, .. } => {
                let Some(row) = row else { return Ok(Noted::Unknown) };
                check_owner(self.me, request, row, *epoch)?;
                if let Ending::Failed(refusal) = ending
                    && refusal.message.len() + refusal.param.as_ref().map_or(0, String::len) > ENDING_BYTES_MAX - 16
                {
                    let why =
                        format!("{request} ends with a message of more than {ENDING_BYTES_MAX} bytes: shorten it");
                    return Err(Refused::Invalid(why));
                }
                // What the first one said stays; the second may only know less.
                Ok(if row.ending.is_some() { Noted::Before } else { Noted::Now })
            }
        }
    }

    /// Every running request of `me`, as one segment: what was written before the next one is needed no more.
    pub fn checkpoint(&mut self) -> Segment {
        let (me, at) = (self.me, self.next_segment);
        let mut segment = Segment::default();
        for (request, row) in self.rows.iter_mut().filter(|(_, row)| row.owner == me && row.ending.is_none()) {
            row.first_segment = at;
            segment.add_output(*request, &row.tokens, &row.makers, 0..row.tokens.len());
        }
        segment
    }

    /// Accepts tokens: [`Self::check`] and [`Self::note`] of an [`Entry::Append`] in one.
    ///
    /// # Errors
    /// The reason, if that cannot be.
    pub fn append(&mut self, append: Append<'_>) -> Result<Noted, Refused> {
        let Append { request, epoch, first, tokens, by } = append;
        let row = self.rows.get_mut(&request).ok_or(Refused::Unknown(request))?;
        check_owner(self.me, request, row, epoch)?;
        let noted = check_append(request, row, first, tokens)?;
        if noted == Noted::Now {
            row.extend(first, tokens, by);
        }
        Ok(noted)
    }

    /// Writes down what [`Self::check`] has let pass.
    pub fn note(&mut self, entry: &Entry) {
        let request = entry.request();
        let (owner, first_segment) = (self.me, self.next_segment);
        match (entry, self.rows.get_mut(&request)) {
            (Entry::Open { client, spec, .. }, None) => {
                let row = Row {
                    client: *client,
                    owner,
                    epoch: Epoch::FIRST,
                    resumable: !spec.is_empty(),
                    first_segment,
                    tokens: Vec::new(),
                    makers: Vec::new(),
                    ending: None,
                };
                self.rows.insert(request, row);
            }
            (Entry::Append { first, tokens, by, .. }, Some(row)) if *first as usize == row.tokens.len() => {
                row.extend(*first, tokens, *by);
            }
            (Entry::End { ending, .. }, Some(row)) if row.ending.is_none() => row.ending = Some(ending.clone()),
            _ => {}
        }
    }

    /// `me` takes `request` over from whoever has it, also from itself. Tokens that came from another's log are to be
    /// written to segment [`Self::next_segment`].
    ///
    /// # Errors
    /// If it is unknown or has ended.
    pub fn take_over(&mut self, request: RequestId) -> Result<&Row, Refused> {
        let (me, first_segment) = (self.me, self.next_segment);
        let row = self.rows.get_mut(&request).ok_or(Refused::Unknown(request))?;
        if row.ending.is_some() {
            return Err(Refused::Ended(request));
        }
        if row.owner != me {
            row.owner = me;
            row.first_segment = first_segment;
        }
        row.epoch = row.epoch.next();
        Ok(row)
    }

    fn check_open(
        &self,
        request: RequestId,
        client: ClientId,
        spec: &[u8],
        row: Option<&Row>,
    ) -> Result<Noted, Refused> {
        if spec.len() > SPEC_BYTES_MAX {
            let bytes = spec.len();
            return Err(Refused::Invalid(format!(
                "{request} needs {bytes} bytes to go on: the most is {SPEC_BYTES_MAX}"
            )));
        }
        let Some(row) = row else { return Ok(Noted::Now) };
        check_owner(self.me, request, row, Epoch::FIRST)?;
        match row.client == client {
            true => Ok(Noted::Before),
            false => Err(Refused::Invalid(format!("{request} is another account's: a new request needs a new id"))),
        }
    }
}

impl Row {
    fn extend(&mut self, first: u32, tokens: &[u32], by: Option<Maker>) {
        self.tokens.extend_from_slice(tokens);
        self.makers.extend(by.map(|by| Made { first, by }));
    }
}

fn check_owner(me: PeerId, request: RequestId, row: &Row, epoch: Epoch) -> Result<(), Refused> {
    if row.owner == me && row.epoch == epoch { Ok(()) } else { Err(Refused::Fenced(request)) }
}

fn check_append(request: RequestId, row: &Row, first: u32, tokens: &[u32]) -> Result<Noted, Refused> {
    if row.ending.is_some() {
        return Err(Refused::Ended(request));
    }
    let end = first as usize + tokens.len();
    if tokens.is_empty() || end > OUTPUT_TOKENS_MAX {
        let why =
            format!("{request} cannot go on with {} tokens at {first}: 1 to {OUTPUT_TOKENS_MAX} in all", tokens.len());
        return Err(Refused::Invalid(why));
    }
    let accepted = row.tokens.len();
    match row.tokens.get(first as usize..end) {
        Some(same) if same == tokens => Ok(Noted::Before),
        None if first as usize == accepted => Ok(Noted::Now),
        _ => Err(Refused::OutOfOrder { request, accepted: accepted as u32, first }),
    }
}
