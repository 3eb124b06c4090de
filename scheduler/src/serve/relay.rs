//! What miners say, on its way to the developer: what is known already is left out, the rest is judged and relayed.

use cuckoo_models::tools::Event;
use cuckoo_wire::message::{End, FinishReason, Reply, TokenLogprobs};
use tokio::sync::mpsc;

use super::{Ending, Job, Outcome, handover, send_all};
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

impl Job {
    /// Takes in what a line has to say and relays what is new of it. `None` while the placement goes on.
    pub(super) async fn accept(
        &mut self,
        (attempt, at): (usize, u32),
        mut news: News,
        replies: &mpsc::Sender<Reply>,
    ) -> Option<Outcome> {
        if let Err(outcome) = self.leave_out_known(&mut news, at) {
            return Some(outcome);
        }
        if !news.prompt_logprobs.is_empty() {
            let Ok(scored) = self.speller.prompt(&self.tokens, &news.prompt_logprobs) else { return Some(unasked()) };
            self.numerics = self.numerics.or(self.computed[attempt]);
            if let Err(ending) = send_all(replies, spell::pieces(scored)).await {
                return Some(Outcome::Ended(ending));
            }
        }
        let Ok(logprobs) = self.speller.output(&news.tokens, &news.logprobs) else { return Some(unasked()) };
        // Looked at before any is taken in: what is accepted is what the developer gets.
        if news.tokens.iter().any(|token| *token as usize >= self.model.tokenizer().vocab_len()) {
            return Some(Outcome::Lost("the miner sent tokens that cannot be".to_owned()));
        }
        let (first, known, mut said) = (self.accepted(), self.known, Vec::new());
        // With log-probabilities a token is a reply of its own, so that any one fits a frame; with tools, so that what it
        // shows is the same whenever it is shown again.
        let one_by_one = !logprobs.is_empty() || self.caller.is_some() || first < known;
        let portion = if one_by_one { 1 } else { news.tokens.len().max(1) };
        let Taken { tokens, reason, allowed } = self.take_portions(&news.tokens, logprobs, (portion, known), &mut said);
        if tokens > 0 {
            // Nobody pays for what is not accepted, and `Replies` sends nobody what is not written down.
            let Attempt { miner, ask, .. } = self.attempts[attempt];
            let by = Maker { miner, ask, numerics: self.computed[attempt] };
            let taken = &self.tokens[(self.prompt_tokens + first) as usize..];
            if let Err(refusal) = self.hold.append(first, taken, (self.maker != Some(by)).then_some(by)).await {
                self.tokens.truncate((self.prompt_tokens + first) as usize);
                return Some(Outcome::Ended(Ending::Failed(refusal)));
            }
            self.written(attempt, by, (first, tokens));
            if let Err(ending) = send_all(replies, said).await {
                return Some(Outcome::Ended(ending));
            }
        }
        match (reason, news.end) {
            _ if !allowed => {
                Some(Outcome::Lost("the miner sent a token that the constraint does not allow".to_owned()))
            }
            // What a miner says beyond the end is nobody's.
            (Some(reason), _) => Some(Outcome::Ended(Ending::Finished(reason))),
            (None, None) => None,
            (None, Some(End::Failed(why))) => Some(Outcome::Lost(why)),
            (None, Some(End::Embedded(_))) => Some(Outcome::Lost("the miner sent a vector for tokens".to_owned())),
            (None, Some(end)) => Some(Outcome::Lost(format!("the miner ended too early: {end:?}"))),
        }
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

    /// Takes tokens in, `portion` of them a reply, and adds what is said of them to who has those before number `known`.
    fn take_portions(
        &mut self,
        tokens: &[u32],
        logprobs: Vec<TokenLogprobs>,
        (portion, known): (usize, u32),
        said: &mut Vec<Reply>,
    ) -> Taken {
        let (mut all, mut logprobs) = (Taken { tokens: 0, reason: None, allowed: true }, logprobs.into_iter());
        for tokens in tokens.chunks(portion) {
            let (first, before, mut events) = (self.accepted(), said.len(), Vec::new());
            let Taken { tokens: taken, reason, allowed } = self.take(tokens, &mut events);
            all = Taken { tokens: all.tokens + taken, reason, allowed };
            if taken > 0 {
                let taken = (tokens[..taken].to_vec(), logprobs.by_ref().take(taken).collect());
                tools::replies(&mut self.caller, events, first, taken, said);
            }
            if first < known {
                said.truncate(before);
            }
            if reason.is_some() || !allowed {
                break;
            }
        }
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

    /// So many tokens of an attempt's are in the journal, from number `first` on.
    fn written(&mut self, attempt: usize, by: Maker, (first, tokens): (u32, usize)) {
        self.maker = Some(by);
        self.numerics = self.numerics.or(by.numerics);
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
        let mut replies = Vec::new();
        let Taken { tokens, reason, allowed } = self.take_portions(output, Vec::new(), (1, after), &mut replies);
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
