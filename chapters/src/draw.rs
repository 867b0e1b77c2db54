//! Drawings as SVG, in one style: curves with a legend, and images in grey.
//!
//! Sizes are in units of the drawing; a viewer scales them to its own.

use std::ops::Range;

use hadal::{Error, Result, files, println};
use plotters::{coord::Shift, prelude::*};

use super::Page;

/// The colours of a chart's curves, distinguishable also by those who do not see red and green apart (Okabe and Ito).
pub const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];

/// A curve: its name in the legend, and its points.
pub struct Curve {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// Through (x, y) for each pair of values.
    pub fn new(name: &str, x: &[f32], y: &[f32]) -> Self {
        Curve { name: name.into(), points: x.iter().zip(y).map(|(&x, &y)| (x.into(), y.into())).collect() }
    }

    /// One value an epoch, from epoch 1 on.
    pub fn by_epoch(name: &str, y: impl IntoIterator<Item = f64>) -> Self {
        Curve { name: name.into(), points: y.into_iter().enumerate().map(|(i, y)| (i as f64 + 1.0, y)).collect() }
    }
}

/// A chart's words and scale.
pub struct Chart<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    /// A logarithmic ordinate, the book's `semilogy`.
    pub log: bool,
    /// Where the curves leave room for the legend.
    pub legend: SeriesLabelPosition,
}

/// Curves are drawn on whole units: twice as many of them as pixels make them smooth.
const FINE: u32 = 2;

/// An error of the drawing library in hadal's words.
pub fn failed(e: impl std::fmt::Display) -> Error {
    Error::invalid("draw", e.to_string())
}

/// What `paint` draws on a white page of that many pixels; prints where it is.
pub fn page(
    page: &Page,
    name: &str,
    size: (u32, u32),
    paint: impl FnOnce(&DrawingArea<SVGBackend, Shift>) -> Result<()>,
) -> Result<()> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        paint(&root)?;
        root.present().map_err(failed)?;
    }
    let path = page.drawing(name)?;
    files::write(&path, text.as_bytes())?;
    println!("drawn: {}", path.display());
    Ok(())
}

/// Curves over common axes, with a legend; prints where it is.
pub fn chart(on: &Page, name: &str, chart: &Chart, curves: &[Curve]) -> Result<()> {
    page(on, name, (640 * FINE, 400 * FINE), |root| chart_on(root, chart, curves))
}

/// [`chart`] on a part of a page.
pub fn chart_on(root: &DrawingArea<SVGBackend, Shift>, chart: &Chart, curves: &[Curve]) -> Result<()> {
    let all =
        || curves.iter().flat_map(|c| &c.points).filter(|p| p.0.is_finite() && p.1.is_finite() && (!chart.log || p.1 > 0.0));
    let (x, y) = (range(all().map(|p| p.0)), range(all().map(|p| p.1)));
    // A few whole numbers (epochs, layers) are labelled one by one, without halves between them.
    let span = x.end - x.start;
    let x_labels = if span <= 12.0 && all().all(|p| p.0.fract() == 0.0) { span as usize + 1 } else { 11 };
    let mut builder = ChartBuilder::on(root);
    let text = |pixels: u32| ("sans-serif", pixels * FINE);
    builder.margin(12 * FINE).x_label_area_size(42 * FINE).y_label_area_size(62 * FINE);
    if !chart.title.is_empty() {
        builder.caption(chart.title, text(16));
    }
    // The two scales are two types, so what follows is written as a macro.
    macro_rules! draw {
        ($y:expr, $format:expr) => {{
            let mut c = builder.build_cartesian_2d(x, $y).map_err(failed)?;
            c.configure_mesh()
                .x_labels(x_labels)
                .x_desc(chart.x)
                .y_desc(chart.y)
                .label_style(text(13))
                .axis_desc_style(text(14))
                .light_line_style(TRANSPARENT)
                .bold_line_style(BLACK.mix(0.15))
                .x_label_formatter(&|v: &f64| short(*v))
                .y_label_formatter(&$format)
                .draw()
                .map_err(failed)?;
            for (i, curve) in curves.iter().enumerate() {
                let style = COLOURS[i % COLOURS.len()].stroke_width(2 * FINE);
                let points = curve.points.iter().copied().filter(|p| p.1.is_finite());
                c.draw_series(LineSeries::new(points, style))
                    .map_err(failed)?
                    .label(&curve.name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 18 * FINE as i32, y)], style));
            }
            c.configure_series_labels()
                .background_style(WHITE.mix(0.85))
                .border_style(BLACK.mix(0.3))
                .label_font(text(13))
                .margin(6 * FINE)
                .legend_area_size(24 * FINE)
                .position(chart.legend.clone())
                .draw()
                .map_err(failed)
        }};
    }
    if chart.log {
        draw!((y.start / 1.5..y.end * 1.5).log_scale(), |v: &f64| format!("{v:.0e}"))
    } else {
        draw!(widened(y), |v: &f64| short(*v))
    }
}

