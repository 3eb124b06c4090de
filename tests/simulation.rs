//! The market on a virtual clock: what must hold whatever breaks, from many seeds; and that a seed is all it takes to see
//! a run again.

use std::collections::BTreeMap;
use std::fs::DirEntry;
use std::io::Cursor;
use std::path::Path;
use std::process::Stdio;

use cuckoo::simulation::{
    Faults, HARDWARE, Job, Report, Rule, Scenario, Workload, read_trace, record, run, write_trace,
};
use serde_json::Value;

use crate::support::cuckoo;

const BAD_DAY: Faults = Faults { kills: 6.0, freezes: 6.0, partitions: 6.0, scheduler_kills: 2.0, departures: 0.1 };

fn jobs(seed: u64, requests: usize) -> Vec<Job> {
    Workload { requests, per_second: 15.0, tenants: 7 }.draw(seed)
}

fn simulated(seed: u64, rule: Rule, faults: Faults) -> Report {
    of_numerics(1, seed, rule, faults)
}

/// Where miners compute in so many ways.
fn of_numerics(numerics: u16, seed: u64, rule: Rule, faults: Faults) -> Report {
    let miners = (0..8).map(|at| HARDWARE[at % 4]).collect();
    run(&Scenario { seed, rule, miners, numerics, jobs: jobs(seed, 80), faults })
        .unwrap_or_else(|violation| panic!("{violation}"))
}

#[test]
fn whatever_breaks_every_request_ends_with_its_own_tokens_and_is_paid_once() {
    let reports: Vec<Report> = (0..25).map(|seed| simulated(seed, Rule::Cuckoo, BAD_DAY)).collect();
    let moves: u64 = reports.iter().map(|report| report.moves).sum();
    assert!(moves > 50, "{moves}: miners were lost while they computed");
    assert!(reports.iter().all(|report| report.finished + report.turned_away == report.requests));
    let finished: usize = reports.iter().map(|report| report.finished).sum();
    assert!(finished * 10 > 25 * 80 * 8, "{finished}: who does not leave is answered");
}

#[test]
fn streams_stay_with_miners_that_compute_alike() {
    let reports: Vec<Report> = (0..15).map(|seed| of_numerics(3, seed, Rule::Cuckoo, BAD_DAY)).collect();
    let moves: u64 = reports.iter().map(|report| report.moves).sum();
    assert!(moves > 20, "{moves}: miners were lost while they computed");
    assert!(reports.iter().all(|report| report.finished + report.turned_away == report.requests));
    let finished: usize = reports.iter().map(|report| report.finished).sum();
    assert!(finished * 10 > 15 * 80 * 8, "{finished}: miners of each kind come back");
}

#[test]
fn rules_of_others_keep_what_must_be_kept_too() {
    for rule in Rule::ALL {
        let report = simulated(3, rule, Faults { scheduler_kills: 0.0, ..BAD_DAY });
        assert!(report.finished > 0 && report.rule == rule.name());
    }
}

#[test]
fn a_seed_is_all_it_takes() {
    let twice = [0, 1].map(|_| simulated(11, Rule::Cuckoo, BAD_DAY));
    assert_eq!(twice[0], twice[1]);
    assert_ne!(twice[0].digest, simulated(12, Rule::Cuckoo, BAD_DAY).digest);
    let quiet = simulated(11, Rule::Cuckoo, Faults::default());
    assert_eq!((quiet.finished, quiet.turned_away, quiet.moves), (80, 0, 0));
}

