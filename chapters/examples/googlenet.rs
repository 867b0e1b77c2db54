//! The book's section 6.10, "Networks with Parallel Concatenations (GoogLeNet)", trained on Fashion-MNIST.

use book::{
    Page,
    train::{self, Setting},
};
use hadal::{
    Result,
    models::{self, Options},
};

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    let net = models::googlenet(10);
    train::shapes(&net, &[1, 96, 96])?;

    let book = Setting { lr: 0.1, epochs: 5, batch_size: 128, resize: Some(96) };
    if !page.quick {
        return train::run(page, &net, book, 0);
    }
    let net = models::by_name("googlenet", &Options { ratio: 16, ..Options::default() })?;
    train::run(page, &net, Setting { epochs: 2, batch_size: 10, resize: Some(32), ..book }, 60)
}
