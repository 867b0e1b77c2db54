//! The book's section 6.2, "Convolutions for Images": cross-correlation, edge detection, a kernel learned from data.

use book::{Page, matrix};
use hadal::{
    Result, Tensor, autograd,
    d2l::{corr2d, sgd},
    init,
    nn::{Block, Conv2D, Forward},
    println,
};

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    let ctx = &page.ctx;
    let x = Tensor::arange(0.0, 9.0, 1.0, ctx)?.reshape(&[3, 3])?;
    let k = Tensor::arange(0.0, 4.0, 1.0, ctx)?.reshape(&[2, 2])?;
    let y = corr2d(&x, &k)?;
    println!("cross-correlation\n{y}");
    page.elements("corr2d", &y)?;
    matrix::side_by_side(page, "corr2d", &[("input", &x), ("kernel", &k), ("output", &y)])?;

    // An image of white with a black stripe, and a kernel that answers where two neighbours in a row differ.
    let x = Tensor::ones(&[6, 8], ctx)?;
    x.fill(&[0..6, 2..6], 0.0)?;
    println!("image\n{x}");
    let k = Tensor::from_vec(vec![1f32, -1.0], &[1, 2], ctx)?;
    let y = corr2d(&x, &k)?;
    println!("edges: 1 from white to black, -1 from black to white\n{y}");
    // It sees vertical edges only.
    println!("edges of the transposed image\n{}", corr2d(&x.transpose()?, &k)?);

    let net = Conv2D::new(1, (1, 2));
    net.initialize(init::Uniform(0.07), ctx)?;
    let (image, edges) = (x.reshape(&[1, 1, 6, 8])?, y.reshape(&[1, 1, 6, 7])?);
    for batch in 1..=10 {
        let loss = autograd::record(|| (net.forward(&image)? - &edges)?.square())?;
        loss.backward()?;
        // As in the book, the bias stays 0.
        sgd(&[net.weight().data()?], 3e-2, 1)?;
        if batch % 2 == 0 {
            let loss = loss.sum(&[])?.item()?;
            println!("batch {batch}, loss {loss:.3}");
            page.figure("learned kernel", "loss", batch, loss)?;
        }
    }
    let learned = net.weight().data()?.detach().reshape(&[1, 2])?;
    println!("learned kernel\n{learned}");
    page.elements("learned kernel", &learned)?;
    let found = net.forward(&image)?.reshape(&[6, 7])?;
    let panels = [("image", &x), ("edges by [1, −1]", &y), ("edges by the learned kernel", &found)];
    matrix::side_by_side(page, "edges", &panels)
}