#[test]
fn the_command_prints_the_same_bytes_again() {
    let printed = |more: &[&str]| {
        let mut command = cuckoo();
        command.args(["simulate", "--json", "--requests", "60", "--seed", "5", "--faults", "2"]).args(more);
        command.stdin(Stdio::null()).output().unwrap()
    };
    let rules = ["--rule", "cuckoo", "--rule", "p2c"];
    let first = printed(&rules);
    assert_eq!(first.stdout, printed(&rules).stdout, "{}", String::from_utf8_lossy(&first.stderr));
    let lines = String::from_utf8(first.stdout).unwrap();
    let reports: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named: Vec<_> = reports.iter().map(|report| report["rule"].as_str().unwrap()).collect();
    assert_eq!((named, reports[0]["requests"].as_u64()), (vec!["cuckoo", "p2c"], Some(60)));
    for (wrong, words) in [
        (["--rule", "best"], ["'best'", "llm-d"]),
        (["--miners", "0"], ["--miners", "1..="]),
        (["--rate", "0"], ["--rate", "above 0"]),
        (["--rate", "nan"], ["--rate", "above 0"]),
        (["--trace", "/nowhere"], ["/nowhere", "No such file"]),
    ] {
        let refused = printed(&wrong);
        let why = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && words.iter().all(|word| why.contains(word)), "{wrong:?}: {why}");
        assert!(!why.contains("panicked"), "{why}");
    }
}

#[test]
fn tenants_that_wait_are_compared_whoever_places() {
    let reports = [Rule::Cuckoo, Rule::RoundRobin, Rule::Horde].map(|rule| {
        let miners = vec![HARDWARE[3]; 2];
        let workload = Workload { requests: 150, per_second: 40.0, tenants: 3 };
        run(&Scenario { seed: 2, rule, miners, numerics: 1, jobs: workload.draw(2), faults: Faults::default() })
            .unwrap()
    });
    let longest =
        Workload { requests: 150, per_second: 40.0, tenants: 3 }.draw(2).iter().map(|job| job.prompt.len()).max();
    for report in reports {
        let gap = report.service_gap;
        let memory = 2 * u64::from(HARDWARE[3].blocks()) * 16;
        assert_eq!((gap.tenants, gap.bound), (3, 2 * (2 * memory).max(longest.unwrap() as u64)), "{}", report.rule);
        assert!(gap.tokens > 0 && gap.contended_s > 1.0 && gap.contended_s < report.seconds, "{report:?}");
    }
    let alone = Workload { requests: 20, per_second: 40.0, tenants: 1 };
    let scenario = Scenario {
        seed: 2,
        rule: Rule::Cuckoo,
        miners: vec![HARDWARE[3]],
        numerics: 1,
        jobs: alone.draw(2),
        faults: Faults::default(),
    };
    let gap = run(&scenario).unwrap().service_gap;
    assert_eq!((gap.tokens, gap.contended_s, gap.tenants), (0, 0.0, 1), "nobody is ahead of nobody");
}

#[test]
fn to_record_a_run_changes_nothing_of_it() {
    for rule in [Rule::Cuckoo, Rule::Sglang] {
        let miners: Vec<_> = (0..8).map(|at| HARDWARE[at % 4]).collect();
        let scenario = Scenario { seed: 4, rule, miners, numerics: 1, jobs: jobs(4, 80), faults: BAD_DAY };
        assert_eq!(run(&scenario).unwrap(), record(&scenario).unwrap().0);
        assert_eq!(record(&scenario).unwrap().1, record(&scenario).unwrap().1);
    }
}

