//! The book's section 4.8.1, "Exploding Gradients": a product of 100 random matrices.

use book::{
    Page,
    draw::{self, Chart, Curve},
};
use hadal::{Result, Tensor, println};
use plotters::prelude::SeriesLabelPosition;

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    let normal = || Tensor::normal(0.0, 1.0, &[4, 4], &page.ctx);
    let mut m = normal()?;
    println!("A single matrix\n{}", rows(&m)?);
    let mut largest = vec![magnitude(&m)?];
    for _ in 0..100 {
        m = m.dot(&normal()?)?;
        largest.push(magnitude(&m)?);
    }
    println!("After multiplying 100 matrices\n{}", rows(&m)?);

    let finite = m.to_vec()?.iter().all(|v| v.is_finite());
    println!("the largest magnitude is about 1e{:.0}; all are finite: {finite}", largest[100].log10());
    page.figure("exploding", "log10 of the largest entry", 0, largest[100].log10())?;
    let chart = Chart {
        title: "",
        x: "matrices multiplied",
        y: "largest magnitude of an entry",
        log: true,
        legend: SeriesLabelPosition::UpperLeft,
    };
    let points = largest.iter().enumerate().map(|(i, &v)| (i as f64, v)).collect();
    draw::chart(page, "exploding_gradients", &chart, &[Curve { name: "product of 4x4 normal matrices".into(), points }])
}

fn magnitude(m: &Tensor) -> Result<f64> {
    m.abs()?.max(&[])?.item()
}

/// As the book prints a matrix, with the digits that all devices agree on: 100 products round differently in the last ones.
fn rows(m: &Tensor) -> Result<String> {
    let lines: Vec<String> = m
        .to_vec()?
        .chunks(4)
        .map(|row| format!("[{}]", row.iter().map(|v| format!("{v:>10.2e}")).collect::<Vec<_>>().join(" ")))
        .collect();
    Ok(format!("[{}]\n<Tensor 4x4 @{}>", lines.join("\n "), m.context()))
}
