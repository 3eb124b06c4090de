//! What a miner's connection tells whoever runs one sequence: its news, and what may be expected of its miner. One place, in
//! which what was not heard yet is one item: a queue would write each token where no other was for long, which costs more than
//! to read it.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use cuckoo_wire::limits::{CREDIT_TOKENS, PROMPT_LOGPROBS_TOKENS_MAX, STEP_SCORES_MAX};
use cuckoo_wire::message::{End, Logprobs};
use parking_lot::Mutex;

/// Items of one sequence that may wait: every one but the last has a token, of which credit allows so many, or as many
/// scores of a prompt's tokens as fit, or the last of these.
const ITEMS_MAX: usize = CREDIT_TOKENS as usize + PROMPT_LOGPROBS_TOKENS_MAX.div_ceil(STEP_SCORES_MAX) + 1;

/// News of one sequence, from its miner.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub(crate) tokens: Vec<u32>,
    pub(crate) end: Option<End>,
    /// One for each token, or none.
    pub(crate) logprobs: Vec<Logprobs>,
    /// Of the prompt's next tokens.
    pub(crate) prompt_logprobs: Vec<Logprobs>,
}

impl News {
    fn extend(&mut self, more: Self) {
        self.tokens.extend(more.tokens);
        self.end = more.end;
        self.logprobs.extend(more.logprobs);
        self.prompt_logprobs.extend(more.prompt_logprobs);
    }
}

/// What a placement may expect of its miner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// It should have said something by now.
    pub(crate) is_suspect: bool,
    /// It leaves when its sequences have moved or ended.
    pub(crate) is_leaving: bool,
}

impl Standing {
    /// Whether somebody else should be looked for.
    pub(crate) fn wants_successor(self) -> bool {
        self.is_suspect || self.is_leaving
    }
}

/// What is heard of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// News.
    News,
    /// Something else may be expected of its miner.
    Standing,
    /// The miner is lost.
    Lost,
}

#[derive(Default)]
struct Shared {
    news: News,
    /// So many items are one in `news`.
    items: usize,
    standing: Standing,
    has_changed: bool,
    is_over: bool,
    /// Whose task waits, and whether it does.
    waker: Option<Waker>,
    waits: bool,
}

impl Shared {
    fn wake(&mut self) {
        if mem::take(&mut self.waits)
            && let Some(waker) = &self.waker
        {
            waker.wake_by_ref();
        }
    }
}

/// More items than a sequence can have.
#[derive(Debug)]
pub(super) struct Full;

/// Where it is told. When it is dropped, and all that it was told is heard, the miner is lost.
pub(super) struct Teller {
    shared: Arc<Mutex<Shared>>,
    /// What was told last: mostly it is told again, which nobody need hear.
    standing: Standing,
}

/// Where it is heard.
pub(super) struct Hearer(Arc<Mutex<Shared>>);

/// Both ends, of which the second has heard what is thought now.
pub(super) fn channel(standing: Standing) -> (Teller, Hearer) {
    let shared = Arc::new(Mutex::new(Shared { standing, ..Shared::default() }));
    (Teller { shared: shared.clone(), standing }, Hearer(shared))
}

impl Teller {
    /// Tells news.
    pub(super) fn tell(&self, news: News) -> Result<(), Full> {
        let mut shared = self.shared.lock();
        match shared.items {
            0 => shared.news = news,
            ITEMS_MAX.. => return Err(Full),
            _ => shared.news.extend(news),
        }
        shared.items += 1;
        shared.wake();
        Ok(())
    }

    /// What is thought of the miner, as it was told last.
    pub(super) fn standing(&self) -> Standing {
        self.standing
    }

    /// Tells what is to be thought of the miner, if it is something else.
    pub(super) fn tell_standing(&mut self, standing: Standing) {
        if mem::replace(&mut self.standing, standing) != standing {
            let mut shared = self.shared.lock();
            (shared.standing, shared.has_changed) = (standing, true);
            shared.wake();
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        let mut shared = self.shared.lock();
        shared.is_over = true;
        shared.wake();
    }
}

impl Hearer {
    /// What is thought of the miner, as it was told last, heard or not.
    pub(super) fn standing(&self) -> Standing {
        self.0.lock().standing
    }

