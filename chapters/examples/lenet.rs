//! The book's section 6.6, "Convolutional Neural Networks (LeNet)", trained on Fashion-MNIST.

use book::{
    Page,
    train::{self, Setting},
};
use hadal::{Result, models};

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    let net = models::lenet(10);
    train::shapes(&net, &[1, 28, 28])?;

    let book = Setting { lr: 0.9, epochs: 5, batch_size: 256, resize: None };
    if !page.quick {
        return train::run(page, &net, book, 0);
    }
    // So few steps do not take the sigmoids off their plateau; those of the whole run do.
    train::run(page, &net, Setting { epochs: 2, batch_size: 20, ..book }, 200)
}
