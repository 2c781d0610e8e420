//! Three kinds of plots, as SVG: lines over a logarithmic axis, bars with targets, histograms one above the other.

use std::error::Error;
use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::SegmentValue;
use plotters::prelude::*;

/// Colours by what is shown: redirector's two kinds of services, what it is compared with, and what else there is.
pub(super) const SHARED: RGBColor = RGBColor(37, 99, 235);
pub(super) const OWNED: RGBColor = RGBColor(13, 148, 136);
pub(super) const OTHERS: RGBColor = RGBColor(217, 119, 6);
pub(super) const WHOLE: RGBColor = RGBColor(147, 51, 234);
/// Further ones.
const OTHER_COLOURS: [RGBColor; 6] = [
    RGBColor(79, 70, 229),
    RGBColor(14, 165, 233),
    RGBColor(100, 116, 139),
    RGBColor(219, 39, 119),
    RGBColor(101, 163, 13),
    RGBColor(120, 53, 15),
];
const TARGET: RGBColor = RGBColor(220, 38, 38);
const INK: RGBColor = RGBColor(55, 65, 81);
const GRID: RGBColor = RGBColor(229, 231, 235);

const WIDTH: u32 = 860;
/// Of it, what names of lines take.
const NAMES: u32 = 170;
const BAR_HEIGHT: u32 = 22;
const FONT: &str = "sans-serif";

/// A colour that none of these lines has, if there is one.
pub(super) fn another(series: &[Series], wanted: RGBColor) -> RGBColor {
    let is_free = |colour: &RGBColor| series.iter().all(|one| one.colour != *colour);
    [wanted].into_iter().chain(OTHER_COLOURS).find(is_free).unwrap_or(wanted)
}

/// A line.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) colour: RGBColor,
    pub(super) points: Vec<(f64, f64)>,
}

/// A bar, with marks on it and the target beside it.
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) colour: RGBColor,
    pub(super) value: f64,
    pub(super) marks: Vec<f64>,
    pub(super) target: Option<f64>,
}

/// Values of which it is shown how often they were.
pub(super) struct Distribution {
    pub(super) name: String,
    pub(super) colour: RGBColor,
    pub(super) values: Vec<f64>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

fn svg(height: u32, draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE).map_err(|error| anyhow!("cannot draw: {error}"))?;
        // The errors of the library are not `Send`, since those of other backends might not be.
        draw(&area).map_err(|error| anyhow!("cannot draw: {error}"))?;
        area.present().map_err(|error| anyhow!("cannot draw: {error}"))?;
    }
    Ok(svg)
}

fn font(size: u32) -> TextStyle<'static> {
    (FONT, size, &INK).into_text_style(&(WIDTH, WIDTH))
}

/// From nothing to a little beyond the greatest.
fn room(values: impl Iterator<Item = f64>) -> Range<f64> {
    let most = values.fold(0.0, f64::max);
    0.0..if most > 0.0 { most * 1.12 } else { 1.0 }
}

/// A count as an axis has it: 10k, 4M.
fn short(count: f64) -> String {
    match count {
        count if count >= 1e6 => format!("{}M", count / 1e6),
        count if count >= 1e3 => format!("{}k", count / 1e3),
        count => format!("{count}"),
    }
}

/// Lines over a logarithmic axis.
pub(super) fn lines(x: &str, y: &str, series: &[Series], target: Option<f64>) -> Result<String> {
    let points = || series.iter().flat_map(|one| &one.points);
    let (least, most) = points().fold((f64::MAX, 1.0), |(least, most), (x, _)| (x.min(least), x.max(most)));
    svg(360, |area| {
        let height = room(points().map(|(_, y)| *y).chain(target));
        // Beside the lines, so that names cover none of them.
        let (area, names) = area.split_horizontally(WIDTH - NAMES);
        let mut chart = ChartBuilder::on(&area)
            .margin(14)
            .x_label_area_size(42)
            .y_label_area_size(56)
            .build_cartesian_2d((least.min(most)..(most * 1.05).max(least * 2.0)).log_scale(), height)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .x_desc(x)
            .y_desc(y)
            .x_label_formatter(&|x| short(*x))
            .label_style(font(13))
            .axis_desc_style(font(13))
            .draw()?;
        if let Some(target) = target {
            let line = [(least, target), (most, target)];
            chart.draw_series(DashedLineSeries::new(line, 6, 4, TARGET.stroke_width(1)))?;
        }
        for (Series { name, colour, points }, line) in series.iter().zip((24..).step_by(20)) {
            let colour = *colour;
            chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
            names.draw(&PathElement::new([(4, line), (22, line)], colour.stroke_width(2)))?;
            names.draw(&Text::new(name.clone(), (28, line - 7), font(13)))?;
        }
        Ok(())
    })
}

