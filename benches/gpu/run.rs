//! One run, in order: the contract's checks, the card's limits, the kernels, the models. What is known is written down after each.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cuckoo_kernels::Ops;
use cuckoo_kernels::check::{Case, wrongs};
use cuckoo_kernels::cuda::{Clock, Copies, DataSheet};
use cuckoo_kernels::ops::OpsError;
use serde_json::{Value, json};

use super::cost::Rates;
use super::measure::{Card, Effort, launch_us, measure};
use super::report::{self, Against};
use super::table::{NOT_COVERED, Row};

/// What was found out so far, and until when more is asked for.
pub(crate) struct Record {
    out: Option<PathBuf>,
    deadline: Instant,
    pub(crate) report: Value,
    /// What is wrong or could not be measured.
    pub(crate) wrong: usize,
}

impl Record {
    pub(crate) fn new(out: Option<PathBuf>, time: Duration) -> Self {
        let not_covered: Vec<Value> = NOT_COVERED.iter().map(|(name, why)| json!({"name": name, "why": why})).collect();
        let report = json!({
            "program": "cuckoo benches/gpu", "version": env!("CARGO_PKG_VERSION"), "complete": false, "wrong": 0,
            "checks": null, "limits": null, "rows": [], "models": [], "not_covered": not_covered,
        });
        Self { out, deadline: Instant::now() + time, report, wrong: 0 }
    }

    /// Whether there is time for more.
    pub(crate) fn more(&self) -> bool {
        Instant::now() < self.deadline
    }

    /// One more of `list`.
    pub(crate) fn add(&mut self, list: &str, value: Value, is_right: bool) -> io::Result<()> {
        if let Some(list) = self.report[list].as_array_mut() {
            list.push(value);
        }
        self.wrong += usize::from(!is_right);
        self.save()
    }

    /// Written beside and moved there, so that the file is whole whenever this is stopped.
    pub(crate) fn save(&mut self) -> io::Result<()> {
        self.report["wrong"] = json!(self.wrong);
        let Some(out) = &self.out else { return Ok(()) };
        let beside = out.with_extension("part");
        fs::write(&beside, format!("{:#}\n", self.report))?;
        fs::rename(beside, out)
    }
}

/// Every operation once, on small numbers, against the contract.
pub(crate) fn checks<O: Ops>(ops: &mut O, record: &mut Record) -> io::Result<()> {
    let (mut wrong, cases) = (Vec::new(), Case::all().len());
    for (case, why) in wrongs(ops) {
        println!("WRONG {case}: {why}");
        wrong.push(json!({"what": case.to_string(), "why": why.to_string()}));
    }
    println!("{} of {cases} operations give what the contract says, bit for bit", cases - wrong.len());
    record.wrong += wrong.len();
    record.report["checks"] = json!({"backend": ops.describe(), "cases": cases, "wrong": wrong});
    record.save()
}

/// What the card can do: copies that were measured, launches, and its data sheet.
pub(crate) fn limits<M: Clock>(
    cuda: &mut Card<M>,
    (copies, sheet): (&Copies, Option<&DataSheet>),
    effort: &Effort,
    record: &mut Record,
) -> anyhow::Result<Against> {
    let (in_graph, waited) = launch_us(cuda, effort)?;
    println!(
        "copies {:.0} GB/s within, {:.1} to it, {:.1} from it; a launch {in_graph:.2} us in a graph, {waited:.1} with its host waiting",
        copies.within / 1e9,
        copies.to / 1e9,
        copies.from / 1e9
    );
    record.report["limits"] = json!({
        "copy_bytes_per_s": {"within": copies.within, "to": copies.to, "from": copies.from},
        "launch_us": {"in_graph": in_graph, "waited_for": waited}, "l2_bytes": effort.l2_bytes,
        "sheet": sheet.map(|sheet| json!({
            "name": sheet.name, "bytes_per_s": sheet.bytes_per_s, "bf16_per_s": sheet.bf16_per_s,
            "int8_per_s": sheet.int8_per_s, "fp8_per_s": sheet.fp8_per_s, "source": sheet.source,
        })),
    });
    record.save()?;
    let unknown = f64::INFINITY;
    let measured = Rates {
        bytes_per_s: copies.within,
        link_bytes_per_s: copies.from,
        bf16_per_s: unknown,
        int8_per_s: unknown,
        fp8_per_s: unknown,
    };
    Ok(Against { sheet: sheet.map(Rates::of), measured })
}

/// The kernels, each at its shapes. A device that is lost ends it.
pub(crate) fn kernels<M: Clock>(
    cuda: &mut Card<M>,
    rows: &[Row],
    (effort, against): (&Effort, &Against),
    record: &mut Record,
) -> anyhow::Result<()> {
    for row in rows {
        let began = Instant::now();
        let found = match record.more() {
            true => measure(cuda, (&row.op, row.allowed()), effort),
            false => Err(OpsError::Fault("not measured: no time was left".to_owned())),
        };
        let lost = matches!(found, Err(OpsError::Lost(_)));
        let found = found.map_err(|error| match error {
            OpsError::Fault(why) => why,
            other => other.to_string(),
        });
        let mut value = report::row(row, &found, against);
        value["took_s"] = json!(began.elapsed().as_secs_f64());
        println!("{}", report::line(&value));
        record.add("rows", value, report::is_right(&found))?;
        if lost {
            anyhow::bail!("{}: {}", row.name, found.err().unwrap_or_default());
        }
    }
    Ok(())
}

