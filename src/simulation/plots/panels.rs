//! What goes on over time: one panel a rule. Each has the time that its run took, or the slowest would leave the others no room.

use plotters::series::LineSeries;
use plotters::style::Color;

use super::page::{Drawn, INK, Page, TOP, colour, colour_at, legend, titled};
use super::scale::{Room, Scale, axes, round};

/// What is drawn.
pub(super) struct Panels {
    pub(super) panels: Vec<Panel>,
    /// What the lines are, where a rule has more than one.
    pub(super) names: Vec<String>,
    /// What the upright axis shows, and where it ends, for all.
    pub(super) y: (&'static str, f64),
}

/// What is drawn of one rule.
pub(super) struct Panel {
    pub(super) rule: &'static str,
    /// What is written above.
    pub(super) title: String,
    pub(super) seconds: f64,
    pub(super) lines: Vec<Vec<(f64, f64)>>,
}

const ACROSS: usize = 3;

pub(super) fn height(rules: usize) -> u32 {
    TOP + 24 + 210 * rules.div_ceil(ACROSS).max(2) as u32
}

pub(super) fn draw(page: &Page<'_>, drawn: &Panels) -> Drawn {
    let body = page.body();
    let (area, names) = body.split_horizontally(if drawn.names.is_empty() { 1_180 } else { 1_040 });
    legend(&names, drawn.names.iter().zip(0..).map(|(name, at)| (name.as_str(), colour_at(at), 2)))?;
    let across = drawn.panels.len().clamp(1, ACROSS);
    let areas = area.split_evenly((drawn.panels.len().div_ceil(across).max(1), across));
    for (area, Panel { rule, title, seconds, lines }) in areas.iter().zip(&drawn.panels) {
        let seconds = seconds.max(1e-3);
        let (x, y) = (Scale::up(seconds, seconds, &round), Scale::up(drawn.y.1, drawn.y.1, &round));
        let (x, y) = (x.showing("seconds"), y.showing(drawn.y.0));
        // Where colours tell lines apart, they do not tell rules.
        let (is_one, room) = (drawn.names.is_empty(), Room(70, 42));
        let title = titled(area, title, room.0, if is_one { colour(rule) } else { INK })?;
        let mut chart = axes(&title, room, x, y)?;
        for (line, at) in lines.iter().zip(0..) {
            let own = if is_one { colour(rule) } else { colour_at(at) };
            chart.draw_series(LineSeries::new(line.iter().copied(), own.stroke_width(if is_one { 1 } else { 2 })))?;
        }
    }
    Ok(())
}
