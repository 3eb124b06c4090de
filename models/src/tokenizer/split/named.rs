//! Which stages the names in GGUF files stand for, and which expressions in `tokenizer.json`.

use super::{Set, Splitter, Stage};

const IDEOGRAPHS: Stage = Stage::Run { set: Set::DeepSeekIdeographs, space: false };
const CONTRACTED: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";

impl Splitter {
    /// The splitter that `tokenizer.ggml.pre` names; `None` for names that are not known.
    pub(in crate::tokenizer) fn named(name: &str) -> Option<Self> {
        let stages = match name {
            "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" | "exaone4" | "gigachat"
            | "a.x-4.0" | "mellum" | "modern-bert" | "jina-v2-code" | "roberta-bpe" => vec![Stage::Gpt2],
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
                vec![Stage::Numbers { max: 1 }, Stage::Gpt2]
            }
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
            | "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" => vec![Stage::Words { digits: 3, marks: false }],
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "stablelm2" | "hunyuan" | "megrez" | "solar-open" | "grok-2" => {
                vec![Stage::Words { digits: 1, marks: false }]
            }
            "qwen35" => vec![Stage::Words { digits: 1, marks: true }],
            "gpt-4o" | "llama4" | "kanana2" | "minimax-m2" => vec![Stage::Cased { digits: 3, contractions: true }],
            "tekken" => vec![Stage::Cased { digits: 1, contractions: false }],
            "deepseek-llm" => vec![
                Stage::Breaks,
                Stage::Run { set: Set::CasedLetters, space: true },
                Stage::Run { set: Set::DeepSeekMarks, space: true },
                Stage::TrailingSpace,
                IDEOGRAPHS,
                Stage::Numbers { max: usize::MAX },
            ],
            "deepseek-coder" => vec![
                Stage::Breaks,
                Stage::Run { set: Set::Letters, space: true },
                Stage::Run { set: Set::Punctuation, space: true },
                IDEOGRAPHS,
                Stage::Numbers { max: 1 },
            ],
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" => {
                vec![Stage::Numbers { max: 3 }, Stage::Run { set: Set::Cjk, space: false }, Stage::DeepSeek3]
            }
            "falcon" => {
                vec![Stage::Run { set: Set::AnyPunctuation, space: false }, Stage::Gpt2, Stage::ThreeDigits]
            }
            "poro-chat" | "bloom" | "gpt3-finnish" => vec![Stage::Run { set: Set::NoStops, space: true }],
            "viking" => vec![Stage::Run { set: Set::NoStops, space: true }, Stage::Numbers { max: 1 }],
            _ => return None,
        };
        Some(Self { stages })
    }

    /// Whether models with that pre-tokenizer take a word that is itself a token as it is.
    pub(in crate::tokenizer) fn keeps_words(name: &str) -> bool {
        const KEEPING: &[&str] = &["glm4", "tekken"];
        KEEPING.contains(&name) || Self::adds_bos(name)
    }

    /// Whether models with that pre-tokenizer have BOS in front where the file does not say.
    pub(in crate::tokenizer) fn adds_bos(name: &str) -> bool {
        const ADDING: &[&str] =
            &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"];
        ADDING.contains(&name)
    }
}

impl Stage {
    /// The stage that a regular expression of a `tokenizer.json` stands for; `None` where it is not known.
    pub(in crate::tokenizer) fn of_regex(regex: &str) -> Option<Self> {
        let end = r"|\s*[\r\n]+|\s+(?!\S)|\s+";
        // Some files spell breaks out, others escape them; some name one digit as a count.
        let regex = regex.replace('\r', r"\r").replace('\n', r"\n").replace(r"\p{N}{1}|", r"\p{N}|");
        let words = |letters: &str, not: &str, digits: &str| {
            format!(r"{CONTRACTED}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?[^\s{not}\p{{N}}]+[\r\n]*{end}")
        };
        let cased = |ending: &str, digits: &str| {
            let (upper, lower) = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]");
            let lead = r"[^\r\n\p{L}\p{N}]?";
            format!(
                r"{lead}{upper}*{lower}+{ending}|{lead}{upper}+{lower}*{ending}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{end}"
            )
        };
        let (three, one) = (r"\p{N}{1,3}", r"\p{N}");
        let known = [
            (words(r"\p{L}", r"\p{L}", three), Self::Words { digits: 3, marks: false }),
            (words(r"\p{L}", r"\p{L}", one), Self::Words { digits: 1, marks: false }),
            (words(r"[\p{L}\p{M}]", r"\p{L}\p{M}", one), Self::Words { digits: 1, marks: true }),
            (cased(&format!("{CONTRACTED}?"), three), Self::Cased { digits: 3, contractions: true }),
            (cased("", one), Self::Cased { digits: 1, contractions: false }),
            (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+".to_owned(), Self::Gpt2),
            (three.to_owned(), Self::Numbers { max: 3 }),
            (one.to_owned(), Self::Numbers { max: 1 }),
            (format!("{one}+"), Self::Numbers { max: usize::MAX }),
            (r"[0-9][0-9][0-9]".to_owned(), Self::ThreeDigits),
            (r"[\r\n]".to_owned(), Self::Breaks),
            (r"\s+$".to_owned(), Self::TrailingSpace),
            (r"\s?\p{L}+".to_owned(), Self::Run { set: Set::Letters, space: true }),
            (r"\s?\p{P}+".to_owned(), Self::Run { set: Set::Punctuation, space: true }),
            ("[一-龥ࠀ-一가-\u{d7ff}]+".to_owned(), IDEOGRAPHS),
            ("[一-龥\u{3040}-ゟ゠-ヿ]+".to_owned(), Self::Run { set: Set::Cjk, space: false }),
            (
                format!(
                    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{{|}}~][A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*{end}"##
                ),
                Self::DeepSeek3,
            ),
        ];
        known.into_iter().find(|(text, _)| *text == regex).map(|(_, stage)| stage)
    }
}
