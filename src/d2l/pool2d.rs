//! Pooling as the book's section 6.5 builds it.

use super::corr2d::windows;
use crate::{Result, Tensor, ops::Pair};

/// What [`pool2d`] makes of a window: the book's `mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PoolMode {
    /// Its largest element; the first one gets the gradient where several are equal.
    #[default]
    Max,
    /// The mean of its elements.
    Avg,
}

/// Pooling of an image with stride 1, the book's section 6.5.1: (H, W) → (H − h + 1, W − w + 1) for a window of (h, w).
///
/// `y[i, j] = max_{r,s} x[i + r, j + s]`, or the mean of the same elements.
///
/// [`nn::MaxPool2D`](crate::nn::MaxPool2D) and [`nn::AvgPool2D`](crate::nn::AvgPool2D) do the same for batches, with padding
/// and strides.
///
/// ```
/// use hadal::{Tensor, cpu, d2l::{PoolMode, pool2d}};
/// let x = Tensor::arange(0.0, 9.0, 1.0, &cpu())?.reshape(&[3, 3])?;
/// assert_eq!(pool2d(&x, (2, 2), PoolMode::Max)?.to_vec()?, [4., 5., 7., 8.]);
/// assert_eq!(pool2d(&x, (2, 2), PoolMode::Avg)?.to_vec()?, [2., 3., 5., 6.]);
/// # Ok::<(), hadal::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) when `x` is no matrix, or the window is empty or larger than it.
pub fn pool2d(x: &Tensor, window: impl Into<Pair>, mode: PoolMode) -> Result<Tensor> {
    let Pair(window) = window.into();
    let seen = windows("pool2d", x, window, &[&x.shape(), &window])?;
    let seen = Tensor::stack(&seen.iter().collect::<Vec<_>>(), 0)?;
    match mode {
        PoolMode::Max => seen.max(&[0]),
        PoolMode::Avg => seen.mean(&[0]),
    }
}
