//! An axis: where it begins and ends, which values have a line, and how they are written.

use std::io;
use std::ops::Range;

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::drawing::DrawingAreaErrorKind;

use super::page::{Area, FAINT, INK, LINES, letters};

pub(super) struct Scale<'a> {
    from: f64,
    to: f64,
    lines: Vec<f64>,
    label: &'a dyn Fn(f64) -> String,
    /// What it shows.
    pub(super) words: String,
}

impl<'a> Scale<'a> {
    pub(super) fn new(ends: Range<f64>, lines: Vec<f64>, label: &'a dyn Fn(f64) -> String) -> Self {
        Self { from: ends.start, to: ends.end, lines, label, words: String::new() }
    }

    /// From 0 to `to`, with some lines at round values up to `most`.
    pub(super) fn up(most: f64, to: f64, label: &'a dyn Fn(f64) -> String) -> Self {
        let step = round_step(most / 4.0);
        let lines = (0..).map(|at| f64::from(at) * step).take_while(|value| *value <= most * 1.000_1).collect();
        Self::new(0.0..to, lines, label)
    }

    pub(super) fn showing(self, words: &str) -> Self {
        Self { words: words.to_owned(), ..self }
    }
}

/// The largest of 1, 2, 2.5 and 5 times a power of ten that is no larger.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [5.0, 2.5, 2.0].into_iter().find(|times| times * power <= step * 1.000_1).unwrap_or(1.0) * power
}

impl Ranged for Scale<'_> {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        let share = (value - self.from) / (self.to - self.from);
        start + (share * f64::from(end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // There are no lines of lesser weight.
        if hint.weight().allow_light_points() { Vec::new() } else { self.lines.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Scale<'_> {
    fn format_ext(&self, value: &f64) -> String {
        (self.label)(*value)
    }
}

/// Room for what is written beside an axis: left, and below.
#[derive(Clone, Copy)]
pub(super) struct Room(pub(super) u32, pub(super) u32);

type Chart<'a, 's> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<Scale<'s>, Scale<'s>>>;

/// Axes, their lines and their words.
pub(super) fn axes<'a, 's>(
    area: &Area<'a>,
    room: Room,
    x: Scale<'s>,
    y: Scale<'s>,
) -> Result<Chart<'a, 's>, DrawingAreaErrorKind<io::Error>> {
    let (below, beside) = (x.words.clone(), y.words.clone());
    let mut chart = ChartBuilder::on(area)
        .margin(6)
        .margin_right(16)
        .x_label_area_size(room.1)
        .y_label_area_size(room.0)
        .build_cartesian_2d(x, y)?;
    let mut mesh = chart.configure_mesh();
    mesh.bold_line_style(LINES).axis_style(FAINT).label_style(letters(16, INK)).axis_desc_style(letters(16, INK));
    if !below.is_empty() {
        mesh.x_desc(below);
    }
    if !beside.is_empty() {
        mesh.y_desc(beside);
    }
    mesh.draw()?;
    Ok(chart)
}

/// A number of an axis without places that say nothing.
pub(super) fn round(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_at_round_values() {
        let label = |value: f64| round(value);
        let lines =
            |most: f64| Scale::up(most, 2.0 * most, &label).lines.iter().map(|line| label(*line)).collect::<Vec<_>>();
        assert_eq!(lines(100.0), ["0", "25", "50", "75", "100"]);
        assert_eq!(lines(1.0), ["0", "0.25", "0.5", "0.75", "1"]);
        assert_eq!(lines(33.0), ["0", "5", "10", "15", "20", "25", "30"]);
        assert_eq!(lines(96_000.0), ["0", "20000", "40000", "60000", "80000"]);
    }
}
