//! The book's linear regression: the closed form, minibatch stochastic gradient descent from scratch, and the concise version.

use book::{
    Page,
    draw::{self, Chart, Curve},
};
use hadal::{
    Error, Result, Tensor, Trainer, autograd,
    d2l::sgd,
    data::Sampler,
    init::Normal,
    loss::L2,
    nn::{Block, Dense, Forward},
    optim::Sgd,
    println,
};
use plotters::prelude::SeriesLabelPosition;

const TRUE_W: [f32; 2] = [2.0, -3.4];
const TRUE_B: f64 = 4.2;
const EXAMPLES: usize = 1000;
const BATCH_SIZE: usize = 10;
const LR: f64 = 0.03;
const EPOCHS: usize = 3;

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

/// y = X w + b + ε with ε of deviation 0.01.
struct Data {
    features: Tensor,
    labels: Tensor,
}

fn chapter(page: &Page) -> Result<()> {
    let ctx = &page.ctx;
    let features = Tensor::normal(0.0, 1.0, &[EXAMPLES, 2], ctx)?;
    let true_w = Tensor::from_vec(TRUE_W.to_vec(), &[2, 1], ctx)?;
    let labels = ((features.dot(&true_w)? + TRUE_B)? + Tensor::normal(0.0, 0.01, &[EXAMPLES, 1], ctx)?)?;
    let data = Data { features, labels };

    gradients(page, &data)?;
    closed_form(page, &data)?;
    let scratch = from_scratch(page, &data)?;
    let concise = concise(page, &data)?;
    draw::page(page, "linear_regression", (1360, 560), |root| {
        let (left, right) = root.split_horizontally(680);
        let second = data.features.slice(1, 1..2)?.to_vec()?;
        let points: Vec<_> = second.iter().zip(data.labels.to_vec()?).map(|(&x, y)| (x.into(), y.into())).collect();
        let chart =
            Chart { title: "the data", x: "second feature", y: "label", log: false, legend: SeriesLabelPosition::UpperRight };
        draw::scatter_on(&left, &chart, &points)?;
        let chart = Chart { title: "training", x: "step", y: "loss of the minibatch", log: true, ..chart };
        draw::chart_on(&right, &chart, &[by_step("from scratch", scratch), by_step("concise", concise)])
    })
}

fn by_step(name: &str, losses: Vec<f64>) -> Curve {
    Curve { name: name.into(), points: losses.into_iter().enumerate().map(|(i, l)| (i as f64, l)).collect() }
}

/// ŷ = X w + b
fn linreg(x: &Tensor, w: &Tensor, b: &Tensor) -> Result<Tensor> {
    x.dot(w)? + b
}

/// (ŷ − y)² / 2
fn squared_loss(y_hat: &Tensor, y: &Tensor) -> Result<Tensor> {
    (y_hat - &y.reshape_as(&y_hat.shape())?)?.square()? / 2.0
}

/// The book's formulas against the tape: ∂w = Σ x (wᵀx + b − y), ∂b = Σ (wᵀx + b − y).
fn gradients(page: &Page, data: &Data) -> Result<()> {
    let w = Tensor::from_vec(vec![0.5f32, -0.25], &[2, 1], &page.ctx)?.attach_grad();
    let b = Tensor::ones(&[1], &page.ctx)?.attach_grad();
    autograd::record(|| squared_loss(&linreg(&data.features, &w, &b)?, &data.labels))?.backward()?;
    let residual = (linreg(&data.features, &w, &b)? - &data.labels)?;
    let (dw, db) = (data.features.matmul_t(&residual, true, false)?.to_vec()?, residual.sum(&[])?.item()?);
    let (tape_w, tape_b) = (w.grad()?.to_vec()?, b.grad()?.item()?);
    let apart = dw.iter().zip(&tape_w).map(|(a, b)| f64::from((a - b) / b)).chain([(db - tape_b) / tape_b]);
    println!("gradient by the formulas: w {dw:.1?}, b {db:.1}");
    println!("gradient by the tape:     w {tape_w:.1?}, b {tape_b:.1}");
    println!("they agree within 1e-5: {}", apart.fold(0.0, |m: f64, d| m.max(d.abs())) < 1e-5);
    Ok(())
}

/// (w, b) = (AᵀA)⁻¹ Aᵀy, where A is X with a column of ones.
fn closed_form(page: &Page, data: &Data) -> Result<()> {
    let a = Tensor::concat(&[&data.features, &Tensor::ones(&[EXAMPLES, 1], &page.ctx)?], 1)?;
    let normal = a.matmul_t(&a, true, false)?.to_vec()?;
    let right = a.matmul_t(&data.labels, true, false)?.to_vec()?;
    let solution = cholesky_solve(&normal, &right)?;
    println!("closed form:");
    report(page, "closed form", &[solution[0], solution[1]], solution[2])
}

