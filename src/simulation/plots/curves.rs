//! How much of something was within each time: one curve a rule, over times from the shortest to the longest.

use plotters::element::{PathElement, Text};
use plotters::series::LineSeries;
use plotters::style::Color;

use super::page::{Drawn, FAINT, Page, TOP, colour, downwards, legend, thickness};
use super::scale::{Room, Scale, axes};

/// What is drawn.
pub(super) struct Curves {
    /// Of each rule, milliseconds and the share that was within them, from none to all.
    pub(super) curves: Vec<(&'static str, Vec<(f64, f64)>)>,
    /// Times to compare with, and their names.
    pub(super) marks: Vec<(f64, &'static str)>,
    /// What the times are, and what there are shares of.
    pub(super) words: (&'static str, &'static str),
}

/// Shares that have a line of their own.
const SHARES: [f64; 6] = [0.0, 0.25, 0.5, 0.75, 0.9, 1.0];

/// The same for however many rules: they share their axes.
pub(super) fn height(_: usize) -> u32 {
    TOP + 500
}

pub(super) fn draw(page: &Page<'_>, drawn: &Curves) -> Drawn {
    let (area, names) = page.body().split_horizontally(1_030);
    legend(&names, drawn.curves.iter().map(|(name, _)| (*name, colour(name), thickness(name))))?;
    let points = || drawn.curves.iter().flat_map(|(_, points)| points).map(|(ms, _)| ms.log10());
    let from = points().fold(f64::MAX, f64::min).floor();
    let to = points().fold(f64::MIN, f64::max).ceil();
    let decades = (from as i32..=to as i32).map(f64::from).collect();
    let (time, percent) = (|decade: f64| duration(10f64.powf(decade)), |share: f64| format!("{:.0} %", 100.0 * share));
    let x = Scale::new(from..to, decades, &time).showing(drawn.words.0);
    let y = Scale::new(0.0..1.0, SHARES.to_vec(), &percent).showing(drawn.words.1);
    let mut chart = axes(&area, Room(70, 44), x, y)?;
    for (ms, name) in drawn.marks.iter().filter(|(ms, _)| (from..to).contains(&ms.log10())) {
        let x = ms.log10();
        chart.draw_series([PathElement::new(vec![(x, 0.0), (x, 1.0)], FAINT.mix(0.6))])?;
        chart.draw_series([Text::new(format!("{name} aims at {}", duration(*ms)), (x, 0.42), downwards(14, FAINT))])?;
    }
    // Ours last, above the others.
    for (name, points) in drawn.curves.iter().rev() {
        let line = points.iter().map(|(ms, share)| (ms.log10(), *share));
        chart.draw_series(LineSeries::new(line, colour(name).stroke_width(thickness(name))))?;
    }
    Ok(())
}

fn duration(ms: f64) -> String {
    match ms {
        ms if ms < 999.0 => format!("{} ms", (ms * 10.0).round() / 10.0),
        ms => format!("{} s", (ms / 100.0).round() / 10.0),
    }
}
