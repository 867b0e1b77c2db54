//! The book's section 4.8.1, "Symmetry": equal hidden units get equal gradients, so that they stay one unit.

use book::{
    Page,
    draw::{self, Chart, Curve},
};
use hadal::{
    Result, Tensor, Trainer, autograd,
    init::{Constant, Init, Normal},
    loss::L2,
    nn::{Dense, Sequential},
    optim::Sgd,
    println,
};
use plotters::prelude::SeriesLabelPosition;

const HIDDEN: usize = 4;

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    let steps = if page.quick { 300 } else { 3000 };
    // A wave with more bends than one tanh has.
    let x = Tensor::arange(-1.0, 1.0, 0.02, &page.ctx)?.reshape(&[-1, 1])?;
    let y = Tensor::from_vec(x.to_vec()?.iter().map(|v| (4.0 * v).sin()).collect(), &x.shape(), &page.ctx)?;

    permuted(page, &x)?;
    let constant = train(page, "constant weights", Constant(0.5), &x, &y, steps)?;
    let random = train(page, "random weights", Normal(1.0), &x, &y, steps)?;
    let chart = Chart { title: "", x: "step", y: "loss", log: true, legend: SeriesLabelPosition::LowerLeft };
    let curve = |name: &str, losses: Vec<f64>| Curve {
        name: name.into(),
        points: losses.into_iter().enumerate().map(|(i, l)| (10.0 * i as f64, l)).collect(),
    };
    draw::chart(page, "symmetry", &chart, &[curve("constant weights", constant), curve("random weights", random)])
}

fn net(page: &Page, init: impl Init + 'static) -> Result<(Sequential, Vec<Tensor>)> {
    let net = Sequential::new().add(Dense::new(HIDDEN).in_units(1).tanh()).add(Dense::new(1).in_units(HIDDEN));
    net.initialize(init, &page.ctx)?;
    let values = net.parameters().iter().map(|p| p.data()).collect::<Result<Vec<_>>>()?;
    Ok((net, values))
}

/// Exchanging hidden units, with their inputs' and outputs' weights, changes nothing.
fn permuted(page: &Page, x: &Tensor) -> Result<()> {
    let (net, values) = net(page, Normal(1.0))?;
    let before = net.forward(x)?;
    let order = Tensor::from_vec(vec![2i64, 0, 3, 1], &[HIDDEN], &page.ctx)?;
    for (value, axis) in values.iter().zip([0, 0, 1]) {
        value.set_array(value.detach().take(&order, axis)?.array())?;
    }
    let apart = (net.forward(x)? - before)?.abs()?.max(&[])?.item()?;
    println!("hidden units exchanged: the outputs agree within 1e-6: {}", apart < 1e-6);
    Ok(())
}

/// The loss at every tenth step.
fn train(page: &Page, name: &str, init: impl Init + 'static, x: &Tensor, y: &Tensor, steps: usize) -> Result<Vec<f64>> {
    println!("{name}:");
    let (net, values) = net(page, init)?;
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.1));
    let mut losses = Vec::new();
    for step in 0..steps {
        let l = autograd::record(|| L2::new().forward(&net.forward(x)?, y))?;
        l.backward()?;
        if step == 0 {
            println!("  gradients of the hidden weights: {}", rounded(&values[0].grad()?)?);
        }
        trainer.step(x.len())?;
        if step % 10 == 0 {
            losses.push(l.mean(&[])?.item()?);
        }
    }
    println!("  hidden weights after {steps} steps: {}", rounded(&values[0])?);
    println!("  the {HIDDEN} hidden units are one and the same: {}", spread(&values[0])? == 0.0 && spread(&values[2])? == 0.0);
    let last = losses.last().copied().unwrap_or(f64::NAN);
    println!("  loss {last:.2}");
    page.figure(name, "loss", steps, last)?;
    Ok(losses)
}

/// The greatest difference of two elements.
fn spread(x: &Tensor) -> Result<f64> {
    (x.max(&[])? - x.min(&[])?)?.item()
}

fn rounded(x: &Tensor) -> Result<String> {
    Ok(format!("{:.1?}", x.to_vec()?))
}
