//! What miners say, on its way to the developer: what is known already is left out, the rest is judged and relayed.

use cuckoo_models::tools::Event;
use cuckoo_wire::message::{End, FinishReason, Refusal, Reply, TokenLogprobs};
use tokio::sync::mpsc;

use super::{Ending, Job, Outcome, handover, send_all};
use crate::gateway::miner::News;
use crate::journal::Maker;
use crate::ledger::Attempt;
use crate::{spell, tools};

/// Tokens that were taken in, and what they show.
struct Taken {
    tokens: Vec<u32>,
    events: Vec<Event>,
    /// Why the last one is the last of all, if it is.
    reason: Option<FinishReason>,
    /// False if the one after them may not be.
    allowed: bool,
}

impl Job {
    /// Takes in what a line has to say and relays what is new of it. `None` while the placement goes on.
    pub(super) async fn accept(
        &mut self,
        (attempt, at): (usize, u32),
        mut news: News,
        replies: &mpsc::Sender<Reply>,
    ) -> Option<Outcome> {
        let output = &self.tokens[self.prompt_tokens as usize..];
        let Some(known) = handover::known(output, at, &news.tokens) else {
            return Some(Outcome::Lost("the miner sent other tokens than the one before it".to_owned()));
        };
        news.tokens.drain(..known);
        news.logprobs.drain(..known.min(news.logprobs.len()));
        let unasked =
            |_| Outcome::Lost("the miner sent log-probabilities that were not asked for, or too few".to_owned());
        let scored = match self.speller.prompt(&self.tokens, &news.prompt_logprobs) {
            Ok(scored) => scored,
            Err(error) => return Some(unasked(error)),
        };
        if !news.prompt_logprobs.is_empty() {
            self.numerics = self.numerics.or(self.computed[attempt]);
        }
        if let Err(ending) = send_all(replies, spell::pieces(scored)).await {
            return Some(Outcome::Ended(ending));
        }
        let mut logprobs = match self.speller.output(&news.tokens, &news.logprobs) {
            Ok(logprobs) => logprobs.into_iter(),
            Err(error) => return Some(unasked(error)),
        };
        let mut reason = None;
        // With log-probabilities a token is a reply of its own, so that any one fits a frame; with tools, so that what it
        // shows is the same whenever it is shown again.
        let one_by_one = logprobs.len() > 0 || self.caller.is_some() || self.accepted() < self.known;
        let portion = if one_by_one { 1 } else { news.tokens.len().max(1) };
        for tokens in news.tokens.chunks(portion) {
            let found = logprobs.by_ref().take(tokens.len()).collect();
            reason = match self.relay(attempt, (tokens, found), replies).await {
                Ok(reason) => reason,
                Err(outcome) => return Some(outcome),
            };
            // What a miner says beyond the end is nobody's.
            if reason.is_some() {
                break;
            }
        }
        match (reason, news.end) {
            (Some(reason), _) => Some(Outcome::Ended(Ending::Finished(reason))),
            (None, None) => None,
            (None, Some(End::Failed(why))) => Some(Outcome::Lost(why)),
            (None, Some(End::Embedded(_))) => Some(Outcome::Lost("the miner sent a vector for tokens".to_owned())),
            (None, Some(end)) => Some(Outcome::Lost(format!("the miner ended too early: {end:?}"))),
        }
    }

    /// Relays more tokens, up to the last one that counts. Why it is the last, if it is.
    async fn relay(
        &mut self,
        attempt: usize,
        (tokens, logprobs): (&[u32], Vec<TokenLogprobs>),
        replies: &mpsc::Sender<Reply>,
    ) -> Result<Option<FinishReason>, Outcome> {
        let first = self.accepted();
        // Looked at before any is taken in: what is accepted is what the developer gets.
        if tokens.iter().any(|token| *token as usize >= self.model.tokenizer().vocab_len()) {
            return Err(Outcome::Lost("the miner sent tokens that cannot be".to_owned()));
        }
        let Taken { tokens: taken, events, reason, allowed } = self.take(tokens);
        if !allowed && taken.is_empty() {
            return Err(not_allowed());
        }
        self.log(attempt, first, &taken).await.map_err(|refusal| Outcome::Ended(Ending::Failed(refusal)))?;
        if first == 0 {
            self.hold.market().metrics().first_token(self.began.elapsed());
        }
        self.hold.market().metrics().tokens(taken.len());
        let is_new = first >= self.known;
        let deltas = tools::replies(&mut self.caller, events, first, taken, logprobs);
        if is_new {
            send_all(replies, deltas).await.map_err(Outcome::Ended)?;
        }
        match allowed {
            true => Ok(reason),
            false => Err(not_allowed()),
        }
    }

