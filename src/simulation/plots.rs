//! Pictures of runs: what all rules did, side by side, as SVG. Each is a function of reports and recordings alone, so the same
//! seeds give the same bytes. Text stays text: whoever looks at it has fonts.
//!
//! Bars are means over all seeds, as the table has them; those of classes, and distributions, are of all requests of all
//! seeds; what is drawn over time is the first seed's.

mod bars;
mod curves;
mod page;
mod panels;
mod scale;

use cuckoo_scheduler::objective;
use cuckoo_wire::message::ServiceClass;

use bars::Bars;
use curves::Curves;
use page::{Drawn, Page};
use panels::{Panel, Panels};

use super::recording::{Distribution, OverTime, Recording};
use super::report::Report;

/// All that pictures are drawn from.
#[derive(Debug, Default)]
pub struct Pictures {
    rules: Vec<OfRule>,
}

/// What is known of one rule.
#[derive(Debug)]
struct OfRule {
    name: &'static str,
    reports: Vec<Report>,
    /// Over time of the first seed, distributions of all.
    recording: Recording,
}

impl OfRule {
    fn mean(&self, of: impl Fn(&Report) -> f64) -> f64 {
        self.reports.iter().map(of).sum::<f64>() / self.reports.len().max(1) as f64
    }

    /// Seconds that the run took which is drawn over time.
    fn seconds(&self) -> f64 {
        self.reports.first().map_or(0.0, |report| report.seconds)
    }

    /// The share of a class's requests that was good, in percent, of all seeds together: some may have few of them, or none.
    fn good(&self, class: &str) -> Option<f64> {
        let of_class = self.reports.iter().flat_map(|report| &report.classes).filter(|of| of.class == class);
        let (good, requests) = of_class.fold((0, 0), |(good, all), of| (good + of.good, all + of.requests));
        (requests > 0).then(|| 100.0 * good as f64 / requests as f64)
    }

    /// The share of the fleet's time that it computed, over time.
    fn busy(&self) -> Vec<(f64, f64)> {
        let (busy, end) = (&self.recording.busy, self.seconds());
        let share = |(sum, at): (&u64, i32)| {
            let from = f64::from(at) * busy.width_s();
            // The run ends within the last bucket.
            let width = busy.width_s().min(end - from).max(1e-6);
            let whole = width * 1e6 * self.recording.miners.max(1) as f64;
            // A step that was cut short by a fault was counted whole.
            (from + width / 2.0, (100.0 * *sum as f64 / whole).min(100.0))
        };
        busy.sums(end).iter().zip(0..).map(share).collect()
    }

    /// What a tenant got until then, over time, in thousands of weighted tokens.
    fn served(&self, served: &OverTime) -> Vec<(f64, f64)> {
        let (mut got, end) = (0, self.seconds());
        let sums = served.sums(end).iter().zip(1..).map(|(sum, at)| {
            got += sum;
            ((f64::from(at) * served.width_s()).min(end), got as f64 / 1e3)
        });
        let mut line: Vec<_> = std::iter::once((0.0, 0.0)).chain(sums).collect();
        // Buckets end where it was served last; it keeps what it got.
        line.extend(line.last().map(|(_, got)| (end, *got)));
        line
    }
}

/// Why a picture could not be drawn.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{picture} cannot be drawn: {why}")]
pub struct DrawError {
    /// Which.
    pub picture: &'static str,
    /// What is in the way.
    pub why: String,
}

