//! A developer who comes back, to the scheduler that it spoke with or to another one: what the journal has is shown again
//! from where it stopped listening, and the rest is made. Nothing is paid twice.
//!
//! ```text
//! whose ▶ what is kept ─▶ ended: its output, how it ended
//!                      └▶ open: claim (whoever ran it is fenced off) ▶ replay ▶ as any request
//! ```

use std::time::Instant;

use cuckoo_wire::message::{ApiKey, FinishReason, Refusal, RefusalCode, Reply, RequestId, Usage};

use super::spec::{self, Spec};
use super::{Job, Listener, Plan, delivered, held};
use crate::hold::{self, Hold};
use crate::journal::Ending;
use crate::ledger::{ClientId, End, HoldState, Kept, Reopened};
use crate::market::Market;
use crate::spell::Speller;
use crate::words;

/// Who comes back, for what.
pub(crate) struct Resume {
    pub(crate) api_key: ApiKey,
    pub(crate) request: RequestId,
    /// Tokens of output that it has.
    pub(crate) after: u32,
}

/// What there is to come back to.
enum Found {
    /// It goes on: what is said first, and why it has finished if it has.
    Open(Box<Job>, Vec<Reply>, Option<FinishReason>),
    /// It has ended.
    Ended(Vec<Reply>, Reply),
}

impl Market {
    /// Goes on with a request for whoever lost its replies, as [`Market::serve`] would have: `Accepted`, then what comes
    /// after the tokens that are there already.
    pub(crate) async fn resume(&self, resume: Resume, listener: Listener) {
        let last = match Box::pin(self.found(resume)).await {
            Ok(Found::Open(job, opening, has_finished)) => job.run(opening, has_finished, &listener).await,
            Ok(Found::Ended(replies, last)) => {
                // Who goes again loses nothing.
                let _ = super::send_all(&listener.replies, replies).await;
                let _ = listener.replies.send(Box::new(last)).await;
                return;
            }
            Err(refusal) => Some(Reply::Refused(refusal)),
        };
        self.conclude(last, &listener.replies).await;
    }

    async fn found(&self, resume: Resume) -> Result<Found, Refusal> {
        let Resume { api_key, request, after } = resume;
        let client = self.client_of(&api_key).await?;
        loop {
            let kept = self.ledger().request(request).await?.filter(|kept| kept.client == client);
            let kept = kept.ok_or_else(|| unknown(request))?;
            if kept.spec.is_empty() {
                let why = "this request cannot be had again: it asks for log-probabilities, for its prompt or for \
                           vectors, which are not kept; send it again";
                return Err(Refusal::invalid("request", why));
            }
            if let Some(ending) = &kept.ending {
                check_cursor(request, after, kept.tokens.len() as u32)?;
                let (replies, last) = self.ended(request, &kept, ending, after).await?;
                return Ok(Found::Ended(replies, last));
            }
            // Nobody is fenced off for the sake of somebody who could not go on.
            let job = self.rebuilt(client, &kept.spec, Hold::ended(self, request, kept.epoch)).await?;
            check_cursor(request, after, job.max_new)?;
            if let Some(reopened) = self.ledger().claim(request).await? {
                return self.reopened(job, reopened, after);
            }
            // It has ended meanwhile.
        }
    }

    /// Goes on with a request that is ours now.
    fn reopened(&self, mut job: Job, reopened: Reopened, after: u32) -> Result<Found, Refusal> {
        let Reopened { request, tokens, makers, epoch, .. } = &reopened;
        let end = End { epoch: *epoch, ending: Ending::Gone };
        let (mut replies, has_finished) = match job.replayed(tokens, after) {
            Ok(replayed) => replayed,
            Err(refusal) => {
                // Those who worked on it are paid whatever it was.
                let settlement = delivered(&reopened).and_then(|delivered| delivered.settlement(*request));
                hold::end_later(self.ledger(), *request, settlement, end);
                return Err(refusal);
            }
        };
        job.hold = Hold::taken_over(self, *request, *epoch);
        job.attempts = spec::attempts(makers, tokens.len() as u32);
        job.made_before = job.attempts.len();
        job.computed = makers.iter().map(|made| made.by.numerics).collect();
        job.numerics = job.computed.iter().rev().find_map(|numerics| *numerics);
        job.known = after;
        job.maker = makers.last().map(|made| made.by);
        job.moves = (makers.len() as u32).saturating_sub(1);
        replies.insert(0, Reply::Accepted { request: *request, prompt_tokens: job.prompt_tokens });
        Ok(Found::Open(Box::new(job), replies, has_finished))
    }

