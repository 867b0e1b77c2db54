//! Cross-correlation as the book's sections 6.2 to 6.4 build it up: one channel, several in, several out.
//!
//! The book visits every pixel of the output. Here every element of the kernel is visited instead: it multiplies the whole
//! image at once, moved by its place in the window. That is the same sum, a few operations on any context, and differentiable.

use crate::{
    Error, Result, Tensor, init,
    nn::{Block, Conv2D},
};

/// The shape as an array; an error of `op` with both shapes where the rank is another one.
fn rank<const N: usize>(op: &'static str, what: &str, shape: &[usize], all: &[&[usize]]) -> Result<[usize; N]> {
    shape.try_into().map_err(|_| Error::shape(op, format!("{what} has {} axes, not {N}", shape.len()), all))
}

/// Rows and columns of the output, (H − h + 1) × (W − w + 1).
fn extent(op: &'static str, [h, w]: [usize; 2], [kh, kw]: [usize; 2], all: &[&[usize]]) -> Result<[usize; 2]> {
    if kh == 0 || kw == 0 || kh > h || kw > w {
        return Err(Error::shape(op, format!("a window of {kh}x{kw} does not fit into {h}x{w}"), all));
    }
    Ok([h - kh + 1, w - kw + 1])
}

/// What the elements of a window see: for each of its places in row-major order the image moved there, (H − h + 1, W − w + 1).
pub(super) fn windows(op: &'static str, x: &Tensor, window: [usize; 2], all: &[&[usize]]) -> Result<Vec<Tensor>> {
    let [oh, ow] = extent(op, rank(op, "the image", &x.shape(), all)?, window, all)?;
    let places = (0..window[0]).flat_map(|r| (0..window[1]).map(move |s| (r, s)));
    places.map(|(r, s)| x.slices(&[r..r + oh, s..s + ow])).collect()
}

/// Cross-correlation of an image with a kernel, the book's section 6.2: (H, W) ⋆ (h, w) → (H − h + 1, W − w + 1).
///
/// `y[i, j] = Σ_{r,s} k[r, s] · x[i + r, j + s]`
///
/// [`Conv2D`] does the same for batches and channels in one kernel.
///
/// ```
/// use hadal::{Tensor, cpu, d2l::corr2d};
/// let x = Tensor::arange(0.0, 9.0, 1.0, &cpu())?.reshape(&[3, 3])?;
/// let k = Tensor::arange(0.0, 4.0, 1.0, &cpu())?.reshape(&[2, 2])?;
/// assert_eq!(corr2d(&x, &k)?.to_vec()?, [19., 25., 37., 43.]);
/// # Ok::<(), hadal::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] when one of them is no matrix, or the kernel is empty or larger than the image.
pub fn corr2d(x: &Tensor, k: &Tensor) -> Result<Tensor> {
    let (xs, ks) = (x.shape(), k.shape());
    let [kh, kw] = rank("corr2d", "the kernel", &ks, &[&xs, &ks])?;
    let seen = windows("corr2d", x, [kh, kw], &[&xs, &ks])?;
    let term = |(i, seen): (usize, &Tensor)| {
        let (r, s) = (i / kw, i % kw);
        seen * k.slices(&[r..r + 1, s..s + 1])?
    };
    let terms = seen.iter().enumerate().map(term).collect::<Result<Vec<_>>>()?;
    Tensor::add_n(&terms.iter().collect::<Vec<_>>())
}

/// Cross-correlation with several input channels, the book's section 6.4.1: (C, H, W) ⋆ (C, h, w) → (H − h + 1, W − w + 1).
///
/// `y = Σ_c corr2d(x[c], k[c])`
///
/// ```
/// use hadal::{Tensor, cpu, d2l::corr2d_multi_in};
/// let plane = |from: f64, n: usize| Tensor::arange(from, from + (n * n) as f64, 1.0, &cpu())?.reshape_as(&[n, n]);
/// let x = Tensor::stack(&[&plane(0.0, 3)?, &plane(1.0, 3)?], 0)?;
/// let k = Tensor::stack(&[&plane(0.0, 2)?, &plane(1.0, 2)?], 0)?;
/// assert_eq!(corr2d_multi_in(&x, &k)?.to_vec()?, [56., 72., 104., 120.]);
/// # Ok::<(), hadal::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] when one of them has not three axes, the channels differ or are none, or the kernel does not fit.
pub fn corr2d_multi_in(x: &Tensor, k: &Tensor) -> Result<Tensor> {
    let (xs, ks) = (x.shape(), k.shape());
    multi_in("corr2d_multi_in", x, k, &[&xs, &ks])
}

fn multi_in(op: &'static str, x: &Tensor, k: &Tensor, all: &[&[usize]]) -> Result<Tensor> {
    let [c, h, w] = rank(op, "the image", &x.shape(), all)?;
    let [kc, kh, kw] = rank(op, "the kernel", &k.shape(), all)?;
    if c != kc || c == 0 {
        return Err(Error::shape(op, format!("{c} channels of the image and {kc} of the kernel"), all));
    }
    extent(op, [h, w], [kh, kw], all)?;
    let planes = (0..c as isize).map(|c| corr2d(&x.at(c)?, &k.at(c)?)).collect::<Result<Vec<_>>>()?;
    Tensor::add_n(&planes.iter().collect::<Vec<_>>())
}

