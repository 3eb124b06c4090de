//! What an operation costs at least, and how long that takes on a card: arithmetic, nothing measured.

use cuckoo_kernels::cuda::DataSheet;

/// The unit that does most of an operation's arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Matrix units on bf16.
    Bf16,
    /// Matrix units on 8-bit integers.
    Int8,
    /// Matrix units on FP8.
    Fp8,
}

/// Bytes that must move at least, and operations that must be done (a multiply-add counts as two).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    /// Between the card's memory and the card.
    pub(crate) bytes: u64,
    /// Between the card and its host.
    pub(crate) link_bytes: u64,
    /// Multiplications and additions.
    pub(crate) flops: u64,
    /// What does them.
    pub(crate) unit: Unit,
}

/// What a card can do, by a data sheet or by measurement. What is not known is infinite: it bounds nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rates {
    pub(crate) bytes_per_s: f64,
    pub(crate) link_bytes_per_s: f64,
    pub(crate) bf16_per_s: f64,
    pub(crate) int8_per_s: f64,
    pub(crate) fp8_per_s: f64,
}

impl Rates {
    /// Those of a data sheet; no sheet tells of the host.
    pub(crate) fn of(sheet: &DataSheet) -> Self {
        Self {
            bytes_per_s: sheet.bytes_per_s,
            link_bytes_per_s: f64::INFINITY,
            bf16_per_s: sheet.bf16_per_s,
            int8_per_s: sheet.int8_per_s,
            // Where there are no such units, values are computed with as bf16.
            fp8_per_s: sheet.fp8_per_s.unwrap_or(sheet.bf16_per_s),
        }
    }

    fn of_unit(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Bf16 => self.bf16_per_s,
            Unit::Int8 => self.int8_per_s,
            Unit::Fp8 => self.fp8_per_s,
        }
    }

    /// The least time, in microseconds; `None` where nothing known bounds it.
    pub(crate) fn floor_us(&self, cost: &Cost) -> Option<f64> {
        let times = [
            cost.bytes as f64 / self.bytes_per_s,
            cost.link_bytes as f64 / self.link_bytes_per_s,
            cost.flops as f64 / self.of_unit(cost.unit),
        ];
        let longest = times.into_iter().fold(0.0, f64::max);
        (longest > 0.0).then_some(1e6 * longest)
    }

    /// Whether arithmetic bounds it rather than memory.
    pub(crate) fn is_bound_by_arithmetic(&self, cost: &Cost) -> bool {
        cost.flops as f64 / self.of_unit(cost.unit) > cost.bytes as f64 / self.bytes_per_s
    }
}

/// What is asked of a row: a share of the least time that its table gives, or a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// Percent of the roofline.
    Percent(f64),
    /// Microseconds at most.
    Micros(f64),
}

impl Target {
    /// Whether `us` is as fast as asked, on a card on which the roofline is `floor_us`.
    pub(crate) fn is_met(self, us: f64, floor_us: f64) -> bool {
        match self {
            Self::Percent(percent) => 100.0 * floor_us / us >= percent,
            Self::Micros(most) => us <= most,
        }
    }

    /// As the table writes it.
    pub(crate) fn text(self) -> String {
        match self {
            Self::Percent(percent) => format!("{percent} %"),
            Self::Micros(most) => format!("<= {most} us"),
        }
    }
}
