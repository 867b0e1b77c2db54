//! The book's section 4.8.1, "Vanishing Gradients": a sigmoid and its gradient.

use book::{
    Page,
    draw::{self, Chart, Curve},
};
use hadal::{Result, Tensor, autograd, println};
use plotters::prelude::SeriesLabelPosition;

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    let x = Tensor::arange(-8.0, 8.0, 0.1, &page.ctx)?.attach_grad();
    let y = autograd::record(|| x.sigmoid())?;
    y.backward()?;

    let (xs, ys, gradient) = (x.to_vec()?, y.to_vec()?, x.grad()?.to_vec()?);
    for at in [-8.0, -4.0, 0.0, 4.0] {
        let i = xs.partition_point(|&v| v < at - 0.05);
        println!("x = {at:4}: sigmoid {:.4}, gradient {:.6}", ys[i], gradient[i]);
    }
    let chart = Chart { title: "", x: "x", y: "", log: false, legend: SeriesLabelPosition::UpperLeft };
    draw::chart(page, "vanishing_gradients", &chart, &[Curve::new("sigmoid", &xs, &ys), Curve::new("gradient", &xs, &gradient)])
}
