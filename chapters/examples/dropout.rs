//! The book's sections 4.6.4 and 4.6.5, "Dropout": the function, a multilayer perceptron from scratch, and the concise one.

use book::{
    Page,
    draw::{self, Chart, Curve},
};
use hadal::{
    Result, Tensor, Trainer,
    autograd::is_training,
    d2l::{dropout, train_ch3},
    init::Normal,
    loss::SoftmaxCrossEntropy,
    nn::{Dense, Dropout, Sequential},
    optim::Sgd,
    println,
    train::{EpochReport, Updater},
};
use plotters::prelude::SeriesLabelPosition;

const DROP_PROB1: f64 = 0.2;
const DROP_PROB2: f64 = 0.5;
const LR: f64 = 0.5;
const BATCH_SIZE: usize = 256;

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    let x = Tensor::arange(0.0, 16.0, 1.0, &page.ctx)?.reshape(&[2, 8])?;
    for p in [0.0, 0.5, 1.0] {
        println!("{}", dropout(&x, p)?);
    }
    println!("from scratch, on {}", page.ctx);
    let scratch = from_scratch(page)?;
    println!("concise, on {}", page.ctx);
    let concise = concise(page)?;
    for (row, reports) in [("scratch", &scratch), ("concise", &concise)] {
        page.epochs(row, reports)?;
        let best = reports.iter().map(|r| r.test_accuracy).fold(0.0, f64::max);
        page.figure(row, "best test acc", 0, best)?;
        println!("{row}: best test acc {best:.3}");
    }
    picture(page, &scratch, &concise)
}

fn from_scratch(page: &Page) -> Result<Vec<EpochReport>> {
    let (inputs, outputs, hiddens1, hiddens2) = (784, 10, 256, 256);
    let weight = |rows, cols| Ok::<_, hadal::Error>(Tensor::normal(0.0, 0.01, &[rows, cols], &page.ctx)?.attach_grad());
    let bias = |n| Ok::<_, hadal::Error>(Tensor::zeros(&[n], &page.ctx)?.attach_grad());
    let (w1, b1) = (weight(inputs, hiddens1)?, bias(hiddens1)?);
    let (w2, b2) = (weight(hiddens1, hiddens2)?, bias(hiddens2)?);
    let (w3, b3) = (weight(hiddens2, outputs)?, bias(outputs)?);
    let params = [&w1, &b1, &w2, &b2, &w3, &b3].map(Tensor::clone);

    let net = |x: &Tensor| -> Result<Tensor> {
        let x = x.reshape(&[-1, inputs as isize])?;
        let mut h1 = (x.dot(&w1)? + &b1)?.relu()?;
        // Dropout is for training only.
        if is_training() {
            h1 = dropout(&h1, DROP_PROB1)?;
        }
        let mut h2 = (h1.dot(&w2)? + &b2)?.relu()?;
        if is_training() {
            h2 = dropout(&h2, DROP_PROB2)?;
        }
        h2.dot(&w3)? + &b3
    };
    train(page, net, &mut Updater::Sgd { params: &params, lr: LR })
}

fn concise(page: &Page) -> Result<Vec<EpochReport>> {
    let net = Sequential::new()
        .add(Dense::new(256).relu())
        .add(Dropout::new(DROP_PROB1))
        .add(Dense::new(256).relu())
        .add(Dropout::new(DROP_PROB2))
        .add(Dense::new(10));
    net.initialize(Normal(0.01), &page.ctx)?;
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(LR));
    train(page, |x| net.forward(x), &mut Updater::Trainer(&mut trainer))
}

fn train(page: &Page, net: impl Fn(&Tensor) -> Result<Tensor>, updater: &mut Updater<'_>) -> Result<Vec<EpochReport>> {
    let epochs = if page.quick { 2 } else { 10 };
    let loss = SoftmaxCrossEntropy::new();
    let (train, test) = page.fashion_mnist(BATCH_SIZE, None, 2000)?;
    train_ch3(net, &train, &test, |y, label| loss.forward(y, label), epochs, updater)
}

/// Loss and accuracies by epoch, one version beside the other.
fn picture(page: &Page, scratch: &[EpochReport], concise: &[EpochReport]) -> Result<()> {
    draw::page(page, "dropout", (1280, 560), |root| {
        for (part, (title, reports)) in root.split_evenly((1, 2)).iter().zip([("from scratch", scratch), ("concise", concise)]) {
            let chart = Chart { title, x: "epoch", y: "loss, accuracy", log: false, legend: SeriesLabelPosition::UpperRight };
            let curves = [
                Curve::by_epoch("train loss", reports.iter().map(|r| r.loss)),
                Curve::by_epoch("train acc", reports.iter().map(|r| r.train_accuracy)),
                Curve::by_epoch("test acc", reports.iter().map(|r| r.test_accuracy)),
            ];
            draw::chart_on(part, &chart, &curves)?;
        }
        Ok(())
    })
}
