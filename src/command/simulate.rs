//! `cuckoo simulate`: the market on a virtual clock, with this project's rule or those of others.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::num::NonZero;
use std::path::Path;
use std::sync::mpsc;

use anyhow::{Context, bail};
use cuckoo::simulation::{
    Faults, HARDWARE, Hardware, Job, Pictures, Recording, Report, Rule, Scenario, Workload, read_trace, record,
    run as simulated, write_trace,
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::{Common, SimulateArgs};

/// Results of one thread that may wait for those before them.
const AHEAD_MAX: usize = 64;

pub(super) fn run(common: &Common, args: &SimulateArgs) -> anyhow::Result<()> {
    let rules = rules(&args.rules)?;
    let trace = args.trace.as_ref().map(|path| read(path)).transpose()?;
    let drawn = Workload { requests: args.requests as usize, per_second: args.rate, tenants: args.tenants };
    let jobs = |seed| trace.clone().unwrap_or_else(|| drawn.draw(seed));
    if let Some(path) = &args.write_trace {
        write(path, &jobs(args.seed))?;
    }
    if let Some(folder) = &args.plots {
        // Before hours of work, rather than after.
        let why = || format!("{}: the folder cannot be made: name another one with --plots", folder.display());
        std::fs::create_dir_all(folder).with_context(why)?;
    }
    let runs = args.seeds * rules.len() as u64;
    let bar = ProgressBar::new(runs).with_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} runs, {per_sec}, {eta} left").context("a progress bar")?,
    );
    let report_of = |run: u64| {
        let seed = args.seed.wrapping_add(run / rules.len() as u64);
        let rule = rules[(run % rules.len() as u64) as usize];
        let (miners, jobs, faults) = (fleet(args.miners as usize), jobs(seed), faults(args.faults));
        let numerics = args.numerics;
        let scenario = Scenario { seed, rule, miners, numerics, jobs, faults };
        let outcome = match args.plots {
            Some(_) => record(&scenario).map(|(report, recording)| (report, Some(recording))),
            None => simulated(&scenario).map(|report| (report, None)),
        };
        outcome.with_context(|| format!("rule {}: run this seed again to see it again", rule.name()))
    };
    let (mut reports, mut pictures) = (Vec::new(), Pictures::default());
    in_order(runs, report_of, |outcome: anyhow::Result<(Report, Option<Recording>)>| {
        let (report, recording) = outcome?;
        bar.inc(1);
        if let Some(recording) = recording {
            pictures.add(report.clone(), recording);
        }
        match common.json {
            true => println!("{}", serde_json::to_string(&report)?),
            false => reports.push(report),
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    if !common.json {
        table(&reports, &rules);
    }
    args.plots.as_ref().map_or(Ok(()), |folder| keep(folder, &pictures))
}

/// Computes `of` all numbers below `count`, on as many threads as there are cores, and gives the results to `take` in the
/// order of their numbers, so that nobody sees how many threads there were. Ends with the first error.
fn in_order<T: Send>(
    count: u64,
    of: impl Fn(u64) -> T + Sync,
    mut take: impl FnMut(T) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        let mut results = Vec::new();
        for thread in 0..threads {
            let ((sender, receiver), of) = (mpsc::sync_channel(AHEAD_MAX), &of);
            results.push(receiver);
            // Nobody receives any more when there was an error.
            scope.spawn(move || {
                let mut numbers = (thread as u64..count).step_by(threads);
                numbers.try_for_each(|number| sender.send(of(number)))
            });
        }
        for receiver in results.iter().cycle().take(count as usize) {
            // A thread that panicked ends the scope as well.
            let Ok(result) = receiver.recv() else { break };
            take(result)?;
        }
        Ok(())
    })
}

/// As many faults as a bad day has, times `much`.
fn faults(much: f64) -> Faults {
    Faults {
        kills: 2.0 * much,
        freezes: 2.0 * much,
        partitions: 2.0 * much,
        scheduler_kills: 0.3 * much,
        departures: (0.05 * much).min(0.5),
    }
}

