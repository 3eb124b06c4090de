//! `cuckoo bench device`: llama-bench's shapes on the engine of this miner, beside what the machine can do at most.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cuckoo_kernels::limits::Limits;
use cuckoo_kernels::timed::Spent;
use serde_json::{Value, json};

use super::Spread;
use super::rig::{Case, Costs, FIRST_PROMPT_TOKENS, Rig, Run};
use crate::args::{BenchDeviceArgs, Common};
use crate::home::Home;
use crate::provision;

const MILLISECOND: Duration = Duration::from_millis(1);
const MICROSECOND: Duration = Duration::from_micros(1);

pub(super) async fn run(common: &Common, args: BenchDeviceArgs, began: Instant) -> anyhow::Result<()> {
    // A file needs no shelf: nothing is copied, and nothing is written anywhere.
    let path = match Path::new(&args.model).is_file() {
        true => PathBuf::from(&args.model),
        false => provision::weights(&Home::open(common)?, common, &args.model).await?.0.path,
    };
    let json = common.json;
    let report = tokio::task::spawn_blocking(move || measure(&path, &args, began)).await??;
    if json {
        report.print_json()
    } else {
        report.print_table()
    }
    Ok(())
}

/// Everything that a run found out.
struct Report {
    first: FirstToken,
    costs: Costs,
    results: Vec<Measured>,
    peak_bytes: Option<u64>,
    /// Whether the table says where the time went.
    profile: bool,
}

/// How long a fresh process takes until it answers.
struct FirstToken {
    since_start: Duration,
    load: Duration,
    step: Duration,
}

/// One case on one number of threads.
struct Measured {
    case: Case,
    threads: usize,
    runs: Vec<Run>,
    limits: Option<Limits>,
}

fn measure(path: &Path, args: &BenchDeviceArgs, began: Instant) -> anyhow::Result<Report> {
    let all = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads: Vec<usize> = match args.threads.is_empty() {
        true => vec![all],
        false => args.threads.iter().map(|t| usize::from(*t)).collect(),
    };
    let cases = cases(args);
    let (mut first, mut costs, mut results) = (None, Costs::default(), Vec::new());
    for threads in threads {
        let loading = Instant::now();
        let mut rig = Rig::load(path, threads, args.step_tokens, &cases)?;
        let load = loading.elapsed();
        costs = rig.costs();
        if first.is_none() {
            let step = rig.first_token()?.elapsed;
            first = Some(FirstToken { since_start: began.elapsed(), load, step });
        }
        let from = results.len();
        results.extend(cases.iter().map(|case| Measured { case: *case, threads, runs: Vec::new(), limits: None }));
        for case in &cases {
            rig.run(case.warm_up())?;
        }
        // Interleaved, so that a busy moment disturbs all cases alike.
        for _ in 0..args.repetitions {
            for result in &mut results[from..] {
                result.runs.push(rig.run(result.case)?);
            }
        }
    }
    // What the limits need is not the engine's memory, so they come last.
    let peak_bytes = peak_bytes();
    if !args.no_limits {
        measure_limits(&mut results);
    }
    let first = first.ok_or_else(|| anyhow::anyhow!("no number of threads was given"))?;
    Ok(Report { first, costs, results, peak_bytes, profile: args.profile })
}

/// Once for each number of threads.
fn measure_limits(results: &mut [Measured]) {
    let mut known: Vec<Limits> = Vec::new();
    for result in results {
        let found = known.iter().find(|l| l.threads == result.threads).copied();
        let limits = found.unwrap_or_else(|| {
            known.push(Limits::measure(result.threads));
            known[known.len() - 1]
        });
        result.limits = Some(limits);
    }
}

