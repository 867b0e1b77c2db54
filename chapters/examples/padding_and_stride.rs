//! The book's section 6.3, "Padding and Stride": the size of a convolution's output.

use book::{Page, matrix};
use hadal::{
    Result, Tensor, cpu,
    d2l::{comp_conv2d, corr2d},
    init,
    nn::{Block, Conv2D},
    println,
    shape::Display,
};

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    let x = Tensor::uniform(0.0, 1.0, &[8, 8], &page.ctx)?;
    let layers = [
        ("kernel 3x3, padding 1", Conv2D::new(1, 3).padding(1)),
        ("kernel 5x3, padding (2, 1)", Conv2D::new(1, (5, 3)).padding((2, 1))),
        ("kernel 3x3, padding 1, stride 2", Conv2D::new(1, 3).padding(1).stride(2)),
        ("kernel 3x5, padding (0, 1), stride (3, 4)", Conv2D::new(1, (3, 5)).padding((0, 1)).stride((3, 4))),
    ];
    for (i, (what, layer)) in layers.iter().enumerate() {
        let shape = comp_conv2d(layer, &x)?.shape();
        println!("{what:<42} {}", Display(&shape));
        page.figure(what, "height", i, shape[0] as f64)?;
        page.figure(what, "width", i, shape[1] as f64)?;
    }
    sizes()?;
    figure(page)?;
    even_kernel(page)
}

/// ⌊(n − k + p + s) / s⌋ beside what a layer makes of n = 8, for kernels k, p rows of padding in total, strides s.
fn sizes() -> Result<()> {
    let n = 8;
    let x = Tensor::zeros(&[n, n], &cpu())?;
    println!("\nrows of the output for {n} rows: by the formula, by the layer");
    println!("kernel  stride  {}", (0..5).map(|p| format!("padding {p}  ")).collect::<String>().trim_end());
    let mut same = true;
    for k in 1..=5 {
        for s in 1..=3 {
            let mut line = format!("{k:>6}  {s:>6}");
            for p in 0..5_usize {
                let formula = (n - k + p + s) / s;
                // Where p is odd, one row more goes to the top.
                let layer = Conv2D::new(1, k).stride(s).padding([p.div_ceil(2), p.div_ceil(2), p / 2, p / 2]);
                let rows = comp_conv2d(&layer, &x)?.shape()[0];
                same &= rows == formula;
                line += &format!("  {formula:>4} {rows:>4}");
            }
            println!("{line}");
        }
    }
    println!("formula and layer agree: {same}\n");
    Ok(())
}

/// The book's figure 6.3: 3x3 with a margin of zeros, strides of 3 rows and 2 columns.
fn figure(page: &Page) -> Result<()> {
    let x = Tensor::arange(0.0, 9.0, 1.0, &page.ctx)?.reshape(&[3, 3])?;
    let k = Tensor::arange(0.0, 4.0, 1.0, &page.ctx)?.reshape(&[2, 2])?;
    let padded = x.pad(&[(1, 1), (1, 1)], 0.0)?;
    // By hand: the whole cross-correlation, of which the strides leave every third row and every second column.
    let y = corr2d(&padded, &k)?.slice_step(0, 0..4, 3)?.slice_step(1, 0..4, 2)?;
    println!("figure 6.3: the strides leave 8 and 6\n{y}");
    page.elements("strides 3 and 2", &y)?;

    let layer = Conv2D::new(1, 2).in_channels(1).padding(1).stride((3, 2));
    layer.initialize(init::Zero, &page.ctx)?;
    layer.weight().set_data(k.reshape(&[1, 1, 2, 2])?.array())?;
    println!("the layer gives the same: {}", comp_conv2d(&layer, &x)?.to_vec()? == y.to_vec()?);
    matrix::side_by_side(page, "stride", &[("padded input", &padded), ("kernel", &k), ("output, strides 3 and 2", &y)])
}

/// An even kernel keeps the size when one row more is padded at the top than at the bottom: ⌈p/2⌉ and ⌊p/2⌋ for p = k − 1.
fn even_kernel(page: &Page) -> Result<()> {
    let x = Tensor::uniform(0.0, 1.0, &[8, 8], &page.ctx)?;
    // Top, left, bottom, right.
    let layer = Conv2D::new(1, 4).padding([2, 2, 1, 1]);
    let y = comp_conv2d(&layer, &x)?;
    let k = layer.weight().data()?.reshape(&[4, 4])?;
    let by_hand = corr2d(&x.pad(&[(2, 1), (2, 1)], 0.0)?, &k)?;
    println!("kernel 4x4, 2 rows of padding above and 1 below: {}", Display(&y.shape()));
    println!("padding by hand gives the same: {}", (y - by_hand)?.norm(&[])?.item()? < 1e-6);
    Ok(())
}
