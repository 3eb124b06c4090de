//! Rules of other systems, as they publish them, with their own parameters: each sends a request to a miner the moment it
//! comes, where it waits in that miner's own queue. What they know of a miner is exact here and never late.
//!
//! Said of each is where its rule is written down. These are the rules and not the systems.

use std::collections::{HashMap, HashSet};

use super::chance::Chance;

/// Which rule places requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// This project's own board.
    Cuckoo,
    /// In turn.
    RoundRobin,
    /// Two at random, the one with fewer requests (Mitzenmacher 2001).
    TwoChoices,
    /// SGLang's router, `cache_aware`: the longest prefix where it matches more than 0.3, and the least loaded where that is
    /// not so or loads differ by more than 64 requests and half as much again.
    Sglang,
    /// Dynamo's KV router: prompt blocks to compute plus active blocks, temperature 0.
    Dynamo,
    /// llm-d's inference scheduler: prefix 3, queue 2, KV use 2, each from 0 to 1.
    LlmD,
    /// AIBrix's prefix-cache rule: the longest prefix among miners within a standard deviation of the mean load, the least
    /// loaded where loads differ by more than 8.
    Aibrix,
    /// AIBrix's vtc-basic: a tenant's tokens choose its miner, loads disturb that.
    AibrixVtc,
    /// Random, by capability (gonka).
    Gonka,
    /// Random, by price to the power of -2 (OpenRouter's documentation).
    OpenRouter,
    /// Parallax's score of a peer: requests in flight, then how late it was.
    Parallax,
    /// Miners ask for work when they have room; the oldest request is next (AI Horde).
    Horde,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Cuckoo,
        Self::RoundRobin,
        Self::TwoChoices,
        Self::Sglang,
        Self::Dynamo,
        Self::LlmD,
        Self::Aibrix,
        Self::AibrixVtc,
        Self::Gonka,
        Self::OpenRouter,
        Self::Parallax,
        Self::Horde,
    ];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuckoo => "cuckoo",
            Self::RoundRobin => "rr",
            Self::TwoChoices => "p2c",
            Self::Sglang => "sglang",
            Self::Dynamo => "dynamo",
            Self::LlmD => "llm-d",
            Self::Aibrix => "aibrix",
            Self::AibrixVtc => "aibrix-vtc",
            Self::Gonka => "gonka",
            Self::OpenRouter => "openrouter",
            Self::Parallax => "parallax",
            Self::Horde => "horde",
        }
    }
}

/// What a rule knows of a miner.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// Whether it is there.
    pub(super) is_up: bool,
    /// Requests that were sent to it and have not ended.
    pub(super) in_flight: u32,
    /// Of these, those that have not given a token.
    pub(super) queued: u32,
    /// Tokens of prompts that it has still to compute.
    pub(super) prefilling: u64,
    /// Blocks in use, and those there are.
    pub(super) blocks: (u64, u64),
    /// Tokens a second that it can decode with a full batch.
    pub(super) capability: f64,
    /// Nano-credits for a million tokens.
    pub(super) price: f64,
    /// Means of what its requests saw, in milliseconds.
    pub(super) ttft_ms: f64,
    pub(super) itl_ms: f64,
    /// Names of blocks that it has.
    pub(super) cached: HashSet<u64>,
}

impl View {
    /// How many of the first blocks of a chain it has.
    pub(super) fn hit(&self, chain: &[u64]) -> usize {
        chain.iter().take_while(|name| self.cached.contains(name)).count()
    }
}

/// A rule's own memory.
#[derive(Debug)]
pub(super) struct Rival {
    rule: Rule,
    turn: usize,
    chance: Chance,
    /// Tokens that each tenant got.
    tenants: HashMap<u64, f64>,
}

impl Rival {
    pub(super) fn new(rule: Rule, chance: Chance) -> Self {
        Self { rule, turn: 0, chance, tenants: HashMap::new() }
    }