fn cases(args: &BenchDeviceArgs) -> Vec<Case> {
    let mut cases = Vec::new();
    for depth in &args.depth {
        if args.prompt > 0 {
            // Steps of a prompt are timed whole, so that its depth must be a number of whole steps.
            let step_tokens = args.batch.iter().copied().fold(args.step_tokens, u32::max);
            let depth = depth.next_multiple_of(step_tokens);
            cases.push(Case::Prompt { tokens: args.prompt, depth });
        }
        if args.generate > 0 {
            let of = |batch: &u32| Case::Generate { tokens: args.generate, depth: *depth, batch: *batch };
            cases.extend(args.batch.iter().map(of));
        }
    }
    cases
}

/// The most memory that this process ever had, where the system says it.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

impl Measured {
    /// As llama-bench calls it.
    fn name(&self) -> String {
        let (name, depth) = match self.case {
            Case::Prompt { tokens, depth } => (format!("pp{tokens}"), depth),
            Case::Generate { tokens, depth, .. } => (format!("tg{tokens}"), depth),
        };
        if depth > 0 { format!("{name} @ d{depth}") } else { name }
    }

    fn rates(&self) -> Spread {
        self.runs.iter().map(Run::tokens_per_s).collect()
    }

    /// Times of all runs, in units of `unit`.
    fn times(&self, of: impl Fn(&Run) -> &Vec<Duration>, unit: Duration) -> Spread {
        let all: Vec<Duration> = self.runs.iter().flat_map(|r| of(r).iter().copied()).collect();
        Spread::of(&all, unit)
    }

    /// Percent of the machine's read bandwidth and of its 8-bit multiply-adds, medians.
    fn percents(&self) -> Option<(f64, f64)> {
        let limits = self.limits?;
        let share = |of: &dyn Fn(&Run) -> u64, limit: f64| {
            let shares = self.runs.iter().map(|r| 100.0 * of(r) as f64 / r.elapsed.as_secs_f64() / limit);
            shares.collect::<Spread>().median()
        };
        Some((share(&|r| r.bytes, limits.read_bytes_per_s), share(&|r| r.ops, limits.int8_ops_per_s)))
    }

    fn json(&self) -> Value {
        let (prompt, generate, depth) = match self.case {
            Case::Prompt { tokens, depth } => (tokens, 0, depth),
            Case::Generate { tokens, depth, .. } => (0, tokens, depth),
        };
        let (rates, percents) = (self.rates(), self.percents());
        json!({
            "event": "test", "test": self.name(), "n_prompt": prompt, "n_gen": generate, "n_depth": depth,
            "n_threads": self.threads, "batch": self.case.batch(),
            "tokens_per_s": {"median": rates.median(), "min": rates.quantile(0.0), "max": rates.quantile(1.0)},
            "avg_ts": rates.mean(), "samples_ts": self.runs.iter().map(Run::tokens_per_s).collect::<Vec<_>>(),
            "bandwidth_percent": percents.map(|p| p.0), "int8_percent": percents.map(|p| p.1),
            "step_ms": self.times(|r| &r.steps, MILLISECOND).tail(),
            "step_cpu_us": self.times(|r| &r.planning, MICROSECOND).mean(),
            "gap_us": self.times(|r| &r.gaps, MICROSECOND).tail(),
            "digest": format!("{:016x}", self.runs.first().map_or(0, |r| r.digest)),
            "profile": self.profile().into_iter().map(|(name, share, each)| {
                json!({"operation": name, "percent": share, "us_per_call": each})
            }).collect::<Vec<_>>(),
        })
    }

    /// Operations of the last run by their share of its time, the largest first: name, percent, microseconds a call.
    fn profile(&self) -> Vec<(String, f64, f64)> {
        let Some(run) = self.runs.last() else { return Vec::new() };
        let total: f64 = run.spent.values().map(|s| s.time.as_secs_f64()).sum();
        let row = |(name, spent): (&String, &Spent)| {
            let time = spent.time.as_secs_f64();
            (name.clone(), 100.0 * time / total, 1e6 * time / spent.calls.max(1) as f64)
        };
        let mut rows: Vec<_> = run.spent.iter().map(row).collect();
        rows.sort_by(|a, b| b.1.total_cmp(&a.1));
        rows
    }