    /// Shows again what a request that has ended came to.
    async fn ended(
        &self,
        request: RequestId,
        kept: &Kept,
        ending: &Ending,
        after: u32,
    ) -> Result<(Vec<Reply>, Reply), Refusal> {
        let mut job = self.rebuilt(kept.client, &kept.spec, Hold::ended(self, request, kept.epoch)).await?;
        let (mut replies, _) = job.replayed(&kept.tokens, after)?;
        replies.insert(0, Reply::Accepted { request, prompt_tokens: job.prompt_tokens });
        let last = match ending {
            Ending::Finished { reason, migrations } => {
                let usage = match kept.hold {
                    HoldState::Settled { split, prompt_tokens, completion_tokens } => {
                        hold::usage(split, prompt_tokens, completion_tokens, *migrations)
                    }
                    HoldState::Open | HoldState::Released => Usage::default(),
                };
                Reply::Finished { reason: *reason, usage }
            }
            Ending::Gone => Reply::Refused(Refusal::new(
                RefusalCode::Stalled,
                "nobody came back for this request in time, so it ended here: send a new one",
            )),
            Ending::Failed(refusal) => Reply::Refused(refusal.clone()),
        };
        Ok((replies, last))
    }

    /// A request as it was when it began.
    async fn rebuilt(&self, client: ClientId, spec: &[u8], hold: Hold) -> Result<Job, Refusal> {
        let unreadable = "this request was begun by another version of the scheduler, which can go on with it: ask there, \
                          or send it again";
        let spec = Spec::from_bytes(spec).ok_or_else(|| Refusal::new(RefusalCode::Unavailable, unreadable))?;
        let model = self.catalog().find(&spec.request.model).filter(|model| model.computes() == spec.computes());
        let gone = format!("the model '{}' of this request is not here any more", spec.request.model.escape_debug());
        let model = model.ok_or_else(|| Refusal::new(RefusalCode::ModelNotFound, gone))?;
        let held = held(self, &model, &spec.request).await?;
        let words = words::resolve(self, &model, &spec.request).await?;
        let tokens = spec.prompt().to_vec();
        let speller = Speller::new(model.clone(), &spec.request, &tokens)?;
        let Spec { request, max_new, limit, seed, .. } = spec;
        let plan = Plan { request, client, model, tokens, max_new, limit, seed, began: Instant::now() };
        Ok(Job::new(plan, held, words, speller, (hold, true)))
    }
}

impl Job {
    /// [`Job::replay`], of what must be this request's.
    fn replayed(&mut self, output: &[u32], after: u32) -> Result<(Vec<Reply>, Option<FinishReason>), Refusal> {
        let damaged =
            || Refusal::new(RefusalCode::Internal, "what is kept of this request is not its output: report this");
        self.replay(output, after).ok_or_else(damaged)
    }
}

/// Refuses a developer who has more tokens than there can be.
fn check_cursor(request: RequestId, after: u32, most: u32) -> Result<(), Refusal> {
    match after > most {
        true => {
            let why = format!("{request} has at most {most} tokens of output, and not {after}: say how many have come");
            Err(Refusal::invalid("after", why))
        }
        false => Ok(()),
    }
}

fn unknown(request: RequestId) -> Refusal {
    let why =
        format!("{request} is not known here: it is not of this account, or ended more than a day ago: send it anew");
    Refusal::invalid("request", why)
}
