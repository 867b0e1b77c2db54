//! The book's section 6.8, "Networks Using Blocks (VGG)", trained on Fashion-MNIST.

use book::{
    Page,
    train::{self, Setting},
};
use hadal::{
    Result,
    models::{self, Options, VGG11},
};

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    train::shapes(&models::vgg(VGG11, 10), &[1, 224, 224])?;

    // As in the book, a quarter of the channels is trained: enough for Fashion-MNIST.
    let ratio = 4;
    let small_conv_arch: Vec<_> = VGG11.iter().map(|&(convs, channels)| (convs, channels / ratio)).collect();
    let net = models::vgg(&small_conv_arch, 10);
    let book = Setting { lr: 0.05, epochs: 5, batch_size: 128, resize: Some(224) };
    if !page.quick {
        return train::run(page, &net, book, 0);
    }
    let net = models::by_name("vgg11", &Options { ratio: 16, hidden: Some(64), ..Options::default() })?;
    train::run(page, &net, Setting { epochs: 2, batch_size: 10, resize: Some(32), ..book }, 60)
}