/// x of M x = y for a symmetric positive definite M: M = L Lᵀ, then L z = y, then Lᵀ x = z.
fn cholesky_solve(m: &[f32], y: &[f32]) -> Result<Vec<f64>> {
    let n = y.len();
    let mut l = vec![0.0f64; n * n];
    for i in 0..n {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| l[i * n + k] * l[j * n + k]).sum();
            let rest = f64::from(m[i * n + j]) - sum;
            if i == j && rest <= 0.0 {
                return Err(Error::invalid("cholesky", "the matrix is not positive definite"));
            }
            l[i * n + j] = if i == j { rest.sqrt() } else { rest / l[j * n + j] };
        }
    }
    let mut x: Vec<f64> = y.iter().map(|&v| v.into()).collect();
    for i in 0..n {
        let sum: f64 = (0..i).map(|k| l[i * n + k] * x[k]).sum();
        x[i] = (x[i] - sum) / l[i * n + i];
    }
    for i in (0..n).rev() {
        let sum: f64 = (i + 1..n).map(|k| l[k * n + i] * x[k]).sum();
        x[i] = (x[i] - sum) / l[i * n + i];
    }
    Ok(x)
}

/// The losses of the minibatches.
fn from_scratch(page: &Page, data: &Data) -> Result<Vec<f64>> {
    println!("from scratch:");
    let w = Tensor::normal(0.0, 0.01, &[2, 1], &page.ctx)?.attach_grad();
    let b = Tensor::zeros(&[1], &page.ctx)?.attach_grad();
    let params = [w.clone(), b.clone()];
    let whole = || -> Result<f64> { squared_loss(&linreg(&data.features, &w, &b)?, &data.labels)?.mean(&[])?.item() };
    let mut losses = Vec::new();
    for epoch in 0..EPOCHS {
        data.batches(page, epoch, |x, y| {
            let l = autograd::record(|| squared_loss(&linreg(x, &w, &b)?, y))?;
            l.backward()?;
            losses.push(l);
            sgd(&params, LR, BATCH_SIZE)
        })?;
        said(page, "scratch", epoch + 1, whole()?)?;
    }
    let w = w.to_vec()?;
    report(page, "scratch", &[w[0].into(), w[1].into()], b.item()?)?;
    means(&losses)
}

fn concise(page: &Page, data: &Data) -> Result<Vec<f64>> {
    println!("concise:");
    let net = Dense::new(1).in_units(2);
    net.initialize(Normal(0.01), &page.ctx)?;
    let loss = L2::new();
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(LR));
    let whole = || -> Result<f64> { loss.forward(&net.forward(&data.features)?, &data.labels)?.mean(&[])?.item() };
    let mut losses = Vec::new();
    for epoch in 0..EPOCHS {
        // Other batches than those from scratch: each version's data iterator draws its own.
        data.batches(page, EPOCHS + epoch, |x, y| {
            let l = autograd::record(|| loss.forward(&net.forward(x)?, y))?;
            l.backward()?;
            losses.push(l);
            trainer.step(BATCH_SIZE)
        })?;
        said(page, "concise", epoch + 1, whole()?)?;
    }
    let (w, b) = (net.weight().data()?.to_vec()?, net.parameters()[1].data()?.item()?);
    report(page, "concise", &[w[0].into(), w[1].into()], b)?;
    means(&losses)
}

/// Read when the training is over, so that no step waits for the device.
fn means(losses: &[Tensor]) -> Result<Vec<f64>> {
    losses.iter().map(|l| l.mean(&[])?.item()).collect()
}

impl Data {
    /// The book's `data_iter`: random minibatches.
    fn batches(&self, page: &Page, epoch: usize, mut step: impl FnMut(&Tensor, &Tensor) -> Result<()>) -> Result<()> {
        let batches = Sampler::new(EXAMPLES, BATCH_SIZE)?.shuffle(page.seed).epoch(epoch as u64)?;
        for i in batches.remaining() {
            let numbers: Vec<i64> = batches.get(i).unwrap_or_default().iter().map(|&n| n.into()).collect();
            let rows = Tensor::from_vec(numbers.clone(), &[numbers.len()], &page.ctx)?;
            step(&self.features.take(&rows, 0)?, &self.labels.take(&rows, 0)?)?;
        }
        Ok(())
    }
}

fn said(page: &Page, row: &str, epoch: usize, loss: f64) -> Result<()> {
    println!("epoch {epoch}, loss {loss:.6}");
    page.figure(row, "loss", epoch, loss)
}

/// The parameters and how far they are from those that made the data.
fn report(page: &Page, row: &str, w: &[f64; 2], b: f64) -> Result<()> {
    let error = [f64::from(TRUE_W[0]) - w[0], f64::from(TRUE_W[1]) - w[1], TRUE_B - b];
    println!("w [{:.3}, {:.3}], b {b:.3}", w[0], w[1]);
    println!("error of w [{:.4}, {:.4}], error of b {:.4}", error[0], error[1], error[2]);
    page.figure(row, "largest error", 0, error.iter().fold(0.0, |m, e| e.abs().max(m)))
}
