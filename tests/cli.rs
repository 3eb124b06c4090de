//! The command as people use it, and what it says when something is wrong.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::support::{MODEL, Process, cuckoo, shelf, weights};

fn run(home: &Path, args: &[&str]) -> Output {
    cuckoo().args(args).arg("--home").arg(home).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn fails_with(output: &Output, words: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it should fail: {error}");
    assert!(words.iter().all(|w| error.contains(w)), "{words:?} should be in: {error}");
    assert!(!error.contains("panicked"), "{error}");
}

#[track_caller]
fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn with_shelf<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [args, &["--models-dir", shelf().to_str().unwrap()]].concat()
}

#[test]
fn one_question_is_answered_and_paid() {
    let home = tempfile::tempdir().unwrap();
    let args = with_shelf(&["up", "--ask", "What is the capital of France?", "--once", "--max-tokens", "24"]);
    let first = run(home.path(), &args);
    let answer = text(&first);
    assert!(answer.contains("Paris"), "{answer}");
    let figures = String::from_utf8_lossy(&first.stderr).into_owned();
    assert!(figures.contains("tokens/s") && figures.contains("the miner earned 0.0000"), "{figures}");

    let printed = text(&run(home.path(), &[args.as_slice(), &["--json"]].concat()));
    let lines: Vec<Value> = printed.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines[0]["event"], "ready");
    let json = &lines[1];
    assert_eq!(json["text"].as_str().unwrap().trim_end(), answer.trim_end(), "greedy answers repeat");
    let nano = |name: &str| json[name].as_u64().unwrap();
    assert!(nano("miner_nano") > 0);
    assert_eq!(nano("cost_nano"), nano("miner_nano") + nano("author_nano") + nano("network_nano"));
}

#[test]
fn ports_that_are_taken_are_named() {
    let home = tempfile::tempdir().unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (http, quic) = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
    let output = run(home.path(), &with_shelf(&["up", "--quic", "127.0.0.1:0", "--http", &http.to_string()]));
    fails_with(&output, &[&http.port().to_string(), "in use"]);
    let output = run(home.path(), &with_shelf(&["up", "--http", "127.0.0.1:0", "--quic", &quic.to_string()]));
    fails_with(&output, &[&quic.port().to_string(), "another port"]);
}

#[test]
fn models_that_are_not_models_are_refused() {
    let home = tempfile::tempdir().unwrap();
    fails_with(&run(home.path(), &["up", "--model", "gpt-5", "--ask", "x", "--once"]), &["gpt-5", MODEL]);
    fails_with(&run(home.path(), &["models", "pull", "/nowhere/x.gguf"]), &["/nowhere/x.gguf"]);
    let whole = std::fs::read(weights()).unwrap();
    let publish = |name: &str, bytes: &[u8]| {
        let file = home.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        run(home.path(), &["models", "publish", file.to_str().unwrap(), "--name", "x", "--license", "MIT"])
    };
    fails_with(&publish("half.gguf", &whole[..whole.len() / 2]), &["download it again"]);
    fails_with(&publish("text.gguf", b"hello"), &["GGUF"]);
    let mut corrupt = whole[..1 << 20].to_vec();
    corrupt[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    fails_with(&publish("corrupt.gguf", &corrupt), &["tensor count"]);
}

#[test]
fn weights_that_changed_on_the_shelf_are_noticed() {
    let home = tempfile::tempdir().unwrap();
    let models = home.path().join("models");
    for folder in ["weights", "manifests"] {
        std::fs::create_dir_all(models.join(folder)).unwrap();
        for entry in std::fs::read_dir(shelf().join(folder)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), models.join(folder).join(entry.file_name())).unwrap();
        }
    }
    let file = models.join("weights").join(weights().file_name().unwrap());
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, bytes).unwrap();
    let output = run(home.path(), &["up", "--ask", "hi", "--once"]);
    fails_with(&output, &[file.file_name().unwrap().to_str().unwrap()]);
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let output = run(Path::new("/dev/null/cuckoo"), &["models", "list"]);
    fails_with(&output, &["/dev/null/cuckoo", "--home"]);
}

#[test]
fn absurd_arguments_are_refused() {
    let home = tempfile::tempdir().unwrap();
    for args in [
        ["mine", "--join", "nonsense"].as_slice(),
        &["up", "--price-input", "-1"],
        &["up", "--batch", "0"],
        &["up", "--once"],
        &["models", "publish", "x", "--name", "n", "--license", "MIT", "--royalty", "21"],
    ] {
        let output = run(home.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let nobody = run(home.path(), &["ask", "hi"]);
    fails_with(&nobody, &["cuckoo up"]);
    let peer = "0".repeat(64);
    let gone =
        run(home.path(), &["ask", "hi", "--scheduler", &format!("cuckoo://{peer}@127.0.0.1:9"), "--api-key", "k"]);
    fails_with(&gone, &["127.0.0.1:9"]);
}

#[test]
fn a_published_model_pays_its_author() {
    let author = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(weights()).unwrap();
    // Another file with the same model in it: its alignment padding may be longer.
    bytes.push(0);
    let file = author.path().join("mine.gguf");
    std::fs::write(&file, bytes).unwrap();
    let published = run(
        author.path(),
        &[
            "models",
            "publish",
            file.to_str().unwrap(),
            "--name",
            "my-model",
            "--license",
            "Apache-2.0",
            "--royalty",
            "12.5",
        ],
    );
    assert!(text(&published).contains("my-model"));
    assert!(text(&run(author.path(), &["models", "list"])).contains("royalty 12.5 %"));
    let output = run(
        author.path(),
        &["up", "--model", "my-model", "--ask", "Say hello.", "--once", "--json", "--max-tokens", "20"],
    );
    let printed = text(&output);
    let answer: Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    let nano = |name: &str| answer[name].as_u64().unwrap();
    assert_eq!(nano("author_nano"), nano("cost_nano") * 1_250 / 10_000);
}

#[test]
fn the_market_of_one_is_usable_from_the_same_machine() {
    let up = Process::start(&["up", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    up.ready();
    let home = up.home.path();
    assert!(text(&run(home, &["ask", "What is the capital of France?", "--max-tokens", "24"])).contains("Paris"));
    let remote = text(&run(home, &["models", "list", "--remote"]));
    assert!(
        remote.contains(MODEL) && remote.contains("1 replicas") && remote.contains("from 0.01 in / 0.04 out"),
        "{remote}"
    );
    let wallet = text(&run(home, &["wallet"]));
    assert!(wallet.contains("client:") && wallet.contains("miner:") && wallet.contains("settle"), "{wallet}");

    let mut chat = cuckoo();
    chat.args(["chat", "--json", "--max-tokens", "16", "--home"])
        .arg(home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut chat = chat.stderr(Stdio::piped()).spawn().unwrap();
    chat.stdin.take().unwrap().write_all(b"Name a bird.\n\nAnother one.\n/exit\nnot read\n").unwrap();
    let said = text(&chat.wait_with_output().unwrap());
    let turns: Vec<Value> = said.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(turns.len(), 2, "{said}");
    let tokens = |turn: usize, name: &str| turns[turn][name].as_u64().unwrap();
    assert!(tokens(1, "prompt_tokens") > tokens(0, "prompt_tokens") + tokens(0, "completion_tokens"), "history counts");
}
