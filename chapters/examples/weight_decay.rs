//! The book's section 4.5, "Weight Decay": 200 inputs, 20 examples, with λ = 0 and λ = 3.
//!
//! The noise has the deviation 0.01, as the book's program has it; its text says variance.

use book::{
    Page,
    draw::{self, Chart, Curve},
};
use hadal::{
    Result, Tensor, Trainer, autograd,
    d2l::sgd,
    data::Sampler,
    init::Normal,
    loss::L2,
    nn::{Block, Dense, Forward, Parameter, Role},
    optim::Sgd,
    println,
};
use plotters::prelude::SeriesLabelPosition;

const N_TRAIN: usize = 20;
const N_TEST: usize = 100;
const INPUTS: usize = 200;
const LR: f64 = 0.003;

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

/// y = 0.05 + Σ 0.01 xᵢ + ε
struct Data {
    x: Tensor,
    y: Tensor,
}

impl Data {
    fn new(n: usize, page: &Page) -> Result<Self> {
        let x = Tensor::normal(0.0, 1.0, &[n, INPUTS], &page.ctx)?;
        let y = (x.sum_keepdims(&[1])?.affine(0.01, 0.05)? + Tensor::normal(0.0, 0.01, &[n, 1], &page.ctx)?)?;
        Ok(Data { x, y })
    }

    /// The examples one by one, in the epoch's order.
    fn each(&self, page: &Page, epoch: usize, mut step: impl FnMut(&Tensor, &Tensor) -> Result<()>) -> Result<()> {
        for &i in Sampler::new(self.x.len(), 1)?.shuffle(page.seed).epoch(epoch as u64)?.order() {
            let i = i as usize;
            step(&self.x.slice(0, i..i + 1)?, &self.y.slice(0, i..i + 1)?)?;
        }
        Ok(())
    }
}

/// What a training brought: its losses by epoch and ‖w‖.
struct Outcome {
    train: Vec<f64>,
    test: Vec<f64>,
    norm: f64,
}

fn chapter(page: &Page) -> Result<()> {
    let (train, test) = (Data::new(N_TRAIN, page)?, Data::new(N_TEST, page)?);
    factor(page, &train)?;
    let mut runs = Vec::new();
    for lambda in [0.0, 3.0] {
        runs.push((format!("from scratch, lambda {lambda}"), from_scratch(page, &train, &test, lambda, false)?));
    }
    for lambda in [0.0, 3.0] {
        runs.push((format!("concise, lambda {lambda}"), concise(page, &train, &test, lambda)?));
    }
    // b², too, as the book's text adds.
    runs.push(("from scratch, lambda 3 on b as well".into(), from_scratch(page, &train, &test, 3.0, true)?));

    for (name, run) in &runs {
        let (first, last) = (run.train.len() - 1, run.test.len() - 1);
        let (a, b) = (run.train[first], run.test[last]);
        println!("{name}: L2 norm of w {:.4}, train loss {a:.2e}, test loss {b:.4}", run.norm);
        page.figure(name, "norm of w", 0, run.norm)?;
        page.figure(name, "train loss", run.train.len(), a)?;
        page.figure(name, "test loss", run.test.len(), b)?;
    }
    picture(page, &runs)
}

/// One step by the book's formula, (1 − ηλ/|B|) w − η/|B| Σ x (wᵀx + b − y), against one by the trainer's weight decay.
fn factor(page: &Page, data: &Data) -> Result<()> {
    let (lambda, batch) = (3.0, 4.0);
    let net = Dense::new(1).in_units(INPUTS);
    net.initialize(Normal(1.0), &page.ctx)?;
    let w = net.weight().data()?.copy()?;
    let (x, y) = (data.x.slice(0, 0..4)?, data.y.slice(0, 0..4)?);
    let residual = (net.forward(&x)? - &y)?;
    let shrunk = (&w * (1.0 - LR * lambda / batch))?;
    let book = (&shrunk - residual.matmul_t(&x, true, false)?.affine(LR / batch, 0.0)?)?;

    // The trainer's decay is not divided by the batch, and λ/2·‖w‖² stands once in the book's sum of |B| losses.
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(LR).weight_decay(lambda / batch));
    autograd::record(|| L2::new().forward(&net.forward(&x)?, &y))?.backward()?;
    trainer.step(4)?;
    let stepped = net.weight().data()?;
    let apart = (&stepped - &book)?.abs()?.max(&[])?.item()?;
    println!("one step from the book's formula and one of the trainer agree within 1e-6: {}", apart < 1e-6);

    // Inputs of 0 leave w no gradient, so the norm shrinks by the factor alone.
    let before = stepped.norm(&[])?.item()?;
    autograd::record(|| L2::new().forward(&net.forward(&x.zeros_like()?)?, &y))?.backward()?;
    trainer.step(4)?;
    let ratio = net.weight().data()?.norm(&[])?.item()? / before;
    println!("w shrinks by {ratio:.5}; 1 - lr lambda / batch size is {:.5}", 1.0 - LR * lambda / batch);
    Ok(())
}

