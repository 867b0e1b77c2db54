//! The book's section 6.4, "Multiple Input and Output Channels", and the 1x1 convolution.

use book::{Page, matrix};
use hadal::{
    Result, Tensor,
    d2l::{corr2d_multi_in, corr2d_multi_in_out, corr2d_multi_in_out_1x1},
    println,
    shape::Display,
};

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    let counting = |from: f64, n: usize| Tensor::arange(from, from + (n * n) as f64, 1.0, &page.ctx)?.reshape_as(&[n, n]);
    let x = Tensor::stack(&[&counting(0.0, 3)?, &counting(1.0, 3)?], 0)?;
    let k = Tensor::stack(&[&counting(0.0, 2)?, &counting(1.0, 2)?], 0)?;
    let y = corr2d_multi_in(&x, &k)?;
    println!("two input channels\n{y}");
    page.elements("multi-in", &y)?;
    let panels = [
        ("input, channel 0", &x.at(0)?),
        ("channel 1", &x.at(1)?),
        ("kernel, channel 0", &k.at(0)?),
        ("channel 1", &k.at(1)?),
        ("output", &y),
    ];
    matrix::side_by_side(page, "channels", &panels)?;

    // Three output channels: the kernel, and the kernel with 1 and with 2 added to each element.
    let k = Tensor::stack(&[&k, &(&k + 1.0)?, &(&k + 2.0)?], 0)?;
    println!("kernels {}", Display(&k.shape()));
    let y = corr2d_multi_in_out(&x, &k)?;
    println!("three output channels\n{y}");
    page.elements("multi-in-out", &y)?;

    let x = Tensor::uniform(0.0, 1.0, &[3, 3, 3], &page.ctx)?;
    let k = Tensor::uniform(0.0, 1.0, &[2, 3, 1, 1], &page.ctx)?;
    let y1 = corr2d_multi_in_out_1x1(&x, &k)?;
    let y2 = corr2d_multi_in_out(&x, &k)?;
    let distance = (y1 - y2)?.norm(&[])?.item()?;
    page.figure("1x1", "norm", 0, distance)?;
    println!("‖Y1 − Y2‖ < 1e-6: {}", distance < 1e-6);
    Ok(())
}
