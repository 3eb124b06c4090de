//! One picture: its size, heading, colours and letters.

use std::io;

use plotters::backend::SVGBackend;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::PathElement;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, FontTransform, IntoFont, RGBColor, TextStyle, WHITE};

use super::super::rival::Rule;

/// Pictures are so wide, in pixels.
pub(super) const WIDTH: u32 = 1_200;
/// Above what is drawn are the heading and what there is to say.
pub(super) const TOP: u32 = 92;

pub(super) const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
pub(super) const FAINT: RGBColor = RGBColor(0x66, 0x66, 0x66);
pub(super) const LINES: RGBColor = RGBColor(0xe4, 0xe4, 0xe4);

/// One each for [`Rule::ALL`], the first of which is ours, and to be seen.
const COLOURS: [RGBColor; Rule::ALL.len()] = [
    RGBColor(0xd5, 0x4a, 0x00),
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0x94, 0x67, 0xbd),
    RGBColor(0x17, 0xbe, 0xcf),
    RGBColor(0xe3, 0x77, 0xc2),
    RGBColor(0x8c, 0x56, 0x4b),
    RGBColor(0xbc, 0xbd, 0x22),
    RGBColor(0x7f, 0x7f, 0x7f),
    RGBColor(0x39, 0x3b, 0x79),
    RGBColor(0x00, 0x6d, 0x5b),
    RGBColor(0xc2, 0x00, 0x7a),
];

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(super) type Drawn = Result<(), DrawingAreaErrorKind<io::Error>>;

/// A picture that is being drawn.
pub(super) struct Page<'a> {
    root: Area<'a>,
}

/// What is drawn on a page of that height, as SVG.
pub(super) fn drawn(
    height: u32,
    draw: impl FnOnce(&Page<'_>) -> Drawn,
) -> Result<String, DrawingAreaErrorKind<io::Error>> {
    let mut svg = String::new();
    let page = Page { root: SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area() };
    page.root.fill(&WHITE)?;
    draw(&page)?;
    page.root.present()?;
    drop(page);
    Ok(svg)
}

impl Page<'_> {
    /// What the picture shows, and of what.
    pub(super) fn heading(&self, heading: &str, of: &str) -> Drawn {
        let bold = ("sans-serif", 26, FontStyle::Bold).into_font().color(&INK);
        self.root.draw_text(heading, &bold, (20, 14))?;
        self.root.draw_text(of, &letters(17, FAINT), (20, 46))
    }

    /// What there is to say about it.
    pub(super) fn note(&self, words: &str) -> Drawn {
        self.root.draw_text(words, &letters(17, FAINT), (20, 66))
    }
}

impl<'a> Page<'a> {
    /// Where it is drawn.
    pub(super) fn body(&self) -> Area<'a> {
        self.root.margin(TOP as i32, 10, 10, 14)
    }
}

/// The colour of a rule, whichever others are drawn beside it.
pub(super) fn colour(rule: &str) -> RGBColor {
    Rule::ALL.iter().position(|known| known.name() == rule).map_or(INK, |at| COLOURS[at])
}

/// The colour of one line of several that are no rules.
pub(super) fn colour_at(at: usize) -> RGBColor {
    COLOURS[at % COLOURS.len()]
}

/// How thick a rule's line is.
pub(super) fn thickness(rule: &str) -> u32 {
    if rule == Rule::Cuckoo.name() { 4 } else { 2 }
}

pub(super) fn letters(size: u32, colour: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&colour)
}

/// Letters that begin at a point and are as high above as below it.
pub(super) fn beside(size: u32, colour: RGBColor) -> TextStyle<'static> {
    letters(size, colour).pos(Pos::new(HPos::Left, VPos::Center))
}

/// Letters in the middle of which a point is.
pub(super) fn around(size: u32, colour: RGBColor) -> TextStyle<'static> {
    letters(size, colour).pos(Pos::new(HPos::Center, VPos::Center))
}

/// Letters that run downwards from a point.
pub(super) fn downwards(size: u32, colour: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().transform(FontTransform::Rotate90).color(&colour)
}

/// Where each name is said to be which line, from the top of an area downwards.
pub(super) fn legend<'n>(area: &Area<'_>, names: impl Iterator<Item = (&'n str, RGBColor, u32)>) -> Drawn {
    for ((name, colour, thickness), at) in names.zip(0..) {
        let y = 16 + 22 * at;
        let line = vec![(8, y), (36, y)];
        area.draw(&PathElement::new(line, colour.stroke_width(thickness)))?;
        area.draw_text(name, &beside(17, INK), (44, y))?;
    }
    Ok(())
}

/// Words above an area that begin so far from its left, and what is left below them.
pub(super) fn titled<'a>(
    area: &Area<'a>,
    title: &str,
    left: u32,
    colour: RGBColor,
) -> Result<Area<'a>, DrawingAreaErrorKind<io::Error>> {
    let (above, below) = area.split_vertically(24);
    let bold = ("sans-serif", 18, FontStyle::Bold).into_font().color(&colour);
    above.draw_text(title, &bold, (left as i32 + 6, 4))?;
    Ok(below)
}