#[cfg(feature = "cuda")]
pub(crate) use self::gpu::on_gpu;

#[cfg(feature = "cuda")]
mod gpu {
    use cuckoo_kernels::Quant;
    use cuckoo_kernels::cuda::{Cuda, Driver, Gpu, Profile, Replay};

    use super::super::command::Args;
    use super::super::models::{self, Ceilings, FORMATS, PLAN, SHAPES};
    use super::super::table;
    use super::*;

    /// All of it. How many things are wrong or could not be measured.
    pub(crate) fn on_gpu(gpu: &Gpu, args: &Args) -> anyhow::Result<usize> {
        let mut record = Record::new(args.out.clone(), args.seconds);
        let mut driver = Driver::new(gpu)?;
        println!("{}", cuckoo_kernels::cuda::Machine::describe(&driver));
        record.report["gpu"] = json!({
            "name": gpu.name, "capability": [gpu.capability.0, gpu.capability.1], "multiprocessors": gpu.multiprocessors,
            "memory_bytes": gpu.memory_bytes, "driver_cuda": gpu.driver,
        });
        if args.check {
            checks(&mut Cuda::new(Replay::new(driver)), &mut record)?;
            return finished(record);
        }
        let (samples, row) = args.effort();
        let effort = Effort { l2_bytes: driver.l2_bytes()?, samples, row };
        let (copies, sheet) = (driver.measure_copies()?, DataSheet::of(&gpu.name));
        let mut cuda = Cuda::new(Replay::new(driver));
        checks(&mut cuda, &mut record)?;
        let against = limits(&mut cuda, (&copies, sheet.as_ref()), &effort, &mut record)?;
        if !args.no_rows {
            let (exact, fast): (Vec<Row>, Vec<Row>) = table::rows()
                .into_iter()
                .filter(|row| args.wants(&row.name))
                .partition(|row| row.profile == Profile::Exact);
            kernels(&mut cuda, &exact, (&effort, &against), &mut record)?;
            // Its memory is the next one's.
            drop(cuda);
            let mut cuda = Cuda::with_profile(Replay::new(Driver::new(gpu)?), Profile::Fast);
            kernels(&mut cuda, &fast, (&effort, &against), &mut record)?;
        } else {
            drop(cuda);
        }
        if !args.no_models {
            whole_models(
                gpu,
                args,
                &Ceilings { measured_bytes_per_s: copies.within, sheet: against.sheet },
                &mut record,
            )?;
        }
        finished(record)
    }

    fn finished(mut record: Record) -> anyhow::Result<usize> {
        record.report["complete"] = json!(true);
        record.save()?;
        Ok(record.wrong)
    }

    /// Each model in each format, from a file that is there as long as that takes.
    fn whole_models(gpu: &Gpu, args: &Args, ceilings: &Ceilings, record: &mut Record) -> anyhow::Result<()> {
        let folder = args.models_dir.clone().unwrap_or_else(std::env::temp_dir);
        for (shape, quant) in SHAPES.iter().flat_map(|shape| FORMATS.map(|quant| (shape, quant))) {
            let wanted = |profile: &Profile| args.wants(&models::name(shape, quant, *profile));
            let profiles: Vec<Profile> = models::profiles(quant).iter().copied().filter(wanted).collect();
            if profiles.is_empty() {
                continue;
            }
            let path = folder.join(format!("cuckoo-gpu-bench-{}-{}-{quant}.gguf", std::process::id(), shape.name));
            let written = if record.more() { models::write(&path, shape, quant) } else { Ok(()) };
            let done = match written {
                Ok(()) => profiles
                    .iter()
                    .try_for_each(|profile| one_model(gpu, &path, (shape, quant, *profile), ceilings, record)),
                Err(why) => Err(anyhow::anyhow!("{}: {why} (--models-dir names another folder)", path.display())),
            };
            // It may not even have been begun.
            let _ = fs::remove_file(&path);
            done?;
        }
        Ok(())
    }

    fn one_model(
        gpu: &Gpu,
        path: &std::path::Path,
        (shape, quant, profile): (&models::Shape, Quant, Profile),
        ceilings: &Ceilings,
        record: &mut Record,
    ) -> anyhow::Result<()> {
        let name = models::name(shape, quant, profile);
        let found = match record.more() {
            false => Err(anyhow::anyhow!("not measured: no time was left")),
            true => Driver::new(gpu).map_err(anyhow::Error::from).and_then(|driver| {
                let backend = Cuda::with_profile(Replay::new(driver), profile);
                models::measure(path, backend, &PLAN, ceilings, &|| record.more())
            }),
        };
        let is_right = found.is_ok();
        let value = models::report((&name, shape), found);
        models::print(&value);
        record.add("models", value, is_right)?;
        Ok(())
    }
}
