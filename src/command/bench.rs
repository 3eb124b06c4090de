//! `cuckoo bench`: figures about this machine and about endpoints. It judges nothing: trust ratios within one run.

mod ceiling;
mod device;
mod endpoint;
mod online;
mod rig;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::args::{BenchVerb, Common};

pub(super) async fn run(common: &Common, verb: BenchVerb, began: Instant) -> anyhow::Result<()> {
    match verb {
        BenchVerb::Device(args) => device::run(common, args, began).await,
        BenchVerb::Online(args) => online::run(common, args).await,
    }
}

/// Measured values, in ascending order.
#[derive(Clone, Debug, Default)]
struct Spread(Vec<f64>);

impl Spread {
    /// The value that a share `q` of all values does not exceed; 0 where there is none.
    fn quantile(&self, q: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * q).round() as usize).copied().unwrap_or(0.0)
    }

    fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len().max(1) as f64
    }

    /// Durations in units of `unit`.
    fn of(times: &[Duration], unit: Duration) -> Self {
        times.iter().map(|t| t.as_secs_f64() / unit.as_secs_f64()).collect()
    }

    /// Median and 99th percentile, for machines.
    fn tail(&self) -> Value {
        json!({"p50": self.median(), "p99": self.quantile(0.99)})
    }
}

impl FromIterator<f64> for Spread {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let spread: Spread = [5.0, 1.0, 3.0].into_iter().collect();
        assert_eq!([0.0, 0.5, 1.0].map(|q| spread.quantile(q)), [1.0, 3.0, 5.0]);
        assert_eq!(spread.mean(), 3.0);
        assert_eq!((Spread::default().median(), Spread::default().mean()), (0.0, 0.0));
    }
}
