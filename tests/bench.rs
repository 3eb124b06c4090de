//! `cuckoo bench`: its figures are there and possible. How large they are is nobody's promise, so no test asks.

use serde_json::Value;

use crate::support::{Up, cuckoo, weights};

fn lines(args: &[&str]) -> Vec<Value> {
    let output = cuckoo().arg("bench").args(args).arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn positive(of: &Value, names: &[&str]) {
    for name in names {
        assert!(of[name].as_f64().is_some_and(|v| v > 0.0 && v.is_finite()), "{name} in {of}");
    }
}

#[test]
fn a_device_is_measured() {
    let model = weights();
    let model = model.to_str().unwrap();
    let small = ["device", "--model", model, "--prompt", "8", "--generate", "3", "--repetitions", "2"];
    let printed = lines(&[&small[..], &["--batch", "1,3", "--threads", "1,2", "--step-tokens", "8"]].concat());
    let of = |event: &str| printed.iter().filter(|l| l["event"] == event).collect::<Vec<_>>();
    positive(of("first_token")[0], &["since_start_ms", "load_ms", "step_ms", "prompt_tokens"]);
    assert_eq!(of("limits").len(), 2, "one for each number of threads");
    of("limits").iter().for_each(|l| positive(l, &["n_threads", "read_bytes_per_s", "int8_ops_per_s"]));
    positive(of("memory")[0], &["weight_bytes", "kv_bytes_per_token"]);
    let tests = of("test");
    let names: Vec<&str> = tests.iter().map(|t| t["test"].as_str().unwrap()).collect();
    assert_eq!(names, ["pp8", "tg3", "tg3"].repeat(2));
    for test in &tests {
        positive(test, &["avg_ts", "bandwidth_percent", "int8_percent", "step_cpu_us", "n_threads", "batch"]);
        positive(&test["step_ms"], &["p50", "p99"]);
        let rates = &test["tokens_per_s"];
        let [min, median, max] = ["min", "median", "max"].map(|n| rates[n].as_f64().unwrap());
        assert!(0.0 < min && min <= median && median <= max, "{rates}");
        assert_eq!(test["samples_ts"].as_array().unwrap().len(), 2);
    }
    for (one, two) in tests[..3].iter().zip(&tests[3..]) {
        assert_eq!(one["digest"], two["digest"], "threads change no token");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_said_before_a_model_is_looked_for() {
    if cuckoo_kernels::cuda::gpus().is_ok() {
        return;
    }
    let output = cuckoo().args(["bench", "device", "--device", "cuda:0", "--model", "/nowhere"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("no GPU can be used"), "{said}");
}

#[test]
fn depth_is_before_what_is_timed() {
    let model = weights();
    let small = ["device", "--model", model.to_str().unwrap(), "--prompt", "4", "--generate", "2", "--no-limits"];
    let printed = lines(&[&small[..], &["--depth", "0,5", "--step-tokens", "4", "--repetitions", "1"]].concat());
    let tests: Vec<&Value> = printed.iter().filter(|l| l["event"] == "test").collect();
    let names: Vec<&str> = tests.iter().map(|t| t["test"].as_str().unwrap()).collect();
    assert_eq!(names, ["pp4", "tg2", "pp4 @ d8", "tg2 @ d5"], "a prompt's depth is a number of whole steps");
    assert!(tests.iter().all(|t| t["bandwidth_percent"].is_null()));
}

#[test]
fn an_endpoint_is_measured() {
    let up = Up::shared();
    let small = ["--prompt", "20", "--generate", "5", "--requests", "6", "--concurrency", "3"];
    let args = ["online", "--url", &up.http, "--api-key", &up.api_key, "--model", &up.model];
    for rate in [&[][..], &["--rate", "50"]] {
        let printed = lines(&[&args[..], &small, rate].concat());
        let online = &printed[0];
        assert_eq!((online["completed"].as_u64(), online["failed"].as_u64()), (Some(6), Some(0)), "{online}");
        positive(online, &["duration", "output_throughput", "median_ttft_ms", "p99_ttft_ms", "total_input_tokens"]);
        assert!(online["total_output_tokens"].as_u64().is_some_and(|n| (6..=30).contains(&n)), "{online}");
        assert!(online["p99_itl_ms"].as_f64() >= online["median_itl_ms"].as_f64());
    }
}

#[test]
fn a_wrong_key_is_said_before_anything_is_measured() {
    let up = Up::shared();
    let args = ["bench", "online", "--url", &up.http, "--api-key", "wrong", "--model", &up.model];
    let output = cuckoo().args(args).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("401"), "{error}");
}