/// Points over axes of their own, on a part of a page.
pub fn scatter_on(root: &DrawingArea<SVGBackend, Shift>, chart: &Chart, points: &[(f64, f64)]) -> Result<()> {
    let text = |pixels: u32| ("sans-serif", pixels * FINE);
    let (x, y) = (range(points.iter().map(|p| p.0)), range(points.iter().map(|p| p.1)));
    let mut builder = ChartBuilder::on(root);
    builder.margin(12 * FINE).x_label_area_size(42 * FINE).y_label_area_size(62 * FINE);
    if !chart.title.is_empty() {
        builder.caption(chart.title, text(16));
    }
    let mut c = builder.build_cartesian_2d(widened(x), widened(y)).map_err(failed)?;
    c.configure_mesh()
        .x_desc(chart.x)
        .y_desc(chart.y)
        .label_style(text(13))
        .axis_desc_style(text(14))
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.15))
        .x_label_formatter(&|v| short(*v))
        .y_label_formatter(&|v| short(*v))
        .draw()
        .map_err(failed)?;
    c.draw_series(points.iter().map(|&p| Circle::new(p, FINE, COLOURS[0].mix(0.6).filled()))).map_err(failed).map(drop)
}

/// An image in grey on a part of a page, 0 white and 1 black, a caption above it.
pub fn image(root: &DrawingArea<SVGBackend, Shift>, caption: &str, pixels: &[f32], width: usize) -> Result<()> {
    let (w, h) = (width.max(1), pixels.len() / width.max(1));
    let (dw, dh) = root.dim_in_pixel();
    let top = if caption.is_empty() { 2 } else { 20 };
    let scale = ((dw as f64 - 4.0) / w as f64).min((dh as f64 - top as f64 - 2.0) / h.max(1) as f64);
    if !caption.is_empty() {
        root.draw(&Text::new(caption.to_string(), (2, 3), ("sans-serif", 14))).map_err(failed)?;
    }
    let at = |row: usize, col: usize| (2 + (col as f64 * scale).round() as i32, top + (row as f64 * scale).round() as i32);
    root.draw(&Rectangle::new([at(0, 0), at(h, w)], BLACK.mix(0.3))).map_err(failed)?;
    for (i, &v) in pixels.iter().enumerate().filter(|(_, v)| **v > 0.02) {
        let grey = (255.0 * (1.0 - v.clamp(0.0, 1.0))) as u8;
        let (row, col) = (i / w, i % w);
        root.draw(&Rectangle::new([at(row, col), at(row + 1, col + 1)], RGBColor(grey, grey, grey).filled())).map_err(failed)?;
    }
    Ok(())
}

/// A bar for each value in 0..=1, its number below; `marked` in another colour.
pub fn bars(root: &DrawingArea<SVGBackend, Shift>, values: &[f32], marked: usize) -> Result<()> {
    let (w, h) = root.dim_in_pixel();
    let (foot, width) = (h as i32 - 22, f64::from(w - 8) / values.len().max(1) as f64);
    let at = |i: usize| 4 + (i as f64 * width).round() as i32;
    for (i, &v) in values.iter().enumerate() {
        let top = foot - (f64::from(v.clamp(0.0, 1.0)) * f64::from(foot - 4)).round() as i32;
        let colour = COLOURS[usize::from(i == marked)];
        root.draw(&Rectangle::new([(at(i) + 1, top), (at(i + 1) - 1, foot)], colour.filled())).map_err(failed)?;
        root.draw(&Text::new(i.to_string(), (at(i) + 1, foot + 5), ("sans-serif", 14))).map_err(failed)?;
    }
    root.draw(&PathElement::new([(4, foot), (w as i32 - 4, foot)], BLACK)).map_err(failed)
}

/// From the least to the greatest value; never empty.
fn range(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (lo, hi) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
    if !lo.is_finite() || !hi.is_finite() {
        return 0.0..1.0;
    }
    if lo == hi { lo - 0.5..hi + 0.5 } else { lo..hi }
}

/// With a little room above and below.
fn widened(r: Range<f64>) -> Range<f64> {
    let room = 0.05 * (r.end - r.start);
    r.start - room..r.end + room
}

/// At most four digits, and no zeros that say nothing.
fn short(v: f64) -> String {
    if v != 0.0 && (v.abs() >= 1e5 || v.abs() < 1e-3) {
        return format!("{v:.1e}");
    }
    let text = format!("{v:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}
