//! The command as people use it, and what it says when something is wrong.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::families::draw;
use crate::model::drafting::write_tiny;
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
fn a_draft_model_says_nothing_of_its_own() {
    let home = tempfile::tempdir().unwrap();
    let weights = weights();
    let question = ["up", "--ask", "Count from one to twenty.", "--once", "--max-tokens", "40", "--json"];
    let question =
        with_shelf(&[&question[..], &["--repetition-penalty", "1", "--temperature", "0.8", "--seed", "3"]].concat());
    let ask = |more: &[&str]| {
        let printed = text(&run(home.path(), &[&question, more].concat()));
        let answer: Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
        answer["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(ask(&[]), ask(&["--draft-model", weights.to_str().unwrap()]));

    let other = home.path().join("other.gguf");
    let tokens: Vec<String> = (0..49_152).map(|i| format!("word{i}")).collect();
    write_tiny(&other, "gpt2", &tokens);
    let refused = |more: &[&str]| run(home.path(), &[&question, more].concat());
    fails_with(&refused(&["--draft-model", other.to_str().unwrap()]), &["other.gguf cannot draft", "token 0", "word0"]);
    write_tiny(&other, "llama", &tokens);
    fails_with(&refused(&["--draft-model", other.to_str().unwrap()]), &["kind", "llama", "gpt2"]);
    write_tiny(&other, "gpt2", &tokens[..1_000]);
    fails_with(&refused(&["--draft-model", other.to_str().unwrap()]), &["1000 tokens", "49152"]);
    fails_with(&refused(&["--draft-model", "/nowhere/x.gguf"]), &["/nowhere/x.gguf"]);
    fails_with(
        &refused(&["--draft-model", weights.to_str().unwrap(), "--drafts", "0"]),
        &["cannot draft", "no drafts"],
    );
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

/// A tiny random llama whose vocabulary is the 256 bytes and two ends.
pub(crate) fn folder_model(folder: &Path) {
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    let config = json!({"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 512, "vocab_size": 264,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true});
    put("config.json", config.to_string().as_bytes());
    // GPT-2's spelling: printable bytes are themselves, the others count up from U+0100.
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..256u32).filter(|byte| !printable(byte)).zip(0x100..);
    let bytes = (0..256u32).filter(printable).map(|byte| (byte, byte)).chain(others);
    let vocab: serde_json::Map<String, Value> =
        bytes.map(|(byte, c)| (char::from_u32(c).unwrap().to_string(), byte.into())).collect();
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "special": true});
    let tokenizer = json!({"added_tokens": [special(256, "<user>"), special(257, "<end>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    put("tokenizer.json", tokenizer.to_string().as_bytes());
    put("tokenizer_config.json", br#"{"eos_token":"<end>"}"#);
    put("chat_template.jinja", b"{% for m in messages %}<user>{{ m.content }}{% endfor %}");
    let shapes: [(&str, &[usize]); 11] = [
        ("embed_tokens", &[264, 64]),
        ("norm", &[64]),
        ("layers.0.input_layernorm", &[64]),
        ("layers.0.post_attention_layernorm", &[64]),
        ("layers.0.self_attn.q_proj", &[64, 64]),
        ("layers.0.self_attn.k_proj", &[32, 64]),
        ("layers.0.self_attn.v_proj", &[32, 64]),
        ("layers.0.self_attn.o_proj", &[64, 64]),
        ("layers.0.mlp.gate_proj", &[96, 64]),
        ("layers.0.mlp.up_proj", &[96, 64]),
        ("layers.0.mlp.down_proj", &[64, 96]),
    ];
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in shapes {
        let (name, begin) = (format!("model.{name}.weight"), data.len());
        let values = draw(&name, shape.iter().product()).map(|v| half::bf16::from_f64(v / 4.0));
        data.extend(values.flat_map(half::bf16::to_le_bytes));
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    put("model.safetensors", &[&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat());
}

#[test]
fn a_folder_is_served_and_published_like_a_file() {
    let (home, models) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = models.path().join("Tiny-0.5B");
    std::fs::create_dir(&folder).unwrap();
    folder_model(&folder);
    let path = folder.to_str().unwrap();
    let ask = ["up", "--model", path, "--ask", "Name a bird.", "--once", "--json", "--max-tokens", "8"];
    let answers = [text(&run(home.path(), &ask)), text(&run(home.path(), &ask))];
    let answer = |i: usize| -> Value { serde_json::from_str(answers[i].lines().last().unwrap()).unwrap() };
    assert_eq!(answer(0)["completion_tokens"], 8, "{answers:?}");
    assert_eq!(answer(0)["text"], answer(1)["text"]);
    let listed = text(&run(home.path(), &["models", "list"]));
    assert!(listed.contains("tiny-0.5b") && listed.contains("BF16"), "{listed}");

    let publish = |from: &str| run(home.path(), &["models", "publish", from, "--name", "tiny", "--license", "MIT"]);
    let published = text(&publish(path));
    let weights = published.split("weights ").nth(1).unwrap().lines().next().unwrap();
    assert!(home.path().join(format!("models/weights/{weights}.tar")).is_file());
    // The same files elsewhere are the same model.
    let copy = models.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    folder_model(&copy);
    assert!(text(&publish(copy.to_str().unwrap())).contains(weights));
    for name in ["model.safetensors", "tokenizer.json", "config.json"] {
        std::fs::remove_file(folder.join(name)).unwrap();
        fails_with(&publish(path), &[name, path]);
    }
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

    let schema = home.join("schema.json");
    std::fs::write(&schema, r#"{"type":"object","properties":{"city":{"enum":["Paris","Rome"]}},"required":["city"]}"#)
        .unwrap();
    let ask = |more: &[&str]| {
        let words = [&["ask", "What is the capital of France?", "--max-tokens", "24", "--json"], more].concat();
        serde_json::from_str::<Value>(&text(&run(home, &words))).unwrap()
    };
    let said = |more: &[&str]| ask(more)["text"].as_str().unwrap().to_owned();
    let city: Value = serde_json::from_str(&said(&["--json-schema", schema.to_str().unwrap()])).unwrap();
    assert!(["Paris", "Rome"].contains(&city["city"].as_str().unwrap()), "{city}");
    let numbers = said(&["--regex", "[0-9]{3}"]);
    assert!(numbers.len() == 3 && numbers.bytes().all(|b| b.is_ascii_digit()), "{numbers}");
    assert_eq!(said(&["--choice", "Lyon", "--choice", "Nice"]).len(), 4);
    assert!(!said(&["--bad-word", "Paris"]).contains("Paris"));
    let plain = said(&[]);
    assert_eq!(said(&["--stop", "Paris"]), plain.split("Paris").next().unwrap());
    let seeded = ["--temperature", "1.5", "--seed", "4", "--typical-p", "0.9", "--min-p", "0.01", "--top-k", "50"];
    let drawn = said(&seeded);
    assert!(drawn == said(&seeded) && drawn != plain, "{drawn}");
    let most =
        ["--xtc-probability", "0.5", "--dry-multiplier", "0.8", "--presence-penalty", "0.5", "--logit-bias", "30=-5"];
    let long = ask(&[&most[..], &["--frequency-penalty", "0.1", "--min-tokens", "24"]].concat());
    assert_eq!((long["completion_tokens"].as_u64(), long["finish_reason"].as_str()), (Some(24), Some("length")));
    let scored = ask(&["--logprobs", "2", "--repetition-penalty", "1"]);
    let tokens = scored["logprobs"].as_array().unwrap();
    assert_eq!(tokens.len() as u64, scored["completion_tokens"].as_u64().unwrap());
    assert!(tokens.iter().all(|t| t["rank"] == 1 && t["top"].as_array().unwrap().len() == 2), "{scored}");
    let request = scored["request"].as_str().unwrap();
    let why = text(&run(home, &["explain", request]));
    let said = ["placement 1", "class standard", "taken", "1 replicas", "its cache", "TTFT p95"];
    assert!(said.iter().all(|word| why.contains(word)), "{why}");
    let why: Value = serde_json::from_str(&text(&run(home, &["explain", request, "--json"]))).unwrap();
    let (placement, taken) = (&why["placements"][0], &why["placements"][0]["candidates"][0]);
    assert_eq!(placement["prompt_tokens"], scored["prompt_tokens"], "{why}");
    let cached = taken["cached_tokens"].as_u64().unwrap();
    assert!(cached > 0 && cached.is_multiple_of(16), "the same question was asked before: {why}");
    fails_with(&run(home, &["explain", "req_00000000000000000000000000000000"]), &["not known here"]);
    fails_with(&run(home, &["explain", "me"]), &["names no request"]);
    fails_with(&run(home, &["explain", request, "--api-key", "ck_live_wrong"]), &["API key"]);
    fails_with(&run(home, &["ask", "hi", "--json-schema", "/nowhere/s.json"]), &["/nowhere/s.json"]);
    fails_with(&run(home, &["ask", "hi", "--regex", "("]), &["regex"]);
    fails_with(&run(home, &["ask", "hi", "--top-p", "3"]), &["top_p"]);

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
