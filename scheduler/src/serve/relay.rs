//! What miners say, on its way to the developer: what is known already is left out, the rest is judged and relayed.

use cuckoo_models::tools::Event;
use cuckoo_wire::message::{End, FinishReason, Refusal, Reply, TokenLogprobs};

use super::{Ending, Job, Outcome, handover, replies, send_all};
use crate::gateway::miner::News;
use crate::journal::Maker;
use crate::ledger::Attempt;
use crate::{spell, tools};

/// Tokens that were taken in.
struct Taken {
    /// How many of them.
    tokens: usize,
    /// Why the last one is the last of all, if it is.
    reason: Option<FinishReason>,
    /// False if the one after them may not be.
    allowed: bool,
}

impl Taken {
    /// What becomes of the placement, whose miner has said how it ends, if it does. What a miner says beyond the end is nobody's.
    fn outcome(self, end: Option<End>) -> Option<Outcome> {
        match (self.reason, end) {
            _ if !self.allowed => {
                Some(Outcome::Lost("the miner sent a token that the constraint does not allow".to_owned()))
            }
            (Some(reason), _) => Some(Outcome::Ended(Ending::Finished(reason))),
            (None, None) => None,
            (None, Some(End::Failed(why))) => Some(Outcome::Lost(why)),
            (None, Some(End::Embedded(_))) => Some(Outcome::Lost("the miner sent a vector for tokens".to_owned())),
            (None, Some(end)) => Some(Outcome::Lost(format!("the miner ended too early: {end:?}"))),
        }
    }
}

impl Job {
    /// Takes in what a line has to say and relays what is new of it. `None` while the placement goes on.
    ///
    /// A token mostly waits for nothing here, so what it takes is looked at where it lies: all that an `async` function is given
    /// is copied into it.
    pub(super) async fn accept(
        &mut self,
        (attempt, at): (usize, u32),
        news: &mut News,
        replies: &replies::Sender,
    ) -> Option<Outcome> {
        let first = self.accepted();
        let judged = self.judge_news((attempt, at), news);
        if let Ok(taken) = &judged
            && taken.tokens > 0
        {
            let accepted = match self.append_now(attempt, first) {
                Some(accepted) => accepted,
                None => Box::pin(self.append(attempt, first)).await,
            };
            if let Err(refusal) = accepted {
                self.tokens.truncate((self.prompt_tokens + first) as usize);
                return Some(Outcome::Ended(Ending::Failed(refusal)));
            }
            self.appended(attempt, (first, taken.tokens));
        }
        // What was good before the rest was not is said too: nobody says it again.
        if let Err(ending) = send_all(replies, self.said.drain(..)).await {
            return Some(Outcome::Ended(ending));
        }
        judged.map_or_else(Some, |taken| taken.outcome(news.end.take()))
    }

    /// Takes in what is new of a line's news, and adds what there is to say of it to what is said next.
    fn judge_news(&mut self, (attempt, at): (usize, u32), news: &mut News) -> Result<Taken, Outcome> {
        self.leave_out_known(news, at)?;
        if !news.prompt_logprobs.is_empty() {
            let scored = self.speller.prompt(&self.tokens, &news.prompt_logprobs).map_err(|_| unasked())?;
            self.numerics = self.numerics.or(self.computed[attempt]);
            self.said.extend(spell::pieces(scored));
        }
        let logprobs = self.speller.output(&news.tokens, &news.logprobs).map_err(|_| unasked())?;
        // Looked at before any is taken in: what is accepted is what the developer gets.
        if news.tokens.iter().any(|token| *token as usize >= self.model.tokenizer().vocab_len()) {
            return Err(Outcome::Lost("the miner sent tokens that cannot be".to_owned()));
        }
        let known = self.known;
        // With log-probabilities a token is a reply of its own, so that any one fits a frame; with tools, so that what it
        // shows is the same whenever it is shown again.
        let one_by_one = !logprobs.is_empty() || self.caller.is_some() || self.accepted() < known;
        let portion = if one_by_one { 1 } else { news.tokens.len().max(1) };
        Ok(self.take_portions(&news.tokens, logprobs, (portion, known)))
    }

    /// Has the journal accept an attempt's tokens from number `first` on, if that need not wait. Nobody pays for what is not
    /// accepted, and `Replies` sends nobody what is not written down.
    fn append_now(&self, attempt: usize, first: u32) -> Option<Result<(), Refusal>> {
        self.hold.append_now(first, self.output_from(first), self.new_maker(attempt))
    }

    /// [`Self::append_now`], where it must wait.
    async fn append(&self, attempt: usize, first: u32) -> Result<(), Refusal> {
        self.hold.append(first, self.output_from(first), self.new_maker(attempt)).await
    }

    fn output_from(&self, first: u32) -> &[u32] {
        &self.tokens[(self.prompt_tokens + first) as usize..]
    }

