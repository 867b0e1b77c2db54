//! The exercises of the book's section 4.6, "Dropout": variants of the multilayer perceptron, a table of them at the end.

use book::{
    Page,
    draw::{self, Chart, Curve},
};
use hadal::{
    Result, Tensor, Trainer, autograd, d2l,
    init::Normal,
    nn::{Dense, Dropout, Forward, Role, Sequential},
    optim::Sgd,
    println,
    train::{EpochReport, RunOptions, train_run},
};
use plotters::prelude::SeriesLabelPosition;

hadal::block! {
    /// Exercise 7: dropout on the weights instead of the activations (Wan et al. 2013, DropConnect).
    struct DropConnect { dense: Dense, p: f64 }
}

impl Forward for DropConnect {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !autograd::is_training() {
            return self.dense.forward(x)?.relu();
        }
        let w = d2l::dropout(&self.dense.weight().data()?, self.p)?;
        let b = self.dense.bias().map(|b| b.data()).transpose()?;
        x.flatten()?.dense(&w, b.as_ref())?.relu()
    }
}

hadal::block! {
    /// Exercise 8: activations times 0, γ/2 or γ with probabilities q, 1 − 2q and q. The mean is γ/2, so γ = 2; the variance is 2q.
    struct ThreeValued { q: f64 }
}

impl Forward for ThreeValued {
    fn forward(&self, h: &Tensor) -> Result<Tensor> {
        if autograd::is_training() { h.mul(&three_valued(h, self.q)?) } else { Ok(h.clone()) }
    }
}

/// 0, 1 or 2 for each element.
fn three_valued(h: &Tensor, q: f64) -> Result<Tensor> {
    let u = Tensor::uniform(0.0, 1.0, &h.shape(), &h.context())?;
    u.ge(q)? + u.ge(1.0 - q)?
}

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    variance(page)?;

    let (short, long) = if page.quick { (1, 2) } else { (5, 20) };
    let mut table = Vec::new();
    let mut row = |name: &'static str, net: Sequential, wd: f64, epochs: usize| -> Result<Vec<EpochReport>> {
        let reports = train(page, &net, wd, epochs)?;
        table.push((name, reports.clone()));
        Ok(reports)
    };
    // Exercises 1 and 6 to 8.
    row("dropout 0.2, 0.5", mlp(256, 0.2, 0.5), 0.0, short)?;
    row("dropout 0.5, 0.2", mlp(256, 0.5, 0.2), 0.0, short)?;
    row("no dropout", mlp(256, 0.0, 0.0), 0.0, short)?;
    row("weight decay", mlp(256, 0.0, 0.0), 5e-4, short)?;
    row("dropout and weight decay", mlp(256, 0.2, 0.5), 5e-4, short)?;
    row("DropConnect 0.2, 0.5", drop_connect(), 0.0, short)?;
    row("three values, q = 1/8, 1/3", three_values(), 0.0, short)?;
    // Exercises 2 and 5: more epochs, more units.
    let with = row("dropout, more epochs", mlp(256, 0.2, 0.5), 0.0, long)?;
    let without = row("no dropout, more epochs", mlp(256, 0.0, 0.0), 0.0, long)?;
    row("512 units, dropout", mlp(512, 0.2, 0.5), 0.0, short)?;
    row("512 units, no dropout", mlp(512, 0.0, 0.0), 0.0, short)?;

    println!("{:<28}{:>7}{:>12}{:>11}{:>10}{:>8}", "", "epochs", "train loss", "train acc", "test acc", "gap");
    for (name, reports) in &table {
        let Some(last) = reports.last() else { continue };
        let (train, test) = (last.train_accuracy, last.test_accuracy);
        println!("{name:<28}{:>7}{:>12.3}{train:>11.3}{test:>10.3}{:>8.3}", last.epoch, last.loss, train - test);
        page.figure(name, "train loss", last.epoch, last.loss)?;
        page.figure(name, "train acc", last.epoch, train)?;
        page.figure(name, "test acc", last.epoch, test)?;
    }
    let chart = Chart { title: "", x: "epoch", y: "accuracy", log: false, legend: SeriesLabelPosition::LowerRight };
    let curves = [
        Curve::by_epoch("dropout, train", with.iter().map(|r| r.train_accuracy)),
        Curve::by_epoch("dropout, test", with.iter().map(|r| r.test_accuracy)),
        Curve::by_epoch("no dropout, train", without.iter().map(|r| r.train_accuracy)),
        Curve::by_epoch("no dropout, test", without.iter().map(|r| r.test_accuracy)),
    ];
    draw::chart(page, "dropout_exercises", &chart, &curves)
}