/// A picture's name, what its heading says, how high it is for so many rules, and who draws it.
type Picture = (&'static str, &'static str, fn(usize) -> u32, fn(&Pictures, &Page<'_>) -> Drawn);

const PICTURES: [Picture; 8] = [
    ("goodput", "SLO goodput: requests that were good", bars::height, Pictures::goodput),
    ("ttft", "Time to the first token", curves::height, |all, page| all.distribution(page, &TTFT)),
    ("itl", "Time between tokens", curves::height, |all, page| all.distribution(page, &ITL)),
    ("cost", "Cost of output", bars::height, Pictures::cost),
    ("utilisation", "Utilisation over time", panels::height, Pictures::utilisation),
    ("service", "Service of the busiest tenants over time", panels::height, Pictures::service),
    ("fairness", "Fairness between tenants", bars::height, Pictures::fairness),
    ("recovery", "Time from the loss of a miner to the next token", curves::height, |all, page| {
        all.distribution(page, &RECOVERY)
    }),
];

/// What is shown of a distribution.
struct Shown {
    of: fn(&Recording) -> &Distribution,
    /// What the times are, and what there are shares of.
    words: (&'static str, &'static str),
    /// What a class aims at, in milliseconds.
    aim: Option<fn(ServiceClass) -> f64>,
    /// What to say about it, and where there is none.
    note: &'static str,
    none: &'static str,
}

const TTFT: Shown = Shown {
    of: |recording| &recording.ttft,
    words: ("time to the first token", "share of answered requests"),
    aim: Some(|class| objective(class).ttft_ms),
    note: "Without requests that were turned away, or waited for too long, or whose developer left.",
    none: "No request was answered.",
};
const ITL: Shown = Shown {
    of: |recording| &recording.itl,
    words: ("mean time between tokens of a request", "share of answered requests"),
    aim: Some(|class| objective(class).itl_ms),
    note: "Without requests that were turned away, or waited for too long, or whose developer left.",
    none: "No request was answered.",
};
const RECOVERY: Shown = Shown {
    of: |recording| &recording.recovery,
    words: ("time from the loss of a miner to the next token", "share of losses"),
    aim: None,
    note: "Of requests that lost their miner and went on, each time that they did.",
    none: "No request lost its miner: faults are asked for with --faults.",
};

const CLASSES: [(ServiceClass, &str); 3] =
    [(ServiceClass::Interactive, "interactive"), (ServiceClass::Standard, "standard"), (ServiceClass::Batch, "batch")];

impl Pictures {
    /// Takes in what came of one run. Rules appear in the order in which they come, and so do seeds.
    pub fn add(&mut self, report: Report, recording: Recording) {
        match self.rules.iter_mut().find(|of| of.name == report.rule) {
            Some(of) => {
                of.recording.ttft.merge(&recording.ttft);
                of.recording.itl.merge(&recording.itl);
                of.recording.recovery.merge(&recording.recovery);
                of.reports.push(report);
            }
            None => self.rules.push(OfRule { name: report.rule, reports: vec![report], recording }),
        }
    }

    /// Names of files without their ending, and what they hold.
    ///
    /// # Errors
    /// If one cannot be drawn.
    pub fn draw(&self) -> Result<Vec<(&'static str, String)>, DrawError> {
        let drawn = |(picture, heading, height, draw): Picture| {
            let svg = page::drawn(height(self.rules.len()), |page| {
                page.heading(heading, &self.what())?;
                draw(self, page)
            });
            svg.map(|svg| (picture, svg)).map_err(|why| DrawError { picture, why: why.to_string() })
        };
        PICTURES.into_iter().map(drawn).collect()
    }

    /// What was run.
    fn what(&self) -> String {
        let reports = self.rules.first().map_or(&[][..], |of| &of.reports);
        let requests = reports.first().map_or(0, |report| report.requests);
        match (reports.first(), reports.last()) {
            (Some(first), Some(last)) if reports.len() > 1 => {
                format!("{requests} requests a run, seeds {} to {}", first.seed, last.seed)
            }
            (Some(first), _) => format!("{requests} requests, seed {}", first.seed),
            _ => "nothing was run".to_owned(),
        }
    }

    fn names(&self) -> Vec<&'static str> {
        self.rules.iter().map(|of| of.name).collect()
    }

    fn means(&self, of: impl Fn(&Report) -> f64) -> Vec<f64> {
        self.rules.iter().map(|rule| rule.mean(&of)).collect()
    }

    fn goodput(&self, page: &Page<'_>) -> Drawn {
        let percent = |value: f64| format!("{value:.1} %");
        let panel = |title: &str, values| Bars {
            title: format!("{title} (% of requests)"),
            values,
            most: Some(100.0),
            mark: None,
            label: &percent,
        };
        let mut panels = vec![panel("all", self.means(|report| 100.0 * report.goodput))];
        for (_, class) in CLASSES {
            let good: Vec<Option<f64>> = self.rules.iter().map(|of| of.good(class)).collect();
            if good.iter().any(Option::is_some) {
                panels.push(panel(class, good.into_iter().map(Option::unwrap_or_default).collect()));
            }
        }
        page.note(
            "Good: the first token and the mean time between tokens are within what the request's class aims at.",
        )?;
        bars::draw(page, &self.names(), &panels)
    }

    fn cost(&self, page: &Page<'_>) -> Drawn {
        let credits = |value: f64| format!("{value:.2}");
        let panel = Bars {
            title: "credits for a million tokens of output".to_owned(),
            values: self.means(|report| report.cost_per_mtok / 1e9),
            most: None,
            mark: None,
            label: &credits,
        };
        page.note(
            "What answered requests were charged, their prompts with it, by the tokens of output that they got.",
        )?;
        bars::draw(page, &self.names(), &[panel])
    }

    fn fairness(&self, page: &Page<'_>) -> Drawn {
        let (share, count) = (|value: f64| format!("{value:.3}"), |value: f64| format!("{value:.1}"));
        let bounds = self.means(|report| report.service_gap.bound as f64 / 1e3);
        let bound = bounds.iter().copied().fold(0.0, f64::max);
        let bars =
            |title: &str, values| Bars { title: title.to_owned(), values, most: None, mark: None, label: &count };
        let jain = Bars {
            most: Some(1.0),
            label: &share,
            ..bars("Jain's index (1: all tenants alike)", self.means(|report| report.fairness))
        };
        let gaps = self.means(|report| report.service_gap.tokens as f64 / 1e3);
        let gap = Bars { mark: Some((bound, "bound")), ..bars("service gap (thousand weighted tokens)", gaps) };
        let waited = bars("time with two or more waiting (s)", self.means(|report| report.service_gap.contended_s));
        page.note(&format!(
            "Service gap: the largest difference of service between two tenants that both wait. VTC's bound is {bound:.0} thousand."
        ))?;
        bars::draw(page, &self.names(), &[jain, gap, waited])
    }

    fn distribution(&self, page: &Page<'_>, shown: &Shown) -> Drawn {
        let curve = |of: &OfRule| (of.name, (shown.of)(&of.recording).shares());
        let aims = |aim: fn(ServiceClass) -> f64| CLASSES.map(|(class, name)| (aim(class), name)).to_vec();
        let curves = Curves {
            curves: self.rules.iter().map(curve).filter(|(_, shares)| !shares.is_empty()).collect(),
            marks: shown.aim.map(aims).unwrap_or_default(),
            words: shown.words,
        };
        match curves.curves.is_empty() {
            true => page.note(shown.none),
            false => page.note(shown.note).and_then(|()| curves::draw(page, &curves)),
        }
    }

    fn utilisation(&self, page: &Page<'_>) -> Drawn {
        let panel = |of: &OfRule| {
            let mean = 100.0 * of.mean(|report| report.busy);
            let title = format!("{}: {mean:.0} % on the average", of.name);
            Panel { rule: of.name, title, seconds: of.seconds(), lines: vec![of.busy()] }
        };
        let panels = Panels {
            panels: self.rules.iter().map(panel).collect(),
            names: Vec::new(),
            y: ("% of miners' time", 100.0),
        };
        page.note("The share of its time that the fleet computed: averages of all seeds, lines of the first.")?;
        panels::draw(page, &panels)
    }

    fn service(&self, page: &Page<'_>) -> Drawn {
        let panel = |of: &OfRule| {
            let lines = of.recording.served.iter().map(|(_, served)| of.served(served)).collect();
            Panel { rule: of.name, title: of.name.to_owned(), seconds: of.seconds(), lines }
        };
        let panels: Vec<Panel> = self.rules.iter().map(panel).collect();
        let lines = panels.iter().flat_map(|panel| &panel.lines);
        let most = lines.filter_map(|line| line.last()).map(|(_, got)| *got).fold(1.0, f64::max);
        let tenants = self.rules.first().map_or(&[][..], |of| &of.recording.served);
        let names = tenants.iter().map(|(tenant, _)| format!("tenant {tenant}")).collect();
        page.note("Weighted tokens: one for a token of a prompt, two for one of an answer. The first seed.")?;
        panels::draw(page, &Panels { panels, names, y: ("thousand weighted tokens", most) })
    }
}

#[cfg(test)]
mod tests;