    /// Takes tokens in, up to the last one that counts or the first one that may not be.
    fn take(&mut self, tokens: &[u32]) -> Taken {
        let mut all =
            Taken { tokens: Vec::with_capacity(tokens.len()), events: Vec::new(), reason: None, allowed: true };
        for &token in tokens {
            all.allowed = self.judge.as_mut().is_none_or(|judge| judge.accept(token));
            if !all.allowed {
                break;
            }
            self.tokens.push(token);
            all.tokens.push(token);
            let reason = self.judge(token, &mut all.events);
            if let Some(why) = reason {
                // Before what was held back is dropped: a call that has not ended was cut.
                let (_, is_within_call) = self.output.calls();
                all.events.extend(self.output.finish());
                all.reason = Some(match why {
                    FinishReason::Stop if is_within_call => FinishReason::Length,
                    FinishReason::Stop if self.output.calls().0 => FinishReason::ToolCalls,
                    why => why,
                });
                break;
            }
        }
        all
    }

    /// Writes down what was taken in: nobody is sent, or pays for, what is not.
    async fn log(&mut self, attempt: usize, first: u32, taken: &[u32]) -> Result<(), Refusal> {
        let Attempt { miner, ask, .. } = self.attempts[attempt];
        let by = Maker { miner, ask, numerics: self.computed[attempt] };
        let news = (self.maker != Some(by)).then_some(by);
        if let Err(refusal) = self.hold.append(first, taken, news).await {
            self.tokens.truncate((self.prompt_tokens + first) as usize);
            return Err(refusal);
        }
        self.maker = Some(by);
        self.numerics = self.numerics.or(by.numerics);
        self.attempts[attempt].tokens += taken.len() as u32;
        Ok(())
    }

    /// Takes in what the journal has of an output, as it was when it came: the replies to whoever has `after` tokens of it,
    /// and why it has finished, if it has. `None` if it cannot be this request's.
    pub(super) fn replay(&mut self, output: &[u32], after: u32) -> Option<(Vec<Reply>, Option<FinishReason>)> {
        let (mut replies, mut finished) = (Vec::new(), None);
        for token in output {
            let first = self.accepted();
            let Taken { tokens, events, reason, allowed } = self.take(std::slice::from_ref(token));
            if !allowed || finished.is_some() {
                return None;
            }
            let deltas = tools::replies(&mut self.caller, events, first, tokens, Vec::new());
            if first >= after {
                replies.extend(deltas);
            }
            finished = reason;
        }
        Some((replies, finished))
    }

    /// What one more token means.
    fn judge(&mut self, token: u32, events: &mut Vec<Event>) -> Option<FinishReason> {
        if self.stop_tokens.binary_search(&token).is_ok() {
            if self.include_stop {
                events.extend(self.output.push(token).events);
            }
            return Some(FinishReason::Stop);
        }
        let shown = match self.accepted() <= self.sampling.min_tokens {
            true => self.output.push_unscanned(token),
            false => self.output.push(token),
        };
        events.extend(shown.events);
        match () {
            () if shown.stopped => Some(FinishReason::Stop),
            () if self.accepted() >= self.max_new => Some(FinishReason::Length),
            () => None,
        }
    }
}

fn not_allowed() -> Outcome {
    Outcome::Lost("the miner sent a token that the constraint does not allow".to_owned())
}