    /// Who makes an attempt's tokens, unless the journal knows.
    fn new_maker(&self, attempt: usize) -> Option<Maker> {
        let Attempt { miner, ask, .. } = self.attempts[attempt];
        let by = Maker { miner, ask, numerics: self.computed[attempt] };
        (self.maker != Some(by)).then_some(by)
    }

    /// Leaves what the developer has out of news that begin with token `at`.
    fn leave_out_known(&self, news: &mut News, at: u32) -> Result<(), Outcome> {
        let output = &self.tokens[self.prompt_tokens as usize..];
        let Some(known) = handover::known(output, at, &news.tokens) else {
            return Err(Outcome::Lost("the miner sent other tokens than the one before it".to_owned()));
        };
        news.tokens.drain(..known);
        news.logprobs.drain(..known.min(news.logprobs.len()));
        Ok(())
    }

    /// Takes tokens in, `portion` of them a reply, and adds what is to be said of them to who has those before number `known`.
    fn take_portions(&mut self, tokens: &[u32], logprobs: Vec<TokenLogprobs>, (portion, known): (usize, u32)) -> Taken {
        let (mut all, mut logprobs) = (Taken { tokens: 0, reason: None, allowed: true }, logprobs.into_iter());
        let mut events = std::mem::take(&mut self.shown);
        for tokens in tokens.chunks(portion) {
            let (first, before) = (self.accepted(), self.said.len());
            let Taken { tokens: taken, reason, allowed } = self.take(tokens, &mut events);
            all = Taken { tokens: all.tokens + taken, reason, allowed };
            if taken > 0 {
                let taken = (tokens[..taken].to_vec(), logprobs.by_ref().take(taken).collect());
                tools::replies(&mut self.caller, events.drain(..), first, taken, &mut self.said);
            }
            if first < known {
                self.said.truncate(before);
            }
            if reason.is_some() || !allowed {
                break;
            }
        }
        self.shown = events;
        all
    }

    /// Takes tokens in, up to the last one that counts or the first one that may not be.
    fn take(&mut self, tokens: &[u32], events: &mut Vec<Event>) -> Taken {
        for (taken, &token) in tokens.iter().enumerate() {
            if !self.judge.as_mut().is_none_or(|judge| judge.accept(token)) {
                return Taken { tokens: taken, reason: None, allowed: false };
            }
            self.tokens.push(token);
            if let Some(why) = self.judge(token, events) {
                // Before what was held back is dropped: a call that has not ended was cut.
                let (_, is_within_call) = self.output.calls();
                events.extend(self.output.finish());
                let reason = match why {
                    FinishReason::Stop if is_within_call => FinishReason::Length,
                    FinishReason::Stop if self.output.calls().0 => FinishReason::ToolCalls,
                    why => why,
                };
                return Taken { tokens: taken + 1, reason: Some(reason), allowed: true };
            }
        }
        Taken { tokens: tokens.len(), reason: None, allowed: true }
    }

    /// The journal has so many tokens of an attempt's, from number `first` on.
    fn appended(&mut self, attempt: usize, (first, tokens): (u32, usize)) {
        if let Some(by) = self.new_maker(attempt) {
            self.maker = Some(by);
            self.numerics = self.numerics.or(by.numerics);
        }
        self.attempts[attempt].tokens += tokens as u32;
        let metrics = self.hold.market().metrics();
        if first == 0 {
            metrics.first_token(self.began.elapsed());
        }
        metrics.tokens(tokens);
    }

    /// Takes in what the journal has of an output, as it was when it came: the replies to whoever has `after` tokens of it,
    /// and why it has finished, if it has. `None` if it cannot be this request's.
    pub(super) fn replay(&mut self, output: &[u32], after: u32) -> Option<(Vec<Reply>, Option<FinishReason>)> {
        let Taken { tokens, reason, allowed } = self.take_portions(output, Vec::new(), (1, after));
        let replies = std::mem::take(&mut self.said);
        (allowed && tokens == output.len()).then_some((replies, reason))
    }

    /// What one more token means.
    fn judge(&mut self, token: u32, events: &mut Vec<Event>) -> Option<FinishReason> {
        if self.stop_tokens.binary_search(&token).is_ok() {
            if self.include_stop {
                self.output.push(token, events);
            }
            return Some(FinishReason::Stop);
        }
        let stopped = match self.accepted() <= self.sampling.min_tokens {
            true => self.output.push_unscanned(token, events),
            false => self.output.push(token, events),
        };
        match () {
            () if stopped => Some(FinishReason::Stop),
            () if self.accepted() >= self.max_new => Some(FinishReason::Length),
            () => None,
        }
    }
}

fn unasked() -> Outcome {
    Outcome::Lost("the miner sent log-probabilities that were not asked for, or too few".to_owned())
}