#[test]
fn pictures_are_the_same_bytes_again() {
    let folder = tempfile::tempdir().unwrap();
    let ran = |plots: Option<&Path>| {
        let mut command = cuckoo();
        command.args(["simulate", "--json", "--requests", "60", "--seeds", "3", "--faults", "3"]);
        command.args(["--rule", "cuckoo", "--rule", "llm-d"]);
        if let Some(folder) = plots {
            command.arg("--plots").arg(folder);
        }
        command.stdin(Stdio::null()).output().unwrap()
    };
    let pictures = |at: &str| {
        // One level more than there is: folders are made.
        let folder = folder.path().join(at).join("pictures");
        let output = ran(Some(&folder));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let read = |entry: std::io::Result<DirEntry>| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(path).unwrap())
        };
        (std::fs::read_dir(&folder).unwrap().map(read).collect::<BTreeMap<_, _>>(), output.stdout)
    };
    let (first, printed) = pictures("a");
    assert_eq!((&first, &printed), (&pictures("b").0, &ran(None).stdout), "and what is printed stays as it is");
    assert_eq!(pictures("a").0, first, "those of before are replaced");
    let names: Vec<&str> = first.keys().map(String::as_str).collect();
    let all = ["cost", "fairness", "goodput", "itl", "recovery", "service", "ttft", "utilisation"];
    assert_eq!(names, all.map(|name| format!("{name}.svg")));
    assert!(
        first.values().all(|svg| svg.starts_with("<svg ") && svg.contains("llm-d") && svg.contains("seeds 1 to 3"))
    );
}

#[test]
fn pictures_that_cannot_be_written_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let told = |at: &Path| {
        let mut command = cuckoo();
        command.args(["simulate", "--requests", "5", "--plots"]).arg(at);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && !why.contains("panicked"), "{why}");
        why
    };
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let why = told(&file);
    assert!(why.contains("file: the folder cannot be made"), "{why}");
    std::fs::create_dir_all(folder.path().join("taken/cost.svg/in")).unwrap();
    let taken = folder.path().join("taken");
    let why = told(&taken);
    assert!(why.contains("cost.svg: the picture cannot be written"), "{why}");
    let left = std::fs::read_dir(&taken).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(left.into_iter().all(|name| name.ends_with(".svg")), "nothing is left half done");
}

#[test]
fn seeds_that_run_side_by_side_print_what_they_print_alone() {
    let printed = |seed: u64, seeds: u64| {
        let mut command = cuckoo();
        command.args(["simulate", "--json", "--requests", "40", "--faults", "3", "--rule", "cuckoo", "--rule", "rr"]);
        command.args(["--seed", &seed.to_string(), "--seeds", &seeds.to_string()]);
        command.stdin(Stdio::null()).output().unwrap().stdout
    };
    let alone: Vec<u8> = (30..38).flat_map(|seed| printed(seed, 1)).collect();
    assert_eq!(String::from_utf8(printed(30, 8)), String::from_utf8(alone));
}

#[test]
fn a_trace_is_read_as_it_was_written() {
    let jobs = jobs(9, 200);
    let mut written = Vec::new();
    write_trace(&mut written, &jobs).unwrap();
    let read = read_trace(Cursor::new(&written)).unwrap();
    assert_eq!(read.len(), jobs.len());
    for (read, job) in read.iter().zip(&jobs) {
        let facts = |job: &Job| (job.at_us / 1_000, job.prompt.len(), job.output);
        assert_eq!(facts(read), facts(job));
    }
    let shared = |jobs: &[Job], tokens: usize| {
        let firsts: std::collections::HashSet<&[u32]> =
            jobs.iter().filter(|job| job.prompt.len() >= tokens).map(|job| &job.prompt[..tokens]).collect();
        firsts.len()
    };
    assert_eq!(shared(&read, 1_024), shared(&jobs, 1_024), "as many prompts begin alike");
    for (line, word) in [
        ("{}", "timestamp"),
        (r#"{"timestamp":1,"input_length":600,"output_length":5,"hash_ids":[1]}"#, "1 hashes for 600 tokens"),
        (r#"{"timestamp":18446744073709551615,"input_length":9,"output_length":5,"hash_ids":[1]}"#, "a year at most"),
        (r#"{"timestamp":1,"input_length":0,"output_length":5,"hash_ids":[]}"#, "make no request"),
        (r#"{"timestamp":1,"input_length":9,"output_length":0,"hash_ids":[1]}"#, "make no request"),
    ] {
        let error = read_trace(Cursor::new(line)).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("line 1"), "{error}");
    }
}
