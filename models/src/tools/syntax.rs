//! The ways in which models write calls, as data.

use serde_json::Value;

use crate::tokenizer::Tokenizer;

/// One way of writing calls:
///
/// ```text
/// text trigger list_open  call_open BODY call_close  between call_open BODY call_close …  list_close text
/// ```
///
/// White space may stand between any two parts, whatever of it a writer puts there, and what is empty is not there.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Syntax {
    /// What it is called on the network.
    pub name: &'static str,
    /// Ends text and begins calls.
    pub(super) trigger: &'static str,
    /// Calls may also begin without the trigger, where the output begins with a call.
    pub(super) bare: bool,
    pub(super) list_open: &'static str,
    pub(super) call_open: &'static str,
    pub(super) body: Body,
    pub(super) call_close: &'static str,
    /// Between calls of a list; `None` where each call has a trigger of its own.
    pub(super) between: Option<&'static str>,
    pub(super) list_close: &'static str,
    /// An output may have more than one call.
    pub many: bool,
    /// The model's template insists on ids of nine letters and digits.
    pub(super) short_ids: bool,
}

/// How a call names its tool.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum Body {
    /// `{"name": "…", "<this>": {…}}`
    Object(&'static str),
    /// `name <this> {…}`
    Named(&'static str),
}

/// What the rows below begin with.
const PLAIN: Syntax = Syntax {
    name: "",
    trigger: "",
    bare: false,
    list_open: "",
    call_open: "",
    body: Body::Object("arguments"),
    call_close: "",
    between: None,
    list_close: "",
    many: true,
    short_ids: false,
};

/// Every syntax that is known, the most particular ones first.
pub static SYNTAXES: &[Syntax] = &[
    // Hermes, Qwen 2.5 and 3, QwQ, Granite 4; and what models are told that have no syntax of their own.
    Syntax { name: "hermes", trigger: "<tool_call>", list_open: "\n", list_close: "\n</tool_call>", ..PLAIN },
    // Mistral 7B v0.3, Nemo, Large.
    Syntax {
        name: "mistral",
        trigger: "[TOOL_CALLS]",
        list_open: "[",
        between: Some(", "),
        list_close: "]",
        short_ids: true,
        ..PLAIN
    },
    // Mistral's newer ones: Devstral, Ministral 3.
    Syntax { name: "mistral-args", trigger: "[TOOL_CALLS]", body: Body::Named("[ARGS]"), short_ids: true, ..PLAIN },
    // DeepSeek R1 and V3, by llama.cpp's template for them.
    Syntax {
        name: "deepseek",
        trigger: "<｜tool▁calls▁begin｜>",
        call_open: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        body: Body::Named("\n```json\n"),
        call_close: "\n```<｜tool▁call▁end｜>",
        between: Some("\n"),
        list_close: "<｜tool▁calls▁end｜>",
        ..PLAIN
    },
    // Apriel.
    Syntax {
        name: "apriel",
        trigger: "<tool_calls>",
        list_open: "[",
        between: Some(", "),
        list_close: "]</tool_calls>",
        ..PLAIN
    },
    // MiniMax M1.
    Syntax {
        name: "minimax",
        trigger: "<tool_calls>",
        list_open: "\n",
        between: Some("\n"),
        list_close: "\n</tool_calls>",
        ..PLAIN
    },
    // Nemotron Nano 2.
    Syntax {
        name: "nemotron",
        trigger: "<TOOLCALL>",
        list_open: "[",
        between: Some(", "),
        list_close: "]</TOOLCALL>",
        ..PLAIN
    },
    // Functionary 3.1.
    Syntax { name: "functionary", trigger: "<function=", body: Body::Named(">"), list_close: "</function>", ..PLAIN },
    // Llama 3.1 to 3.3, which is to make one call at a time.
    Syntax {
        name: "llama",
        trigger: "<|python_tag|>",
        bare: true,
        body: Body::Object("parameters"),
        many: false,
        ..PLAIN
    },
];

impl Syntax {
    /// The syntax of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SYNTAXES.iter().find(|syntax| syntax.name == name)
    }

    /// What models are told that have no syntax of their own.
    pub(super) fn generic() -> &'static Self {
        &SYNTAXES[0]
    }

    /// Calls as a model writes them: names and arguments, which are JSON objects.
    pub fn write(&self, calls: &[(&str, &str)]) -> String {
        let mut out = String::new();
        let trigger = if self.bare { "" } else { self.trigger };
        for (i, (name, arguments)) in calls.iter().enumerate() {
            match self.between.filter(|_| i > 0) {
                Some(between) => out.push_str(between),
                None => {
                    // Markers on lines of their own are lines apart.
                    let apart = if i > 0 && self.list_open == "\n" { "\n" } else { "" };
                    out.extend([apart, trigger, self.list_open]);
                }
            }
            out.push_str(self.call_open);
            match self.body {
                Body::Object(key) => {
                    out.push_str(&format!("{{\"name\": {}, \"{key}\": {arguments}}}", Value::from(*name)));
                }
                Body::Named(separator) => out.extend([name, separator, arguments]),
            }
            out.push_str(self.call_close);
            if self.between.is_none() || i + 1 == calls.len() {
                out.push_str(self.list_close);
            }
        }
        out
    }

    /// The vocabulary's control tokens that are parts of this syntax, which an output's text must show.
    pub fn marks(&self, tokenizer: &Tokenizer) -> Vec<(u32, String)> {
        let separator = match self.body {
            Body::Object(_) => "",
            Body::Named(separator) => separator,
        };
        let between = self.between.unwrap_or_default();
        let parts =
            [self.trigger, self.list_open, self.call_open, separator, self.call_close, between, self.list_close];
        let control = (0..tokenizer.vocab_len() as u32).filter(|token| tokenizer.is_special(*token));
        let named = control.filter_map(|token| Some((token, std::str::from_utf8(tokenizer.token_bytes(token)?).ok()?)));
        named
            .filter(|(_, name)| !name.is_empty() && parts.iter().any(|part| part.contains(name)))
            .map(|(token, name)| (token, name.to_owned()))
            .collect()
    }

    /// A name for a call, in the form that this syntax's template wants; the same for the same `request` and `index`.
    pub fn call_id(&self, request: &[u8], index: u32) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(request).update(&index.to_le_bytes());
        let digest = hasher.finalize();
        let digits = digest
            .as_bytes()
            .iter()
            .map(|b| char::from(b"0123456789abcdefghijklmnopqrstuvwxyzABCD"[usize::from(*b) % 40]));
        match self.short_ids {
            true => digits.take(9).collect(),
            false => format!("call_{}", digits.take(24).collect::<String>()),
        }
    }

    /// An id that came from elsewhere, as this syntax's template wants it.
    pub(super) fn own_id(&self, id: &str) -> String {
        let fits = !self.short_ids || (id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()));
        if fits { id.to_owned() } else { self.call_id(id.as_bytes(), 0) }
    }
}
