//! The last exercise of the book's section 4.8: can diverging terms be fixed after the fact? LARS (You, Gitman and Ginsburg
//! 2017), which scales every layer's step to its norm, with large batches and with gradients that explode.

use book::{
    Page,
    draw::{self, Chart, Curve},
};
use hadal::{
    Result, Tensor, Trainer, autograd,
    init::{Init, Msra, Normal},
    loss::SoftmaxCrossEntropy,
    nn::{Dense, Role, Sequential},
    optim::{Lars, Optimizer, Sgd},
    println,
    train::{EpochReport, RunOptions, train_run},
};
use plotters::prelude::SeriesLabelPosition;

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    ratios(page)?;
    exploding(page)?;
    large_batches(page)
}

/// Layers of `width` with relus and an output layer.
fn mlp(page: &Page, hidden: usize, width: usize, init: impl Init + 'static) -> Result<Sequential> {
    let mut net = Sequential::new();
    for i in 0..hidden {
        net.push(Dense::new(width).in_units(if i == 0 { 784 } else { width }).relu());
    }
    net.push(Dense::new(10).in_units(width));
    net.initialize(init, &page.ctx)?;
    Ok(net)
}

/// What one rate for all layers has to cope with: norms of weights and gradients at the start.
fn ratios(page: &Page) -> Result<()> {
    let net = mlp(page, 5, 64, Msra::new())?;
    let (train, _) = page.fashion_mnist(256, None, 256)?;
    if let Some(batch) = train.epoch(0)?.next() {
        let (x, y) = batch?;
        let l = autograd::record(|| SoftmaxCrossEntropy::new().forward(&net.forward(&x)?, &y)?.mean(&[]))?;
        l.backward()?;
    }
    println!("{:<16}{:>10}{:>10}{:>12}", "", "|w|", "|dw|", "|w| / |dw|");
    for p in net.parameters().iter().filter(|p| p.role() == Role::Weight) {
        let norm = |t: Tensor| t.norm(&[])?.item();
        let (w, dw) = (norm(p.data()?)?, norm(p.grad()?)?);
        println!("{:<16}{w:>10.2}{dw:>10.3}{:>12.1}", p.name(), w / dw);
    }
    Ok(())
}

fn train(page: &Page, net: &Sequential, batch: usize, epochs: usize, rule: impl Optimizer + 'static) -> Result<Vec<EpochReport>> {
    let (train, test) = page.fashion_mnist(batch, None, 1024)?;
    let mut trainer = Trainer::new(net.parameters(), rule);
    // Biases and their like do not decay.
    net.parameters().iter().filter(|p| p.role() != Role::Weight).for_each(|p| p.set_wd_mult(0.0));
    Ok(train_run(net, &train, &test, &mut trainer, epochs, RunOptions { quiet: true, ..RunOptions::default() })?.epochs)
}

fn said(page: &Page, row: &str, reports: &[EpochReport]) -> Result<()> {
    let Some(last) = reports.last() else { return Ok(()) };
    // A loss in the millions says no more than that it exploded.
    let loss = if last.loss.abs() < 1e4 { format!("{:.3}", last.loss) } else { "exploded".into() };
    println!("  {row:<40} loss {loss:>9}, train acc {:.2}, test acc {:.2}", last.train_accuracy, last.test_accuracy);
    page.figure(row, "train loss", last.epoch, last.loss)?;
    page.figure(row, "test acc", last.epoch, last.test_accuracy)
}

/// [`said`], but only in words in a quick run: what explodes magnifies the last bits, in which devices differ.
fn said_roughly(page: &Page, row: &str, reports: &[EpochReport]) -> Result<()> {
    if !page.quick {
        return said(page, row, reports);
    }
    let learned = reports.last().is_some_and(|r| r.train_accuracy > 0.3);
    println!("  {row:<40} {}", if learned { "trains" } else { "explodes" });
    Ok(())
}

/// Weights three times as large as they should be: activations and gradients grow by that factor in every layer.
fn exploding(page: &Page) -> Result<()> {
    let (epochs, batch, width) = if page.quick { (4, 64, 64) } else { (5, 256, 64) };
    let init = Normal(3.0 * (2.0 / width as f64).sqrt());
    println!("4 hidden layers, weights three times too large, {epochs} epochs:");
    let net = mlp(page, 4, width, init)?;
    said_roughly(page, "exploding, SGD, lr 0.1", &train(page, &net, batch, epochs, Sgd::new(0.1))?)?;
    // Each layer moves by 0.5 % of its norm.
    let net = mlp(page, 4, width, init)?;
    let lars = Lars::new(0.1).trust(0.05).momentum(0.0);
    said_roughly(page, "exploding, LARS, lr 0.1, eta 0.05", &train(page, &net, batch, epochs, lars)?)
}

/// Fewer steps with a rate that grows with the batch: what the linear rule makes of SGD, and LARS.
fn large_batches(page: &Page) -> Result<()> {
    let (small, large, lr, epochs) = if page.quick { (32, 512, 0.005, 4) } else { (128, 4096, 0.02, 10) };
    let scaled = lr * (large / small) as f64;
    println!("two hidden layers of 128, {epochs} epochs, momentum 0.9, decay 0.0005:");
    let mut curves = Vec::new();
    let mut row = |name: String, reports: Vec<EpochReport>| -> Result<()> {
        curves.push(Curve::by_epoch(&name, reports.iter().map(|r| r.test_accuracy)));
        said(page, &name, &reports)
    };
    let net = || mlp(page, 2, 128, Msra::new());
    let sgd = |lr: f64| Sgd::new(lr).momentum(0.9).weight_decay(5e-4);
    row(format!("batch {small}, SGD, lr {lr}"), train(page, &net()?, small, epochs, sgd(lr))?)?;
    row(format!("batch {large}, SGD, lr {lr}"), train(page, &net()?, large, epochs, sgd(lr))?)?;
    row(format!("batch {large}, SGD, lr {scaled}"), train(page, &net()?, large, epochs, sgd(scaled))?)?;
    let lars = Lars::new(scaled).trust(0.01 / scaled).weight_decay(5e-4);
    row(format!("batch {large}, LARS, lr {scaled}, eta {:.3}", 0.01 / scaled), train(page, &net()?, large, epochs, lars)?)?;
    let chart = Chart { title: "", x: "epoch", y: "test accuracy", log: false, legend: SeriesLabelPosition::MiddleRight };
    draw::chart(page, "lars", &chart, &curves)
}
