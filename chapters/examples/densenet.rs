//! The book's section 6.13, "Densely Connected Networks (DenseNet)", trained on Fashion-MNIST.

use book::{
    Page,
    train::{self, Setting},
};
use hadal::{
    Result, Tensor, init,
    models::{self, DenseBlock, Options, transition_block},
    nn::{Block, Forward},
    println,
    shape::Display,
};

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    // Two convolutions that add 10 channels each, then a transition to 10 channels and half the size.
    let block = DenseBlock::new(2, 10);
    block.initialize(init::Xavier::new(), &page.ctx)?;
    let x = Tensor::uniform(0.0, 1.0, &[4, 3, 8, 8], &page.ctx)?;
    let y = block.forward(&x)?;
    println!("dense block      {} to {}", Display(&x.shape()), Display(&y.shape()));
    let block = transition_block(10);
    block.initialize(init::Xavier::new(), &page.ctx)?;
    println!("transition block {} to {}", Display(&y.shape()), Display(&block.forward(&y)?.shape()));

    let net = models::densenet(10);
    train::shapes(&net, &[1, 96, 96])?;

    let book = Setting { lr: 0.1, epochs: 5, batch_size: 256, resize: Some(96) };
    if !page.quick {
        return train::run(page, &net, book, 0);
    }
    // Four steps: a rounding grows with every batch-norm of so few samples, and in more steps the contexts would part.
    let net = models::by_name("densenet", &Options { ratio: 8, ..Options::default() })?;
    train::run(page, &net, Setting { epochs: 2, batch_size: 30, resize: Some(32), ..book }, 60)
}
