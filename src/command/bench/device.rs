//! `cuckoo bench device`: llama-bench's shapes on the engine of this miner, beside what the machine can do at most.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::bail;
use cuckoo_kernels::timed::Spent;
use cuckoo_kernels::{Cpu, Timed};
use cuckoo_runtime::{DeviceKind, Devices};
use serde_json::{Value, json};

use super::Spread;
use super::ceiling::Ceiling;
use super::rig::{Backend, Case, Costs, FIRST_PROMPT_TOKENS, Rig, Run};
use crate::args::{BenchDeviceArgs, Common};
use crate::home::Home;
use crate::provision;

const MILLISECOND: Duration = Duration::from_millis(1);
const MICROSECOND: Duration = Duration::from_micros(1);

pub(super) async fn run(common: &Common, args: BenchDeviceArgs, began: Instant) -> anyhow::Result<()> {
    let devices = devices(&args)?;
    // A file needs no shelf: nothing is copied, and nothing is written anywhere.
    let path = match Path::new(&args.model).is_file() {
        true => PathBuf::from(&args.model),
        false => provision::weights(&Home::open(common)?, common, &args.model).await?.0.path,
    };
    let json = common.json;
    let report = tokio::task::spawn_blocking(move || measure(&path, &args, devices, began)).await??;
    if json {
        report.print_json()
    } else {
        report.print_table()
    }
    Ok(())
}

