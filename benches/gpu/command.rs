//! The command line, and which GPU it is about. Without one it says why, writes nothing and ends with exit status 2.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use cuckoo_kernels::cuda::{Gpu, NoGpu, gpus};
use serde_json::Value;

use super::models::{FORMATS, SHAPES, name, profiles};
use super::table::{NOT_COVERED, rows};

/// Something does not compute what it should, or could not be measured.
const WRONG: u8 = 1;
/// There is no GPU, or the command line makes no sense.
const NO_GPU: u8 = 2;

/// Checks the CUDA kernels on a GPU, measures what it can do, each kernel, and whole models.
#[derive(Clone, Debug, Parser)]
#[command(name = "gpu", about, long_about = None)]
pub(crate) struct Args {
    /// Write all that was found out to this file, as JSON, after each row
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Print the rows as JSON and end; needs no GPU
    #[arg(long)]
    pub(crate) list: bool,
    /// The number of the GPU
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) device: usize,
    /// Only rows and models whose name contains one of these
    #[arg(long, value_name = "TEXT,…", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Leave out the kernels
    #[arg(long)]
    pub(crate) no_rows: bool,
    /// Leave out the models
    #[arg(long)]
    pub(crate) no_models: bool,
    /// Check alone, without a clock: for a memory checker, under which times say nothing
    #[arg(long, conflicts_with_all = ["no_rows", "no_models"])]
    pub(crate) check: bool,
    /// Samples of a row, where there is time for them
    #[arg(long, value_name = "N", default_value = "21", value_parser = clap::value_parser!(u16).range(3..=1001))]
    samples: u16,
    /// Seconds for the samples of a row
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    row_seconds: Duration,
    /// Seconds after which nothing more is begun
    #[arg(long, value_name = "S", default_value = "540", value_parser = seconds)]
    pub(crate) seconds: Duration,
    /// Where models are written while they are measured; the largest has 17 GB
    #[arg(long, value_name = "DIR")]
    pub(crate) models_dir: Option<PathBuf>,
    /// What cargo tells benches
    #[arg(long, hide = true)]
    bench: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "a number of seconds, e.g. 0.5".to_owned())?;
    match number > 0.0 && number <= 86_400.0 {
        true => Ok(Duration::from_secs_f64(number)),
        false => Err("more than nothing and at most a day".to_owned()),
    }
}

impl Args {
    /// Whether a row or model of this name is asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| name.contains(text.as_str()))
    }

    /// Samples of a row, and the time for them.
    pub(crate) fn effort(&self) -> (usize, Duration) {
        (usize::from(self.samples), self.row_seconds)
    }
}

/// The names of all models that can be measured.
pub(crate) fn models() -> Vec<String> {
    let named = |(shape, quant)| profiles(quant).iter().map(move |profile| name(shape, quant, *profile));
    SHAPES.iter().flat_map(|shape| FORMATS.map(|quant| (shape, quant))).flat_map(named).collect()
}

/// Everything that would be measured.
pub(crate) fn list() -> Value {
    let not_covered: Vec<Value> =
        NOT_COVERED.iter().map(|(name, why)| serde_json::json!({"name": name, "why": why})).collect();
    let rows: Vec<Value> = rows().iter().map(|row| row.json()).collect();
    serde_json::json!({"rows": rows, "models": models(), "not_covered": not_covered})
}

/// Does what the command line says.
pub(crate) fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    if args.list {
        println!("{:#}", list());
        return ExitCode::SUCCESS;
    }
    let known = rows().iter().any(|row| args.wants(&row.name)) || models().iter().any(|model| args.wants(model));
    if !known {
        eprintln!("gpu: no row or model is called like that; --list names all of them");
        return ExitCode::from(NO_GPU);
    }
    let gpu = match chosen(gpus(), args.device) {
        Ok(gpu) => gpu,
        Err(why) => {
            eprintln!("gpu: {why}");
            return ExitCode::from(NO_GPU);
        }
    };
    match on(&gpu, &args) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(wrong) => {
            eprintln!("gpu: {wrong} things are wrong or could not be measured");
            ExitCode::from(WRONG)
        }
        Err(error) => {
            eprintln!("gpu: {error:#}");
            ExitCode::from(WRONG)
        }
    }
}

/// The one with that number.
pub(crate) fn chosen(found: Result<Vec<Gpu>, NoGpu>, number: usize) -> Result<Gpu, String> {
    let found = found.map_err(|why| why.to_string())?;
    let numbers: Vec<String> = found.iter().map(|gpu| gpu.ordinal.to_string()).collect();
    found
        .into_iter()
        .find(|gpu| gpu.ordinal == number)
        .ok_or_else(|| format!("there is no GPU {number}; there are {}", numbers.join(", ")))
}

#[cfg(feature = "cuda")]
fn on(gpu: &Gpu, args: &Args) -> anyhow::Result<usize> {
    super::run::on_gpu(gpu, args)
}

/// None is ever found.
#[cfg(not(feature = "cuda"))]
fn on(_: &Gpu, _: &Args) -> anyhow::Result<usize> {
    Err(NoGpu::NotBuilt.into())
}