    /// Where a request goes; `None` where nobody is there.
    pub(super) fn choose(&mut self, views: &[View], tenant: u64, tokens: u32, chain: &[u64]) -> Option<usize> {
        let up: Vec<usize> = (0..views.len()).filter(|at| views[*at].is_up).collect();
        if up.is_empty() {
            return None;
        }
        let least = |of: &dyn Fn(usize) -> f64| up.iter().copied().min_by(|a, b| of(*a).total_cmp(&of(*b)));
        let in_flight = |at: usize| f64::from(views[at].in_flight);
        match self.rule {
            Rule::Cuckoo | Rule::Horde => None,
            Rule::RoundRobin => {
                self.turn += 1;
                Some(up[self.turn % up.len()])
            }
            Rule::TwoChoices => {
                let pair = [0, 1].map(|_| up[self.chance.below(up.len() as u64) as usize]);
                pair.into_iter().min_by_key(|at| views[*at].in_flight)
            }
            Rule::Sglang => {
                let loads = up.iter().map(|at| views[*at].in_flight);
                let (most, fewest) = (loads.clone().max().unwrap_or(0), loads.min().unwrap_or(0));
                let is_uneven = most - fewest > 64 && f64::from(most) > 1.5 * f64::from(fewest);
                let longest = up.iter().copied().max_by_key(|at| views[*at].hit(chain))?;
                let share = views[longest].hit(chain) as f64 / chain.len().max(1) as f64;
                if !is_uneven && share > 0.3 { Some(longest) } else { least(&in_flight) }
            }
            Rule::Dynamo => least(&|at| {
                let view = &views[at];
                let own = tokens as f64 / 16.0 - view.hit(chain) as f64;
                (view.prefilling as f64 / 16.0 + own).max(0.0) + view.blocks.0 as f64
            }),
            Rule::LlmD => {
                let most = up.iter().map(|at| views[*at].queued).max().unwrap_or(0).max(1);
                least(&|at| {
                    let view = &views[at];
                    let matched = view.hit(chain) as f64 * 16.0;
                    let ratio = matched / f64::from(tokens.max(1));
                    let prefix = 0.5 * (matched / 8_192.0).min(1.0).powi(2) + 0.5 * ratio;
                    let queue = 1.0 - f64::from(view.queued) / f64::from(most);
                    let kv = 1.0 - view.blocks.0 as f64 / view.blocks.1.max(1) as f64;
                    -(3.0 * prefix + 2.0 * queue + 2.0 * kv)
                })
            }
            Rule::Aibrix => {
                let loads: Vec<f64> = up.iter().map(|at| in_flight(*at)).collect();
                let mean = loads.iter().sum::<f64>() / loads.len() as f64;
                let variance = loads.iter().map(|load| (load - mean).powi(2)).sum::<f64>() / loads.len() as f64;
                let (most, fewest) =
                    (loads.iter().copied().fold(0.0, f64::max), loads.iter().copied().fold(f64::MAX, f64::min));
                let within = up.iter().copied().filter(|at| in_flight(*at) <= mean + variance.sqrt());
                let longest = within.max_by_key(|at| views[*at].hit(chain)).filter(|at| views[*at].hit(chain) > 0);
                if most - fewest > 8.0 { least(&in_flight) } else { longest.or_else(|| least(&in_flight)) }
            }
            Rule::AibrixVtc => {
                let got = self.tenants.get(&tenant).copied().unwrap_or(0.0);
                let mean = (self.tenants.values().sum::<f64>() / self.tenants.len().max(1) as f64).max(1.0);
                let wanted = (got / mean).min(up.len() as f64 - 1.0);
                *self.tenants.entry(tenant).or_default() += f64::from(tokens);
                let disturbed: Vec<f64> = up
                    .iter()
                    .enumerate()
                    .map(|(place, at)| {
                        (place as f64 - wanted).abs() + (in_flight(*at) / 100.0).min(1.0) + 0.1 * self.chance.unit()
                    })
                    .collect();
                (0..up.len()).min_by(|a, b| disturbed[*a].total_cmp(&disturbed[*b])).map(|place| up[place])
            }
            Rule::Gonka => self.weighted(&up, |at| views[at].capability),
            Rule::OpenRouter => self.weighted(&up, |at| views[at].price.powi(-2)),
            Rule::Parallax => least(&|at| 1_000.0 * in_flight(at) + views[at].ttft_ms + views[at].itl_ms),
        }
    }

    fn weighted(&mut self, up: &[usize], weight: impl Fn(usize) -> f64) -> Option<usize> {
        let mut left = self.chance.unit() * up.iter().map(|at| weight(*at)).sum::<f64>();
        for at in up {
            left -= weight(*at);
            if left <= 0.0 {
                return Some(*at);
            }
        }
        up.last().copied()
    }
}