/// Bars from left to right, one below the other. Marks are ticks on them, targets dashes.
pub(super) fn bars(unit: &str, bars: &[Bar]) -> Result<String> {
    let count = bars.len();
    svg(70 + BAR_HEIGHT * count as u32, |area| {
        let values = bars.iter().flat_map(|bar| bar.marks.iter().copied().chain([bar.value]).chain(bar.target));
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(64)
            .x_label_area_size(42)
            .y_label_area_size(250)
            .build_cartesian_2d(room(values), (0..count - 1).into_segmented())?;
        let label = |at: &SegmentValue<usize>| match at {
            // From below to above is how the axis counts, from above to below how one reads.
            SegmentValue::CenterOf(at) => {
                let bar = (count - 1).checked_sub(*at).and_then(|at| bars.get(at));
                bar.map_or_else(String::new, |bar| bar.label.clone())
            }
            _ => String::new(),
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .x_desc(unit)
            .y_labels(count.max(2))
            .y_label_formatter(&label)
            .label_style(font(13))
            .axis_desc_style(font(13))
            .draw()?;
        let (low, high) = (SegmentValue::Exact, |at: usize| SegmentValue::Exact(at + 1));
        for (bar, at) in bars.iter().zip((0..count).rev()) {
            let mut body = Rectangle::new([(0.0, low(at)), (bar.value, high(at))], bar.colour.mix(0.85).filled());
            body.set_margin(4, 4, 0, 0);
            chart.draw_series([body])?;
            for mark in &bar.marks {
                let line = [(*mark, low(at)), (*mark, high(at))];
                chart.draw_series([PathElement::new(line.to_vec(), INK.stroke_width(1))])?;
            }
            if let Some(target) = bar.target {
                let line = [(target, low(at)), (target, high(at))];
                chart.draw_series([PathElement::new(line.to_vec(), TARGET.stroke_width(2))])?;
            }
            let end = bar.marks.iter().copied().fold(bar.value, f64::max);
            let number = EmptyElement::at((end, SegmentValue::CenterOf(at)))
                + Text::new(super::shape::number(bar.value), (5, -6), font(12));
            chart.draw_series([number])?;
        }
        Ok(())
    })
}

/// How often values were in each part of the same range, one distribution above the other.
pub(super) fn histograms(x: &str, distributions: &[Distribution], parts: usize) -> Result<String> {
    let count = distributions.len();
    svg(95 * count as u32 + 50, |area| {
        let range = room(distributions.iter().flat_map(|one| one.values.iter().copied()));
        let part = range.end / parts as f64;
        let rows: Vec<u32> = (1..count as u32).map(|at| at * 95).collect();
        let areas = area.split_by_breakpoints::<u32, u32, _, _>([], rows);
        for (at, (one, area)) in distributions.iter().zip(&areas).enumerate() {
            let mut counts = vec![0u32; parts];
            for value in &one.values {
                counts[((value / part) as usize).min(parts - 1)] += 1;
            }
            let most = counts.iter().copied().max().unwrap_or(0).max(1);
            let is_last = at + 1 == count;
            let mut chart = ChartBuilder::on(area)
                .margin_left(10)
                .margin_right(20)
                .margin_top(18)
                .x_label_area_size(if is_last { 45 } else { 4 })
                .y_label_area_size(36)
                .build_cartesian_2d(range.clone(), 0.0..f64::from(most) * 1.1)?;
            let mut mesh = chart.configure_mesh();
            mesh.disable_y_mesh().light_line_style(TRANSPARENT).bold_line_style(GRID).axis_style(INK);
            mesh.y_labels(3).y_label_formatter(&|y| format!("{y:.0}")).label_style(font(12)).axis_desc_style(font(13));
            if is_last {
                mesh.x_desc(x);
            } else {
                mesh.x_label_formatter(&|_| String::new());
            }
            mesh.draw()?;
            let bar = |(at, count): (usize, &u32)| {
                let corners = [(at as f64 * part, 0.0), ((at + 1) as f64 * part, f64::from(*count))];
                Rectangle::new(corners, one.colour.mix(0.85).filled())
            };
            chart.draw_series(counts.iter().enumerate().filter(|(_, count)| **count > 0).map(bar))?;
            area.draw(&Text::new(format!("{} ({})", one.name, one.values.len()), (52, 2), font(13)))?;
        }
        Ok(())
    })
}