    fn row(&self) -> String {
        let (rates, gaps) = (self.rates(), self.times(|r| &r.gaps, MICROSECOND));
        let span = format!("({:.1}–{:.1})", rates.quantile(0.0), rates.quantile(1.0));
        let percents =
            self.percents().map_or_else(|| format!("{:>9} {:>6}", "", ""), |(b, i)| format!("{b:>7.0} % {i:>4.0} %"));
        format!(
            "{:<14} {:>7} {:>5} {:>9.1} {span:<19} {percents} {:>8.2} {:>8.2} {:>7.0} {:>7.0} {:>7.0}",
            self.name(),
            self.threads,
            self.case.batch(),
            rates.median(),
            self.times(|r| &r.steps, MILLISECOND).median(),
            self.times(|r| &r.steps, MILLISECOND).quantile(0.99),
            self.times(|r| &r.planning, MICROSECOND).mean(),
            gaps.median(),
            gaps.quantile(0.99),
        )
    }
}

impl Report {
    /// The limits that were measured, one for each number of threads.
    fn limits(&self) -> Vec<Limits> {
        let mut limits: Vec<Limits> = self.results.iter().filter_map(|r| r.limits).collect();
        limits.dedup();
        limits
    }

    fn print_json(&self) {
        let ms = |t: Duration| t.as_secs_f64() * 1e3;
        println!(
            "{}",
            json!({
                "event": "first_token", "since_start_ms": ms(self.first.since_start), "load_ms": ms(self.first.load),
                "step_ms": ms(self.first.step), "prompt_tokens": FIRST_PROMPT_TOKENS,
            })
        );
        for l in self.limits() {
            println!(
                "{}",
                json!({
                    "event": "limits", "n_threads": l.threads, "read_bytes_per_s": l.read_bytes_per_s,
                    "int8_ops_per_s": l.int8_ops_per_s, "int8_with": l.int8_with,
                })
            );
        }
        self.results.iter().for_each(|r| println!("{}", r.json()));
        println!(
            "{}",
            json!({
                "event": "memory", "peak_bytes": self.peak_bytes, "weight_bytes": self.costs.weight_bytes,
                "kv_bytes_per_token": self.costs.position_bytes,
            })
        );
    }

    fn print_table(&self) {
        println!(
            "{:<14} {:>7} {:>5} {:>9} {:<19} {:>9} {:>6} {:>8} {:>8} {:>7} {:>7} {:>7}",
            "test",
            "threads",
            "batch",
            "tokens/s",
            "(min–max)",
            "bandwidth",
            "int8",
            "step ms",
            "p99",
            "cpu µs",
            "gap µs",
            "p99"
        );
        for result in &self.results {
            println!("{}", result.row());
            for (name, share, each) in result.profile().into_iter().filter(|_| self.profile) {
                println!("    {name:<30} {share:>5.1} % {each:>10.1} µs a call");
            }
        }
        for l in self.limits() {
            println!(
                "limits on {} threads: {:.1} GB/s read, {:.0} GOP/s of 8-bit integers ({})",
                l.threads,
                l.read_bytes_per_s / 1e9,
                l.int8_ops_per_s / 1e9,
                l.int8_with
            );
        }
        let f = &self.first;
        println!(
            "first token of a fresh process after {:.0} ms: {:.0} to load, {:.0} for a prompt of {FIRST_PROMPT_TOKENS} tokens",
            f.since_start.as_secs_f64() * 1e3,
            f.load.as_secs_f64() * 1e3,
            f.step.as_secs_f64() * 1e3
        );
        if let Some(peak) = self.peak_bytes {
            println!(
                "memory at most {:.0} MB; weights {:.0} MB",
                peak as f64 / 1e6,
                self.costs.weight_bytes as f64 / 1e6
            );
        }
    }
}