fn from_scratch(page: &Page, train: &Data, test: &Data, lambda: f64, bias_too: bool) -> Result<Outcome> {
    let w = Tensor::normal(0.0, 1.0, &[INPUTS, 1], &page.ctx)?.attach_grad();
    let b = Tensor::zeros(&[1], &page.ctx)?.attach_grad();
    let params = [w.clone(), b.clone()];
    let net = |x: &Tensor| x.dot(&w)? + &b;
    let l2_penalty = || -> Result<Tensor> {
        let square = w.square()?.sum(&[])?;
        let square = if bias_too { (square + b.square()?.sum(&[])?)? } else { square };
        square / 2.0
    };
    let step = |x: &Tensor, y: &Tensor| -> Result<()> {
        autograd::record(|| -> Result<_> { L2::new().forward(&net(x)?, y)? + (l2_penalty()? * lambda)? })?.backward()?;
        sgd(&params, LR, 1)
    };
    train_with(page, train, test, net, step, || w.clone())
}

/// Weights and biases have a trainer each, since only weights decay.
fn concise(page: &Page, train: &Data, test: &Data, wd: f64) -> Result<Outcome> {
    let net = Dense::new(1).in_units(INPUTS);
    net.initialize(Normal(1.0), &page.ctx)?;
    let (weights, biases): (Vec<Parameter>, Vec<Parameter>) =
        net.parameters().into_iter().partition(|p| p.role() == Role::Weight);
    let mut trainer_w = Trainer::new(weights, Sgd::new(LR).weight_decay(wd));
    let mut trainer_b = Trainer::new(biases, Sgd::new(LR));
    let w = net.weight().data()?;
    let step = |x: &Tensor, y: &Tensor| -> Result<()> {
        autograd::record(|| L2::new().forward(&net.forward(x)?, y))?.backward()?;
        trainer_w.step(1)?;
        trainer_b.step(1)
    };
    train_with(page, train, test, |x| net.forward(x), step, || w.clone())
}

fn train_with(
    page: &Page,
    train: &Data,
    test: &Data,
    net: impl Fn(&Tensor) -> Result<Tensor>,
    mut step: impl FnMut(&Tensor, &Tensor) -> Result<()>,
    w: impl Fn() -> Tensor,
) -> Result<Outcome> {
    let epochs = if page.quick { 10 } else { 100 };
    let mut out = Outcome { train: Vec::new(), test: Vec::new(), norm: 0.0 };
    let loss = |data: &Data| -> Result<f64> { L2::new().forward(&net(&data.x)?, &data.y)?.mean(&[])?.item() };
    for epoch in 0..epochs {
        train.each(page, epoch, &mut step)?;
        out.train.push(loss(train)?);
        out.test.push(loss(test)?);
    }
    out.norm = w().norm(&[])?.item()?;
    Ok(out)
}

/// Without and with decay, as the book's two `semilogy` plots.
fn picture(page: &Page, runs: &[(String, Outcome)]) -> Result<()> {
    draw::page(page, "weight_decay", (1280, 1000), |root| {
        for (part, (name, run)) in root.split_evenly((2, 2)).iter().zip(runs) {
            let chart = Chart { title: name, x: "epoch", y: "loss", log: true, legend: SeriesLabelPosition::MiddleRight };
            let curves = [Curve::by_epoch("train", run.train.iter().copied()), Curve::by_epoch("test", run.test.iter().copied())];
            draw::chart_on(part, &chart, &curves)?;
        }
        Ok(())
    })
}