/// A market of all kinds of hardware: of ten miners, one of the fastest kind, two of the second, four of the third.
fn fleet(miners: usize) -> Vec<Hardware> {
    (0..miners).map(|at| HARDWARE[[2, 1, 3, 2, 0, 3, 2, 1, 3, 2][at % 10]]).collect()
}

fn read(path: &Path) -> anyhow::Result<Vec<Job>> {
    let named = || format!("{}", path.display());
    read_trace(BufReader::new(File::open(path).with_context(named)?)).with_context(named)
}

fn write(path: &Path, jobs: &[Job]) -> anyhow::Result<()> {
    let named = || format!("{}", path.display());
    let mut file = BufWriter::new(File::create(path).with_context(named)?);
    write_trace(&mut file, jobs).and_then(|()| file.flush()).with_context(named)
}

/// Writes pictures, each whole or not at all.
fn keep(folder: &Path, pictures: &Pictures) -> anyhow::Result<()> {
    for (name, svg) in pictures.draw()? {
        let path = folder.join(format!("{name}.svg"));
        let staged = folder.join(format!(".{name}.svg.{}", std::process::id()));
        let kept = std::fs::write(&staged, svg).and_then(|()| std::fs::rename(&staged, &path));
        if kept.is_err() {
            // Where nothing can be written there may be nothing to remove.
            let _ = std::fs::remove_file(&staged);
        }
        let why =
            || format!("{}: the picture cannot be written: make room there, or name another folder", path.display());
        kept.with_context(why)?;
    }
    Ok(())
}

fn rules(names: &[String]) -> anyhow::Result<Vec<Rule>> {
    if names.iter().any(|name| name == "all") {
        return Ok(Rule::ALL.to_vec());
    }
    let known = || Rule::ALL.map(Rule::name).join(", ");
    let rule = |name: &String| Rule::ALL.into_iter().find(|rule| rule.name() == name);
    names
        .iter()
        .map(|name| match rule(name) {
            Some(rule) => Ok(rule),
            None => bail!("there is no rule '{}': use all, or one of {}", name.escape_debug(), known()),
        })
        .collect()
}

fn table(reports: &[Report], rules: &[Rule]) {
    println!(
        "{:<11} {:>7} {:>8} {:>9} {:>9} {:>8} {:>8} {:>7} {:>6} {:>9} {:>8} {:>10} {:>9} {:>7} {:>9}",
        "rule",
        "good",
        "turned",
        "TTFT p50",
        "TTFT p99",
        "ITL p50",
        "ITL p99",
        "cached",
        "busy",
        "cost/Mtok",
        "fairness",
        "gap, ktok",
        "bound",
        "moves",
        "recovery"
    );
    for rule in rules {
        let of: Vec<&Report> = reports.iter().filter(|report| report.rule == rule.name()).collect();
        let mean = |f: &dyn Fn(&Report) -> f64| of.iter().map(|report| f(report)).sum::<f64>() / of.len().max(1) as f64;
        println!(
            "{:<11} {:>6.1}% {:>7.1}% {:>8.0}ms {:>8.0}ms {:>6.1}ms {:>6.1}ms {:>6.1}% {:>5.0}% {:>9.2} {:>8.3} {:>10.1} {:>9.0} {:>7.1} {:>7.0}ms",
            rule.name(),
            100.0 * mean(&|r| r.goodput),
            100.0 * mean(&|r| r.turned_away as f64 / r.requests as f64),
            mean(&|r| r.ttft_ms.p50),
            mean(&|r| r.ttft_ms.p99),
            mean(&|r| r.itl_ms.p50),
            mean(&|r| r.itl_ms.p99),
            100.0 * mean(&|r| r.cached),
            100.0 * mean(&|r| r.busy),
            mean(&|r| r.cost_per_mtok) / 1e9,
            mean(&|r| r.fairness),
            mean(&|r| r.service_gap.tokens as f64) / 1e3,
            mean(&|r| r.service_gap.bound as f64) / 1e3,
            mean(&|r| r.moves as f64),
            mean(&|r| r.recovery_ms.p99),
        );
    }
}
