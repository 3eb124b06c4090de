//! `cuckoo doctor`: which devices there are, whether they compute what they should, and why others cannot be used.

use std::num::NonZero;

use anyhow::bail;
use cuckoo_kernels::cuda::{NoGpu, Profile, gpus};
use cuckoo_kernels::ops::OpsError;
use cuckoo_runtime::{DeviceKind, Examined, examine};
use serde_json::{Value, json};

use crate::args::Common;

pub(super) async fn run(common: &Common) -> anyhow::Result<()> {
    let (found, no_gpu) = tokio::task::spawn_blocking(all).await?;
    if common.json {
        println!("{}", as_json(&found, no_gpu.as_ref()));
    } else {
        print(&found, no_gpu.as_ref());
    }
    let sound = |found: &Found| found.1.as_ref().is_ok_and(|examined| examined.wrong.is_empty());
    match (found.iter().all(sound), no_gpu) {
        (false, _) => bail!("a device does not compute what it should: do not mine with it"),
        // Somebody's driver is there and does not work, which they will want to know.
        (true, Some(why @ NoGpu::Broken(_))) => bail!(why),
        (true, _) => Ok(()),
    }
}

/// A device and what was found out about it.
type Found = (DeviceKind, Result<Examined, OpsError>);

/// Everything that this machine has.
fn all() -> (Vec<Found>, Option<NoGpu>) {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let mut kinds = vec![DeviceKind::Cpu { threads }];
    let no_gpu = match gpus() {
        Ok(gpus) => {
            kinds.extend(gpus.into_iter().map(|gpu| DeviceKind::Cuda(gpu, Profile::Exact)));
            None
        }
        Err(why) => Some(why),
    };
    let examined = |kind: DeviceKind| {
        let found = examine(&kind);
        (kind, found)
    };
    (kinds.into_iter().map(examined).collect(), no_gpu)
}

fn print(found: &[Found], no_gpu: Option<&NoGpu>) {
    println!("cuckoo {}", env!("CARGO_PKG_VERSION"));
    for (kind, examined) in found {
        println!("\n  {kind}");
        if let DeviceKind::Cuda(gpu, _) = kind {
            println!(
                "    compute capability {}.{}, {} multiprocessors, {} of memory; the driver knows CUDA {}.{}",
                gpu.capability.0,
                gpu.capability.1,
                gpu.multiprocessors,
                gib(gpu.memory_bytes),
                gpu.driver / 1000,
                gpu.driver % 1000 / 10
            );
        }
        match examined {
            Err(why) => println!("    cannot be used: {why}"),
            Ok(examined) => print_examined(examined),
        }
    }
    if let Some(why) = no_gpu {
        println!("\n  no GPU: {why}");
    }
}

fn print_examined(examined: &Examined) {
    println!("    {}; {} for models", examined.backend, gib(examined.free_bytes));
    if let Some(copies) = &examined.copies {
        let rate = |bytes_per_s: f64| format!("{:.1} GB/s", bytes_per_s / 1e9);
        let (within, to, from) = (rate(copies.within), rate(copies.to), rate(copies.from));
        println!("    copies {within} within it, {to} to it, {from} from it");
    }
    let right = examined.checks - examined.wrong.len();
    println!("    {right} of {} operations give what the contract says, bit for bit", examined.checks);
    for (what, why) in &examined.wrong {
        println!("    WRONG {what}: {why}");
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

fn as_json(found: &[Found], no_gpu: Option<&NoGpu>) -> Value {
    let device = |(kind, examined): &Found| {
        let mut device = json!({"device": kind.to_string()});
        if let DeviceKind::Cuda(gpu, _) = kind {
            device["capability"] = json!([gpu.capability.0, gpu.capability.1]);
            device["multiprocessors"] = json!(gpu.multiprocessors);
            device["memory_bytes"] = json!(gpu.memory_bytes);
            device["driver_cuda"] = json!(gpu.driver);
        }
        match examined {
            Err(why) => device["error"] = json!(why.to_string()),
            Ok(examined) => {
                device["backend"] = json!(examined.backend);
                device["free_bytes"] = json!(examined.free_bytes);
                device["checks"] = json!(examined.checks);
                let wrong = |(what, why): &(String, String)| json!({"what": what, "why": why});
                device["wrong"] = examined.wrong.iter().map(wrong).collect();
                if let Some(copies) = &examined.copies {
                    device["copy_bytes_per_s"] = json!({"within": copies.within, "to": copies.to, "from": copies.from});
                }
            }
        }
        device
    };
    let devices: Vec<Value> = found.iter().map(device).collect();
    json!({"devices": devices, "no_gpu": no_gpu.map(ToString::to_string)})
}