    /// Waits until something is told. News are put into `news`.
    pub(super) fn poll(&mut self, news: &mut News, cx: &mut Context<'_>) -> Poll<Heard> {
        let mut shared = self.0.lock();
        match () {
            () if mem::take(&mut shared.items) > 0 => {
                *news = mem::take(&mut shared.news);
                Poll::Ready(Heard::News)
            }
            () if mem::take(&mut shared.has_changed) => Poll::Ready(Heard::Standing),
            () if shared.is_over => Poll::Ready(Heard::Lost),
            () => {
                if shared.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                    shared.waker = Some(cx.waker().clone());
                }
                shared.waits = true;
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::future::poll_fn;
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    impl Hearer {
        /// What is there to be heard, without waiting.
        pub(in super::super) fn now(&mut self) -> Option<(Heard, News)> {
            let mut news = News::default();
            poll_fn(|cx| self.poll(&mut news, cx)).now_or_never().map(|heard| (heard, news))
        }

        fn heard(&mut self) -> Option<Heard> {
            self.now().map(|(heard, _)| heard)
        }
    }

    const SILENT: Standing = Standing { is_suspect: true, is_leaving: false };
    const LEAVING: Standing = Standing { is_suspect: false, is_leaving: true };

    fn token(token: u32) -> News {
        News { tokens: vec![token], ..News::default() }
    }

    #[test]
    fn what_was_not_heard_yet_is_one_item_and_comes_before_all_else() {
        let (mut teller, mut hearer) = channel(Standing::default());
        assert_eq!(hearer.heard(), None);
        teller.tell(token(1)).unwrap();
        teller.tell_standing(SILENT);
        teller.tell(News { end: Some(End::Length), ..token(2) }).unwrap();
        drop(teller);
        let (heard, news) = hearer.now().unwrap();
        assert_eq!((heard, news.tokens, news.end), (Heard::News, vec![1, 2], Some(End::Length)));
        assert_eq!(
            [hearer.heard(), hearer.heard(), hearer.heard()],
            [Heard::Standing, Heard::Lost, Heard::Lost].map(Some)
        );
    }

    #[test]
    fn the_latest_standing_is_heard_once() {
        let (mut teller, mut hearer) = channel(SILENT);
        teller.tell_standing(SILENT);
        assert_eq!((hearer.heard(), hearer.standing()), (None, SILENT), "it is nothing new");
        teller.tell_standing(Standing::default());
        teller.tell_standing(LEAVING);
        assert_eq!((hearer.standing(), teller.standing()), (LEAVING, LEAVING));
        assert_eq!((hearer.heard(), hearer.heard()), (Some(Heard::Standing), None));
    }

    #[test]
    fn a_miner_can_make_nobody_keep_more_than_it_may_send() {
        let (teller, mut hearer) = channel(Standing::default());
        for item in 0..ITEMS_MAX as u32 {
            teller.tell(token(item)).unwrap();
        }
        assert!(teller.tell(token(0)).is_err());
        assert_eq!(hearer.now().unwrap().1.tokens.len(), ITEMS_MAX);
        teller.tell(token(0)).unwrap();
    }

    /// Has `tell` happen while a task waits: what that hears.
    async fn woken(mut hearer: Hearer, tell: impl FnOnce()) -> (Heard, Hearer) {
        let waits = tokio::spawn(async move {
            let mut news = News::default();
            (poll_fn(|cx| hearer.poll(&mut news, cx)).await, hearer)
        });
        tokio::task::yield_now().await;
        tell();
        tokio::time::timeout(Duration::from_secs(10), waits).await.expect("it is woken").unwrap()
    }

    #[tokio::test]
    async fn whatever_is_told_wakes_who_waits() {
        let (mut teller, hearer) = channel(Standing::default());
        let (heard, hearer) = woken(hearer, || teller.tell(token(1)).unwrap()).await;
        assert_eq!(heard, Heard::News);
        let (heard, hearer) = woken(hearer, || teller.tell_standing(SILENT)).await;
        assert_eq!(heard, Heard::Standing);
        assert_eq!(woken(hearer, || drop(teller)).await.0, Heard::Lost);
    }
}