/// Exercise 3: E\[h'\] = h and Var\[h'\] = h² p / (1 − p); and exercise 8's noise at the same variance.
fn variance(page: &Page) -> Result<()> {
    let h = Tensor::full(&[400_000], 3.0, &page.ctx)?;
    let moments = |x: &Tensor| -> Result<(f64, f64)> {
        let mean = x.mean(&[])?;
        Ok((mean.item()?, (x - &mean)?.square()?.mean(&[])?.item()?))
    };
    println!("h = 3 after dropout: mean, variance, h^2 p / (1 - p)");
    for p in [0.0, 0.2, 0.5, 0.8] {
        let (mean, variance) = moments(&d2l::dropout(&h, p)?)?;
        println!("  p = {p}: {mean:.2}, {variance:.1}, {:.1}", 9.0 * p / (1.0 - p));
        page.figure(&format!("dropout {p}"), "variance", 0, variance)?;
    }
    println!("h = 3 times 0, 1 or 2: mean, variance, 2 h^2 q");
    for (q, note) in [(1.0 / 8.0, "as p = 0.2"), (1.0 / 3.0, "as p = 0.4"), (1.0 / 2.0, "dropout with p = 0.5 itself")] {
        let (mean, variance) = moments(&h.mul(&three_valued(&h, q)?)?)?;
        println!("  q = {q:.3}: {mean:.2}, {variance:.1}, {:.1}, {note}", 18.0 * q);
        page.figure(&format!("three values {q:.3}"), "variance", 0, variance)?;
    }
    Ok(())
}

fn hidden(units: usize, inputs: usize) -> Dense {
    Dense::new(units).in_units(inputs)
}

fn mlp(units: usize, p1: f64, p2: f64) -> Sequential {
    Sequential::new()
        .add(hidden(units, 784).relu())
        .add(Dropout::new(p1))
        .add(hidden(units, units).relu())
        .add(Dropout::new(p2))
        .add(hidden(10, units))
}

fn drop_connect() -> Sequential {
    Sequential::new()
        .add(DropConnect { dense: hidden(256, 784), p: 0.2 })
        .add(DropConnect { dense: hidden(256, 256), p: 0.5 })
        .add(hidden(10, 256))
}

fn three_values() -> Sequential {
    Sequential::new()
        .add(hidden(256, 784).relu())
        .add(ThreeValued { q: 1.0 / 8.0 })
        .add(hidden(256, 256).relu())
        .add(ThreeValued { q: 1.0 / 3.0 })
        .add(hidden(10, 256))
}

fn train(page: &Page, net: &Sequential, wd: f64, epochs: usize) -> Result<Vec<EpochReport>> {
    net.initialize(Normal(0.01), &page.ctx)?;
    // Only weights decay.
    net.parameters().iter().filter(|p| p.role() != Role::Weight).for_each(|p| p.set_wd_mult(0.0));
    let batch = if page.quick { 32 } else { 256 };
    let (train, test) = page.fashion_mnist(batch, None, 500)?;
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.5).weight_decay(wd));
    Ok(train_run(net, &train, &test, &mut trainer, epochs, RunOptions { quiet: true, ..RunOptions::default() })?.epochs)
}
