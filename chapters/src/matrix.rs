//! Small matrices as the book's figures show them: cells with numbers.

use hadal::{Result, Tensor};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    Page,
    draw::{COLOURS, failed, page},
};

/// A small matrix on a part of a page, a caption above it: each cell shows its number, on blue where it is positive and on
/// orange where it is negative, the darker the nearer it is to the largest magnitude.
pub fn matrix(root: &DrawingArea<SVGBackend, Shift>, caption: &str, x: &Tensor) -> Result<()> {
    let (&[h, w], values) = (&x.shape()[..], x.to_vec()?) else {
        return Err(failed(format!("{:?} is no matrix", x.shape())));
    };
    let full = values.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    root.draw(&Text::new(caption.to_string(), (2, 2), ("sans-serif", 15))).map_err(failed)?;
    let (dw, dh) = root.dim_in_pixel();
    let side = (dw.saturating_sub(6) as i32 / w.max(1) as i32).min(dh.saturating_sub(26) as i32 / h.max(1) as i32).clamp(1, 44);
    for (i, &v) in values.iter().enumerate() {
        let (row, col) = ((i / w) as i32, (i % w) as i32);
        let corners = [(2 + col * side, 24 + row * side), (2 + (col + 1) * side, 24 + (row + 1) * side)];
        let strength = f64::from((v.abs() / full).clamp(0.0, 1.0));
        let colour = if v < 0.0 { COLOURS[1] } else { COLOURS[0] };
        let shade = |c: u8| (255.0 - strength * (255.0 - f64::from(c))) as u8;
        root.draw(&Rectangle::new(corners, RGBColor(shade(colour.0), shade(colour.1), shade(colour.2)).filled()))
            .map_err(failed)?;
        root.draw(&Rectangle::new(corners, BLACK.mix(0.35))).map_err(failed)?;
        let ink = if strength > 0.7 { WHITE } else { BLACK };
        let number = format!("{v:.2}");
        let number = number.trim_end_matches('0').trim_end_matches('.');
        let number = if number == "-0" { "0" } else { number }.replace('-', "−");
        let size = if number.chars().count() > 4 { side / 3 } else { side * 2 / 5 };
        let style = ("sans-serif", size).into_font().color(&ink).pos(Pos::new(HPos::Center, VPos::Center));
        let centre = (2 + col * side + side / 2, 24 + row * side + side / 2);
        root.draw(&Text::new(number, centre, style)).map_err(failed)?;
    }
    Ok(())
}

/// Matrices side by side on one page; prints where it is.
pub fn side_by_side(on: &Page, name: &str, panels: &[(&str, &Tensor)]) -> Result<()> {
    let columns = |x: &Tensor| x.shape().last().copied().unwrap_or(1).max(1) as u32;
    let width = |(caption, x): &(&str, &Tensor)| (columns(x) * 44 + 30).max(caption.chars().count() as u32 * 8 + 16);
    let rows = panels.iter().map(|(_, x)| x.shape().first().copied().unwrap_or(1) as u32).max().unwrap_or(1);
    let total = panels.iter().map(width).sum::<u32>() + 24;
    page(on, name, (total, rows * 44 + 56), |root| {
        let mut rest = root.margin(12, 12, 12, 12);
        for panel in panels {
            let (left, right) = rest.split_horizontally(width(panel));
            matrix(&left, panel.0, panel.1)?;
            rest = right;
        }
        Ok(())
    })
}