/// Cross-correlation with several input and output channels, the book's section 6.4.2:
/// (C, H, W) ⋆ (O, C, h, w) → (O, H − h + 1, W − w + 1).
///
/// `y[o] = corr2d_multi_in(x, k[o])`
///
/// ```
/// use hadal::{Tensor, cpu, d2l::corr2d_multi_in_out};
/// let (x, k) = (Tensor::ones(&[2, 3, 3], &cpu())?, Tensor::ones(&[3, 2, 2, 2], &cpu())?);
/// assert_eq!(corr2d_multi_in_out(&x, &k)?.shape(), [3, 2, 2]);
/// # Ok::<(), hadal::Error>(())
/// ```
///
/// # Errors
/// Those of [`corr2d_multi_in`]; also when the kernel has no output channels.
pub fn corr2d_multi_in_out(x: &Tensor, k: &Tensor) -> Result<Tensor> {
    let op = "corr2d_multi_in_out";
    let (xs, ks) = (x.shape(), k.shape());
    let all: [&[usize]; 2] = [&xs, &ks];
    let [o, ..] = rank::<4>(op, "the kernel", &ks, &all)?;
    if o == 0 {
        return Err(Error::shape(op, "the kernel has no output channels", &all));
    }
    let planes = (0..o as isize).map(|o| multi_in(op, x, &k.at(o)?, &all)).collect::<Result<Vec<_>>>()?;
    Tensor::stack(&planes.iter().collect::<Vec<_>>(), 0)
}

/// A 1x1 convolution as a dense layer on every pixel, the book's section 6.4.3: (C, H, W) and (O, C, 1, 1) → (O, H, W).
///
/// `y[o, i, j] = Σ_c k[o, c] · x[c, i, j]`, one product of matrices.
///
/// ```
/// use hadal::{Tensor, cpu, d2l::{corr2d_multi_in_out, corr2d_multi_in_out_1x1}};
/// let x = Tensor::uniform(0.0, 1.0, &[3, 3, 3], &cpu())?;
/// let k = Tensor::uniform(0.0, 1.0, &[2, 3, 1, 1], &cpu())?;
/// let (a, b) = (corr2d_multi_in_out_1x1(&x, &k)?, corr2d_multi_in_out(&x, &k)?);
/// assert!((a - b)?.norm(&[])?.item()? < 1e-6);
/// # Ok::<(), hadal::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] when the ranks are others, the window is not 1x1, or the channels differ.
pub fn corr2d_multi_in_out_1x1(x: &Tensor, k: &Tensor) -> Result<Tensor> {
    let op = "corr2d_multi_in_out_1x1";
    let (xs, ks) = (x.shape(), k.shape());
    let all: [&[usize]; 2] = [&xs, &ks];
    let [c, h, w] = rank(op, "the image", &xs, &all)?;
    let [o, kc, kh, kw] = rank(op, "the kernel", &ks, &all)?;
    if (kh, kw) != (1, 1) || c != kc {
        return Err(Error::shape(op, format!("the kernel is to be (O, {c}, 1, 1)"), &all));
    }
    k.reshape_as(&[o, c])?.dot(&x.reshape_as(&[c, h * w])?)?.reshape_as(&[o, h, w])
}

/// A convolution of one image, the book's section 6.3: initializes the layer where it is not yet, adds the axes of batch and
/// channel to (H, W), and takes them off the result.
///
/// First weights are drawn from U\[−0.07, 0.07\], as where the book calls `initialize()`.
///
/// ```
/// use hadal::{Tensor, cpu, d2l::comp_conv2d, nn::Conv2D};
/// let x = Tensor::uniform(0.0, 1.0, &[8, 8], &cpu())?;
/// assert_eq!(comp_conv2d(&Conv2D::new(1, 3).padding(1), &x)?.shape(), [8, 8]);
/// assert_eq!(comp_conv2d(&Conv2D::new(1, (3, 5)).padding((0, 1)).stride((3, 4)), &x)?.shape(), [2, 2]);
/// # Ok::<(), hadal::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] when `x` is no matrix or the layer has several output channels; those of the layer.
pub fn comp_conv2d(conv2d: &Conv2D, x: &Tensor) -> Result<Tensor> {
    let op = "comp_conv2d";
    let xs = x.shape();
    let [h, w] = rank(op, "the image", &xs, &[&xs])?;
    conv2d.initialize(init::Uniform(0.07), &x.context())?;
    let y = crate::nn::Forward::forward(conv2d, &x.reshape_as(&[1, 1, h, w])?)?;
    let ys = y.shape();
    match ys[..] {
        [1, 1, oh, ow] => y.reshape_as(&[oh, ow]),
        _ => Err(Error::shape(op, "the layer has not one output channel", &[&xs, &ys])),
    }
}