/// Everything that a run found out.
struct Report {
    first: Option<FirstToken>,
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

/// One case on one device.
struct Measured {
    case: Case,
    device: DeviceKind,
    runs: Vec<Run>,
    ceiling: Option<Ceiling>,
}

/// What is measured in turn.
fn devices(args: &BenchDeviceArgs) -> anyhow::Result<Vec<DeviceKind>> {
    let all = std::thread::available_parallelism().map_or(1, NonZero::get);
    in_turn(Devices::survey(&[args.device], all, args.numerics)?.kinds, args)
}

/// The processors with each number of threads, or one GPU without what only processors have.
fn in_turn(kinds: Vec<DeviceKind>, args: &BenchDeviceArgs) -> anyhow::Result<Vec<DeviceKind>> {
    match &kinds[..] {
        [DeviceKind::Cpu { .. }] if args.threads.is_empty() => Ok(kinds),
        [DeviceKind::Cpu { .. }] => {
            Ok(args.threads.iter().map(|threads| DeviceKind::Cpu { threads: usize::from(*threads) }).collect())
        }
        [DeviceKind::Cuda(..)] if !args.threads.is_empty() => {
            bail!("--threads is for processors: leave it out with --device cuda:N")
        }
        [DeviceKind::Cuda(..)] if args.profile => bail!(
            "--profile is for processors: a GPU computes after it was asked, so its operations have no times of their own here; \
             benches/gpu measures them"
        ),
        [DeviceKind::Cuda(..)] => Ok(kinds),
        _ => bail!("one device is measured at a time: name it, e.g. --device cuda:0"),
    }
}

fn measure(path: &Path, args: &BenchDeviceArgs, devices: Vec<DeviceKind>, began: Instant) -> anyhow::Result<Report> {
    let mut report = Report::new(args.profile);
    for device in devices {
        match &device {
            DeviceKind::Cpu { threads } => {
                report.measure(path, args, &device, (began, || Ok(Timed::new(Cpu::new(*threads)))))?
            }
            DeviceKind::Cuda(gpu, _) => on_gpu(&mut report, path, args, gpu, began)?,
        }
    }
    // What the limits need is not the engine's memory, so they come last.
    report.peak_bytes = peak_bytes();
    if !args.no_limits {
        report.measure_limits()?;
    }
    Ok(report)
}

#[cfg(feature = "cuda")]
fn on_gpu(
    report: &mut Report,
    path: &Path,
    args: &BenchDeviceArgs,
    gpu: &cuckoo_kernels::cuda::Gpu,
    began: Instant,
) -> anyhow::Result<()> {
    use cuckoo_kernels::cuda::{Cuda, Driver, Replay};
    let backend = || Ok(Cuda::with_profile(Replay::new(Driver::new(gpu)?), args.numerics));
    report.measure(path, args, &DeviceKind::Cuda(gpu.clone(), args.numerics), (began, backend))
}

/// None is ever found.
#[cfg(not(feature = "cuda"))]
fn on_gpu(
    _: &mut Report,
    _: &Path,
    _: &BenchDeviceArgs,
    _: &cuckoo_kernels::cuda::Gpu,
    _: Instant,
) -> anyhow::Result<()> {
    Err(cuckoo_kernels::cuda::NoGpu::NotBuilt.into())
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

    /// Percent of the device's bandwidth, and of its 8-bit multiply-adds where those were measured; medians.
    fn percents(&self) -> (Option<f64>, Option<f64>) {
        let share = |of: &dyn Fn(&Run) -> u64, limit: f64| {
            let shares = self.runs.iter().map(|r| 100.0 * of(r) as f64 / r.elapsed.as_secs_f64() / limit);
            shares.collect::<Spread>().median()
        };
        let ceiling = self.ceiling.as_ref();
        (
            ceiling.map(|c| share(&|r| r.bytes, c.bytes_per_s())),
            ceiling.and_then(Ceiling::int8_ops_per_s).map(|limit| share(&|r| r.ops, limit)),
        )
    }

    /// Threads that computed, where processors did.
    fn threads(&self) -> Option<usize> {
        match self.device {
            DeviceKind::Cpu { threads } => Some(threads),
            DeviceKind::Cuda(..) => None,
        }
    }

    fn json(&self) -> Value {
        let (prompt, generate, depth) = match self.case {
            Case::Prompt { tokens, depth } => (tokens, 0, depth),
            Case::Generate { tokens, depth, .. } => (0, tokens, depth),
        };
        let (rates, percents) = (self.rates(), self.percents());
        json!({
            "event": "test", "test": self.name(), "n_prompt": prompt, "n_gen": generate, "n_depth": depth,
            "n_threads": self.threads(), "device": self.device.to_string(), "batch": self.case.batch(),
            "tokens_per_s": {"median": rates.median(), "min": rates.quantile(0.0), "max": rates.quantile(1.0)},
            "avg_ts": rates.mean(), "samples_ts": self.runs.iter().map(Run::tokens_per_s).collect::<Vec<_>>(),
            "bandwidth_percent": percents.0, "int8_percent": percents.1,
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
        let percent = |of: Option<f64>| of.map_or_else(String::new, |p| format!("{p:.0} %"));
        let (bandwidth, int8) = self.percents();
        let percents = format!("{:>9} {:>6}", percent(bandwidth), percent(int8));
        format!(
            "{:<14} {:>7} {:>5} {:>9.1} {span:<19} {percents} {:>8.2} {:>8.2} {:>7.0} {:>7.0} {:>7.0}",
            self.name(),
            self.threads().map_or_else(|| "–".to_owned(), |threads| threads.to_string()),
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
    fn new(profile: bool) -> Self {
        Self { first: None, costs: Costs::default(), results: Vec::new(), peak_bytes: None, profile }
    }

    /// All cases on one device.
    fn measure<B: Backend>(
        &mut self,
        path: &Path,
        args: &BenchDeviceArgs,
        device: &DeviceKind,
        (began, backend): (Instant, impl FnOnce() -> anyhow::Result<B>),
    ) -> anyhow::Result<()> {
        let cases = cases(args);
        let loading = Instant::now();
        let mut rig = Rig::load(path, backend()?, args.step_tokens, &cases)?;
        let load = loading.elapsed();
        self.costs = rig.costs();
        if self.first.is_none() {
            let step = rig.first_token()?.elapsed;
            self.first = Some(FirstToken { since_start: began.elapsed(), load, step });
        }
        let from = self.results.len();
        let empty = |case: &Case| Measured { case: *case, device: device.clone(), runs: Vec::new(), ceiling: None };
        self.results.extend(cases.iter().map(empty));
        for case in &cases {
            rig.run(case.warm_up())?;
        }
        // Interleaved, so that a busy moment disturbs all cases alike.
        for _ in 0..args.repetitions {
            for result in &mut self.results[from..] {
                result.runs.push(rig.run(result.case)?);
            }
        }
        Ok(())
    }

    /// Once for each device.
    fn measure_limits(&mut self) -> anyhow::Result<()> {
        let mut known: Vec<(DeviceKind, Ceiling)> = Vec::new();
        for result in &mut self.results {
            if !known.iter().any(|(device, _)| *device == result.device) {
                known.push((result.device.clone(), Ceiling::measure(&result.device)?));
            }
            let found = known.iter().find(|(device, _)| *device == result.device);
            result.ceiling = found.map(|(_, ceiling)| ceiling.clone());
        }
        Ok(())
    }

    /// The limits that were measured, one for each device.
    fn limits(&self) -> Vec<&Ceiling> {
        let mut limits: Vec<&Ceiling> = self.results.iter().filter_map(|r| r.ceiling.as_ref()).collect();
        limits.dedup();
        limits
    }

    fn print_json(&self) {
        let ms = |t: Duration| t.as_secs_f64() * 1e3;
        if let Some(first) = &self.first {
            println!(
                "{}",
                json!({
                    "event": "first_token", "since_start_ms": ms(first.since_start), "load_ms": ms(first.load),
                    "step_ms": ms(first.step), "prompt_tokens": FIRST_PROMPT_TOKENS,
                })
            );
        }
        self.limits().iter().for_each(|ceiling| println!("{}", ceiling.json()));
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
        self.limits().iter().for_each(|ceiling| println!("{ceiling}"));
        if let Some(f) = &self.first {
            println!(
                "first token of a fresh process after {:.0} ms: {:.0} to load, {:.0} for a prompt of {FIRST_PROMPT_TOKENS} tokens",
                f.since_start.as_secs_f64() * 1e3,
                f.load.as_secs_f64() * 1e3,
                f.step.as_secs_f64() * 1e3
            );
        }
        if let Some(peak) = self.peak_bytes {
            println!(
                "memory at most {:.0} MB; weights {:.0} MB",
                peak as f64 / 1e6,
                self.costs.weight_bytes as f64 / 1e6
            );
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::Parser;
    use cuckoo_kernels::cuda::{Gpu, Profile};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchDeviceArgs,
    }

    fn args(words: &[&str]) -> BenchDeviceArgs {
        Line::try_parse_from([&["x"], words].concat()).unwrap().args
    }

    fn gpu(ordinal: usize) -> DeviceKind {
        let name = "some card".to_owned();
        let gpu =
            Gpu { ordinal, name, capability: (9, 0), multiprocessors: 132, memory_bytes: 1 << 37, driver: 13_000 };
        DeviceKind::Cuda(gpu, Profile::Exact)
    }

    #[test]
    fn processors_take_turns_by_threads_and_a_gpu_is_alone() {
        let cpu = |threads| DeviceKind::Cpu { threads };
        assert_eq!(in_turn(vec![cpu(8)], &args(&[])).unwrap(), [cpu(8)]);
        assert_eq!(in_turn(vec![cpu(8)], &args(&["--threads", "1,2"])).unwrap(), [cpu(1), cpu(2)]);
        assert_eq!(in_turn(vec![gpu(0)], &args(&["--device", "cuda:0"])).unwrap(), [gpu(0)]);
    }

    #[test]
    fn what_only_processors_have_is_refused_for_a_gpu() {
        let refused = |kinds, words: &[&str]| in_turn(kinds, &args(words)).unwrap_err().to_string();
        assert!(refused(vec![gpu(0)], &["--threads", "2"]).contains("--threads is for processors"));
        assert!(refused(vec![gpu(0)], &["--profile"]).contains("--profile is for processors"));
        assert!(refused(vec![gpu(0), gpu(1)], &["--device", "cuda"]).contains("name it, e.g. --device cuda:0"));
    }
}
