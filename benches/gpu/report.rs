//! What was found out, as JSON and as lines for a person.

use serde_json::{Value, json};

use super::cost::{Rates, Target};
use super::measure::Measured;
use super::table::Row;

/// Rates that a row is held against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Against {
    pub(crate) sheet: Option<Rates>,
    /// Copies that were measured here; arithmetic is measured by the peers.
    pub(crate) measured: Rates,
}

/// A row as JSON, whether it could be measured or not.
pub(crate) fn row(row: &Row, measured: &Result<Measured, String>, against: &Against) -> Value {
    let mut value = row.json();
    let found = match measured {
        Err(why) => {
            value["error"] = json!(why);
            return value;
        }
        Ok(found) => found,
    };
    let (us, cost, roofline) = (found.times.median(), row.op.cost(), row.roofline());
    let percent = |floor: Option<f64>| floor.map(|floor| 100.0 * floor / us);
    // Where arithmetic is the bound, a share of the copies would say nothing.
    let by_arithmetic = against.sheet.is_some_and(|sheet| sheet.is_bound_by_arithmetic(&cost));
    let of_measured = if by_arithmetic { None } else { percent(against.measured.floor_us(&cost)) };
    let floor = against.sheet.and_then(|sheet| sheet.floor_us(&roofline));
    let is_met = |target: Option<Target>| target.zip(floor).map(|(target, floor)| target.is_met(us, floor));
    value["us"] = json!({"median": us, "min": found.times.us.first(), "max": found.times.us.last()});
    value["samples"] = json!(found.times.us.len());
    value["operations_per_sample"] = json!(found.times.each);
    value["launches_per_sample"] = json!(found.times.launches);
    value["clock"] = json!(if found.times.launches > 0 { "card, graph" } else { "host, answer" });
    value["sets"] = json!(found.sets);
    value["bound"] = json!(if by_arithmetic { "arithmetic" } else { "memory" });
    value["gb_per_s"] = json!(cost.bytes as f64 / us / 1e3);
    value["tflops"] = json!(cost.flops as f64 / us / 1e6);
    value["percent_of_measured"] = json!(of_measured);
    value["percent_of_sheet"] = json!(against.sheet.and_then(|sheet| percent(sheet.floor_us(&cost))));
    value["percent_of_roofline"] = json!(percent(floor));
    value["first_milestone_met"] = json!(is_met(row.first));
    value["impossible_met"] = json!(is_met(row.impossible));
    value["check"] = found.checked.json();
    value["stays"] = json!(found.stays);
    value
}

/// Whether a row was computed as it should be.
pub(crate) fn is_right(measured: &Result<Measured, String>) -> bool {
    measured.as_ref().is_ok_and(|found| found.checked.is_right() && found.stays != Some(false))
}

/// A row for a person.
pub(crate) fn line(value: &Value) -> String {
    let name = value["name"].as_str().unwrap_or_default();
    if let Some(why) = value["error"].as_str() {
        return format!("{name:<46} {why}");
    }
    let number = |of: &Value| of.as_f64().map_or_else(|| "–".to_owned(), |v| format!("{v:.1}"));
    let right = match (value["check"]["right"].as_bool(), value["stays"].as_bool()) {
        (Some(true), None | Some(true)) if value["check"]["differ"] == 0 => "equal",
        (Some(true), None | Some(true)) => "near",
        (Some(true), Some(false)) => "MOVES",
        _ => "WRONG",
    };
    format!(
        "{name:<46} {:>10} us {:>8} GB/s {:>8} TFLOP/s {:>6} % of copies {:>6} % of roofline  {right}",
        number(&value["us"]["median"]),
        number(&value["gb_per_s"]),
        number(&value["tflops"]),
        number(&value["percent_of_measured"]),
        number(&value["percent_of_roofline"]),
    )
}
