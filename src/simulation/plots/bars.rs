//! One number a rule: bars beside each other, their values at their ends.

use plotters::element::{PathElement, Rectangle, Text};
use plotters::style::Color;

use super::page::{Drawn, FAINT, INK, Page, TOP, around, beside, colour, titled};
use super::scale::{Room, Scale, axes, round};

/// A panel.
pub(super) struct Bars<'a> {
    /// What is measured, with its unit.
    pub(super) title: String,
    /// Of each rule.
    pub(super) values: Vec<f64>,
    /// What the scale ends at; the largest value where it has no end of its own.
    pub(super) most: Option<f64>,
    /// A value to compare with, and its name; not drawn where it is far beyond all bars.
    pub(super) mark: Option<(f64, &'a str)>,
    /// How a value is written.
    pub(super) label: &'a dyn Fn(f64) -> String,
}

/// Beside the end of a bar there is room for its value, as a share of the scale.
const BEYOND: f64 = 1.3;
/// A mark this many times as far out as the longest bar would leave nothing of the bars.
const MARK_FAR: f64 = 2.0;
/// Above the bars there is room for its name, in bars.
const ABOVE: f64 = 0.7;

pub(super) fn height(rules: usize) -> u32 {
    TOP + 80 + 28 * rules.max(3) as u32
}

pub(super) fn draw(page: &Page<'_>, names: &[&'static str], panels: &[Bars<'_>]) -> Drawn {
    // The same in all panels, or their rows would not be level.
    let above = if panels.iter().any(|bars| bars.mark.is_some()) { ABOVE } else { 0.0 };
    let areas = page.body().split_evenly((1, panels.len()));
    for (area, bars) in areas.iter().zip(panels) {
        let longest = bars.values.iter().copied().fold(0.0, f64::max);
        let mark = bars.mark.filter(|(mark, _)| *mark <= longest * MARK_FAR);
        let longest = longest.max(mark.map_or(0.0, |(mark, _)| mark));
        let most = bars.most.unwrap_or(if longest > 0.0 { longest } else { 1.0 });
        let rows = names.len().max(1) as f64;
        let middles = (0..names.len()).map(|at| at as f64 + 0.5).collect();
        let name = |row: f64| names.get(row as usize).map_or(String::new(), |name| (*name).to_owned());
        let (x, y) = (Scale::up(most, most * BEYOND, &round), Scale::new(rows..-above, middles, &name));
        let room = Room(86, 26);
        let mut chart = axes(&titled(area, &bars.title, room.0, INK)?, room, x, y)?;
        for ((name, value), row) in names.iter().zip(&bars.values).zip(0..) {
            let row = f64::from(row);
            let bar = Rectangle::new([(0.0, row + 0.18), (*value, row + 0.82)], colour(name).filled());
            let value = Text::new((bars.label)(*value), (value + 0.02 * most, row + 0.5), beside(16, INK));
            chart.draw_series([bar])?;
            chart.draw_series([value])?;
        }
        if let Some((mark, words)) = mark {
            chart.draw_series([PathElement::new(vec![(mark, 0.0), (mark, rows)], INK)])?;
            chart.draw_series([Text::new(words.to_owned(), (mark, -above / 2.0), around(15, FAINT))])?;
        }
    }
    Ok(())
}
