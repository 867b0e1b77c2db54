//! What the chapters on networks share: the table of shapes, the training run, its chart.

use hadal::{
    Result, Tensor, Trainer, autograd, cpu, init,
    nn::{Block, Sequential},
    optim::Sgd,
    println,
    train::train_ch5,
};
use plotters::prelude::SeriesLabelPosition;

use super::{
    Page,
    draw::{self, Chart, Curve},
};

/// The numbers of a training run.
#[derive(Clone, Copy)]
pub struct Setting {
    pub lr: f64,
    pub epochs: usize,
    pub batch_size: usize,
    /// The side that images are resized to.
    pub resize: Option<usize>,
}

/// Sends one sample of zeros through the net and prints each layer's output shape, as the book does.
///
/// On the CPU whatever the page's context is: shapes need no device, and an emulated one would take minutes.
pub fn shapes(net: &Sequential, input: &[usize]) -> Result<()> {
    net.initialize(init::Zero, &cpu())?;
    let mut x = Tensor::zeros(&[&[1], input].concat(), &cpu())?;
    for layer in net.iter() {
        x = autograd::pause(|| layer.forward(&x))?;
        let name = format!("{} output shape:", layer.name());
        println!("{name:<26} {}", hadal::shape::Display(&x.shape()));
    }
    println!("{} parameters", net.parameter_count()?);
    Ok(())
}

/// The book's last cell of every network: new first values, `train_ch5`, and a chart of its lines.
///
/// With `--quick` only that many images of the sample are used.
pub fn run(page: &Page, net: &Sequential, setting: Setting, quick_images: usize) -> Result<()> {
    let Setting { lr, epochs, batch_size, resize } = setting;
    let (train, test) = page.fashion_mnist(batch_size, resize, quick_images)?;
    net.reinitialize(init::Xavier::new(), &page.ctx)?;
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(lr));
    let reports = train_ch5(net, &train, &test, &mut trainer, epochs)?;
    page.epochs("", &reports)?;

    let curves = [
        Curve::by_epoch("training loss", reports.iter().map(|r| r.loss)),
        Curve::by_epoch("training accuracy", reports.iter().map(|r| r.train_accuracy)),
        Curve::by_epoch("test accuracy", reports.iter().map(|r| r.test_accuracy)),
    ];
    let name = page.chapter();
    let title = format!("{name}, lr {lr}, batches of {batch_size}");
    let chart = Chart { title: &title, x: "epoch", y: "loss, accuracy", log: false, legend: SeriesLabelPosition::MiddleRight };
    draw::chart(page, name, &chart, &curves)
}
