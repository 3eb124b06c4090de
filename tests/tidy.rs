//! Checks on the source itself. A rule that a machine can check is not left to reviewers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_CHARS_MAX: usize = 160;

/// Which of our crates each of our crates may use.
const DIRECTION: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("models", &[]),
    ("kernels", &[]),
    ("runtime", &["kernels", "models", "wire"]),
    ("scheduler", &["models", "wire"]),
    (".", &["kernels", "models", "runtime", "scheduler", "wire"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["src", "wire", "models", "kernels", "runtime", "scheduler", "tests", "benches", "fuzz"]
            .map(|f| root().join(f))
            .into();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().unwrap() != "target" {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    assert!(files.len() > 50, "the tree was found");
    files
}

#[test]
fn dependencies_point_one_way() {
    for (folder, allowed) in DIRECTION {
        let manifest = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        let used: BTreeSet<String> = ["dependencies", "build-dependencies"]
            .iter()
            .filter_map(|kind| manifest.get(*kind)?.as_table())
            .flat_map(|t| t.keys())
            .filter_map(|name| name.strip_prefix("cuckoo-").map(str::to_owned))
            .collect();
        let allowed: BTreeSet<String> = allowed.iter().map(|s| (*s).to_owned()).collect();
        assert!(used.is_subset(&allowed), "{folder} uses {used:?}, may use {allowed:?}");
    }
}

#[test]
fn files_and_lines_are_short_and_say_what_they_are() {
    for (path, text) in sources() {
        let lines: Vec<&str> = text.lines().collect();
        let is_made_by_bindgen = path.ends_with("kernels/src/cuda/args.rs");
        assert!(lines.len() <= LINES_MAX || is_made_by_bindgen, "{path:?} has {} lines: find a seam", lines.len());
        let is_part_of_a_test = path.ends_with("tests.rs") || path.components().any(|c| c.as_os_str() == "tests");
        let header = lines.first().is_some_and(|l| l.starts_with("//!"))
            || is_part_of_a_test
            || lines.first() == Some(&"#![no_main]");
        assert!(header, "{path:?} does not begin with what it is");
        for (i, line) in lines.iter().enumerate() {
            assert!(line.chars().count() <= LINE_CHARS_MAX, "{path:?}:{} is too long", i + 1);
            assert!(line.trim_end() == *line, "{path:?}:{} ends in blanks", i + 1);
        }
    }
}

/// Functions of a file: line of the head, and lines from there to the closing brace at the same indentation.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let is_head = |line: &str| {
        let code = line.trim_start();
        !code.starts_with("//") && code.split('(').next().is_some_and(|h| h.split_whitespace().any(|w| w == "fn"))
    };
    let mut found = Vec::new();
    for (from, head) in lines.iter().enumerate().filter(|(_, l)| is_head(l)) {
        let at_indent = |l: &&str| !l.trim().is_empty() && indent(l) == indent(head);
        let rest = || lines.iter().enumerate().skip(from);
        // The signature ends in a brace, or in a semicolon where there is no body.
        let Some((body, _)) = rest().find(|(_, l)| at_indent(l) && l.ends_with(['{', ';', '}'])) else { continue };
        if !lines[body].ends_with('{') {
            continue;
        }
        if let Some((to, _)) =
            rest().skip(body - from + 1).find(|(_, l)| at_indent(l) && l.trim_start().starts_with('}'))
        {
            found.push((from + 1, to - from + 1));
        }
    }
    found
}

#[test]
fn functions_are_short() {
    let mut seen = 0;
    for (path, text) in sources() {
        for (line, length) in functions(&text) {
            assert!(length <= FUNCTION_LINES_MAX, "{path:?}:{line} has {length} lines: divide it");
            seen += 1;
        }
    }
    assert!(seen > 500, "{seen} functions were found");
    assert_eq!(functions("fn a(\n) {\n    b();\n}\nfn c();\nfn d() {}\n"), vec![(1, 4)]);
}

#[test]
fn nothing_is_left_open() {
    let words = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
        concat!("#[ig", "nore"),
    ];
    for (path, text) in sources() {
        for word in words {
            assert!(!text.contains(word), "{path:?} contains {word}");
        }
    }
}

#[test]
fn unsafe_stays_in_the_kernels() {
    for folder in ["wire", "models", "runtime", "scheduler"] {
        let lib = std::fs::read_to_string(root().join(folder).join("src/lib.rs")).unwrap();
        assert!(lib.contains("#![forbid(unsafe_code)]"), "{folder}");
    }
    for file in ["src/lib.rs", "src/main.rs"] {
        assert!(std::fs::read_to_string(root().join(file)).unwrap().contains("#![forbid(unsafe_code)]"), "{file}");
    }
}

#[test]
fn the_architecture_fits_in_a_sitting() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert!(text.lines().count() <= 260);
    let unbounded =
        sources().into_iter().filter(|(p, t)| !p.starts_with("tests") && t.contains(concat!("unbounded", "_channel")));
    assert_eq!(unbounded.map(|(p, _)| p).collect::<Vec<_>>(), Vec::<PathBuf>::new(), "every queue has a bound");
}

#[test]
fn complaints_name_tests_that_exist() {
    let text = std::fs::read_to_string(root().join("docs/COMPLAINTS.md")).unwrap();
    let rows = text.lines().filter(|l| l.starts_with("| ") && l.as_bytes()[2].is_ascii_digit()).count();
    assert_eq!(rows, 15);
    let mut named = 0;
    for name in text.split('`').skip(1).step_by(2) {
        let (path, test) = name.split_once("::").map_or((name, None), |(path, test)| (path, Some(test)));
        if !path.ends_with(".rs") {
            continue;
        }
        let source = std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        if let Some(test) = test {
            let (before, _) = source.split_once(&format!("fn {test}(")).unwrap_or_else(|| panic!("no test {name}"));
            let attribute = before.rsplit("\n\n").next().unwrap();
            assert!(attribute.contains("#[test]") || attribute.contains("::test"), "{name} is not a test");
            named += 1;
        }
    }
    assert!(named >= 15, "{named} tests are named");
}
