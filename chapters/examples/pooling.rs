//! The book's section 6.5, "Pooling".

use book::{Page, matrix};
use hadal::{
    Result, Tensor,
    d2l::{PoolMode, corr2d, pool2d},
    nn::{Forward, MaxPool2D},
    println,
};

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    let x = Tensor::arange(0.0, 9.0, 1.0, &page.ctx)?.reshape(&[3, 3])?;
    let max = pool2d(&x, (2, 2), PoolMode::Max)?;
    println!("maximum of 2x2\n{max}");
    page.elements("max", &max)?;
    let avg = pool2d(&x, (2, 2), PoolMode::Avg)?;
    println!("mean of 2x2\n{avg}");
    page.elements("avg", &avg)?;
    matrix::side_by_side(page, "pooling", &[("input", &x), ("2x2 maximum", &max), ("2x2 mean", &avg)])?;

    let x = Tensor::arange(0.0, 16.0, 1.0, &page.ctx)?.reshape(&[1, 1, 4, 4])?;
    println!("input\n{x}");
    println!("3x3, whose stride is 3 unless said otherwise\n{}", MaxPool2D::new(3).forward(&x)?);
    println!("3x3, padding 1, stride 2\n{}", MaxPool2D::new(3).padding(1).stride(2).forward(&x)?);
    println!("2x3, padding (1, 2), stride (2, 3)\n{}", MaxPool2D::new((2, 3)).padding((1, 2)).stride((2, 3)).forward(&x)?);

    // Each channel is pooled for itself: as many come out as went in.
    let x = Tensor::concat(&[&x, &(&x + 1.0)?], 1)?;
    println!("two channels, 3x3, padding 1, stride 2\n{}", MaxPool2D::new(3).padding(1).stride(2).forward(&x)?);
    shifted(page)
}

/// The edge that section 6.2 detects is still found in its place by a 2x2 pool when the image moves by one column.
fn shifted(page: &Page) -> Result<()> {
    let k = Tensor::from_vec(vec![1f32, -1.0], &[1, 2], &page.ctx)?;
    // White up to column `edge`, black from there on.
    let pooled = |edge: usize| -> Result<(Tensor, Tensor)> {
        let x = Tensor::ones(&[4, 8], &page.ctx)?;
        x.fill(&[0..4, edge..8], 0.0)?;
        let edges = corr2d(&x, &k)?;
        let pooled = pool2d(&edges, (2, 2), PoolMode::Max)?;
        Ok((edges, pooled))
    };
    let ((y, py), (z, pz)) = (pooled(3)?, pooled(4)?);
    println!("an edge, and after a 2x2 maximum\n{y}\n{py}");
    println!("the same of an image moved by a column\n{z}\n{pz}");
    println!("columns that answer to both images: {:?} without the pool, {:?} with it", common(&y, &z)?, common(&py, &pz)?);
    let panels = [("edges", &y), ("2x2 maximum", &py), ("edges, image moved by 1", &z), ("2x2 maximum", &pz)];
    matrix::side_by_side(page, "pooling_shift", &panels)
}

/// The columns whose first element is 1 in both.
fn common(a: &Tensor, b: &Tensor) -> Result<Vec<usize>> {
    let (a, b) = (a.at(0)?.to_vec()?, b.at(0)?.to_vec()?);
    Ok((0..a.len()).filter(|&j| a[j] == 1.0 && b[j] == 1.0).collect())
}
