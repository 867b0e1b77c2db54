//! The book's section 6.12, "Residual Networks (ResNet)", ResNet-18 trained on Fashion-MNIST; the paper's deeper ones in a table.
//!
//! `resnet18_fashion_mnist` is the same training with options, a progress bar, and saving and resuming.

use book::{
    Page,
    train::{self, Setting},
};
use hadal::{
    Result, Tensor, cpu, init,
    models::{self, Options, Residual},
    nn::{Block, Forward},
    println,
    shape::Display,
};

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    let x = Tensor::uniform(0.0, 1.0, &[4, 3, 6, 6], &page.ctx)?;
    // The same shape; twice the channels and half the size.
    for block in [Residual::new(3, false, 1), Residual::new(6, true, 2)] {
        block.initialize(init::Uniform::default(), &page.ctx)?;
        println!("residual block {} to {}", Display(&x.shape()), Display(&block.forward(&x)?.shape()));
    }

    // Both blocks count in the layers' names, so the first convolution is conv5 as in the book.
    let net = models::resnet18(10);
    train::shapes(&net, &[1, 224, 224])?;
    depths()?;

    let book = Setting { lr: 0.05, epochs: 5, batch_size: 256, resize: Some(96) };
    if !page.quick {
        return train::run(page, &net, book, 0);
    }
    // Four steps: a rounding grows with every batch-norm of so few samples, and in more steps the contexts would part.
    let net = models::by_name("resnet18", &Options { ratio: 8, ..Options::default() })?;
    train::run(page, &net, Setting { epochs: 2, batch_size: 30, resize: Some(32), ..book }, 60)
}

/// The paper's table 1: blocks and channels of each stage for pictures of 3x224x224 and 1000 classes, read off the models.
fn depths() -> Result<()> {
    let names = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"];
    let mut rows = ["conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x", "fc", "parameters"].map(|name| format!("{name:<10}"));
    for (i, name) in names.into_iter().enumerate() {
        let net = models::by_name(name, &Options::new(1000))?;
        net.initialize(init::Zero, &cpu())?;
        // No sample has the shapes of many, and nothing is computed.
        let mut x = Tensor::zeros(&[0, 3, 224, 224], &cpu())?;
        let mut row = rows.iter_mut();
        let mut cell = |map: Option<&[usize]>, text: String| {
            let Some(row) = row.next() else { return };
            if i == 0 {
                *row += &map.map_or(" ".repeat(9), |s| format!("{:<9}", format!("{}x{}", s[2], s[3])));
            }
            *row += &format!("{text:>12}");
        };
        for (at, layer) in net.iter().enumerate() {
            x = layer.forward(&x)?;
            let shape = x.shape();
            match at {
                0 => cell(Some(&shape), shape[1].to_string()),
                4..=7 => cell(Some(&shape), format!("{} of {}", layer.children().len(), shape[1])),
                9 => cell(None, shape[1].to_string()),
                _ => {}
            }
        }
        cell(None, net.parameter_count()?.to_string());
    }
    println!("\nblocks and channels   {}", names.map(|name| format!("{name:>11}")).join(" ").trim_start_matches("  "));
    println!("{}\n", rows.join("\n"));
    Ok(())
}
