//! Pooling over windows (maximum, mean) and over whole planes.

mod avg;
mod device;
mod global;
mod max;

pub use avg::AvgPool2d;
pub use global::GlobalAvgPool2d;
pub use max::MaxPool2d;

use super::window::{Padding, Pair, Window};
use crate::{Error, Result, cpu::pooling::PoolShape, shape::checked_numel};

/// The attributes of a pooling; each setter takes one number for both axes or `[height, width]`.
///
/// ```
/// use hadal::ops::PoolOptions;
/// let o = PoolOptions::new(3).stride(2).padding(1);
/// assert_eq!((o.kernel, o.stride, o.padding), ([3, 3], Some([2, 2]), [1, 1, 1, 1]));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolOptions {
    /// The window, height and width; 2 by 2 by default.
    pub kernel: [usize; 2],
    /// Steps of the window; the window's own size by default.
    pub stride: Option<[usize; 2]>,
    /// Padding: top, left, bottom, right; 0 by default. It never wins a maximum and counts as 0 in a mean.
    pub padding: [usize; 4],
    /// Rounds the output's size up, so that no row or column of the input is left out (MXNet's convention `full`).
    ///
    /// A window that would start beyond the input is left out, as in PyTorch: it would see nothing.
    pub ceil_mode: bool,
    /// A mean divides by the size of the window, padding included (the default), or by the number of its elements inside.
    ///
    /// In ceil mode the part of a window beyond the padding never counts.
    pub count_include_pad: bool,
}

impl Default for PoolOptions {
    fn default() -> Self {
        PoolOptions { kernel: [2, 2], stride: None, padding: [0; 4], ceil_mode: false, count_include_pad: true }
    }
}

impl PoolOptions {
    /// A window of that size, moved by its own size, without padding.
    pub fn new(kernel: impl Into<Pair>) -> Self {
        PoolOptions { kernel: kernel.into().0, ..Self::default() }
    }

    /// Sets the stride.
    pub fn stride(self, stride: impl Into<Pair>) -> Self {
        PoolOptions { stride: Some(stride.into().0), ..self }
    }

    /// Sets the padding: one number, `[vertical, horizontal]` or `[top, left, bottom, right]`.
    pub fn padding(self, padding: impl Into<Padding>) -> Self {
        PoolOptions { padding: padding.into().0, ..self }
    }

    /// Rounds the output's size up or down.
    pub fn ceil_mode(self, ceil_mode: bool) -> Self {
        PoolOptions { ceil_mode, ..self }
    }

    /// Counts padding in a mean's divisor or not.
    pub fn count_include_pad(self, count_include_pad: bool) -> Self {
        PoolOptions { count_include_pad, ..self }
    }

    /// Checks the attributes against an input (N, C, H, W); returns the sizes and the output's shape.
    ///
    /// # Errors
    /// [`Error::Shape`] when the plane is empty or the window exceeds the padded plane, [`Error::Invalid`] for a zero kernel or
    /// stride, and for padding that is not smaller than the window, which could then lie in it altogether.
    pub(crate) fn plan(&self, op: &'static str, x: &[usize]) -> Result<(PoolShape, [usize; 4])> {
        let (kernel, padding, stride) = (self.kernel, self.padding, self.stride.unwrap_or(self.kernel));
        let window = Window { kernel, stride, dilation: [1, 1], padding, ceil: self.ceil_mode };
        let [oh, ow] = window.output(op, x)?;
        let &[n, c, h, w] = x else { return Err(Error::shape(op, "4 dimensions are needed", &[x])) };
        if h == 0 || w == 0 {
            return Err(Error::shape(op, "the plane is empty", &[x]));
        }
        if (0..4).any(|side| padding[side] >= kernel[side % 2]) {
            return Err(Error::invalid(op, format!("the padding must be smaller than the window: {window}")));
        }
        checked_numel(op, &[n, c, oh, ow])?;
        let (ceil_mode, count_include_pad) = (self.ceil_mode, self.count_include_pad);
        Ok((PoolShape { planes: n * c, h, w, kernel, stride, padding, ceil_mode, count_include_pad }, [n, c, oh, ow]))
    }
}

/// Rows (axis 0) or columns (axis 1) of the input under output `o`.
fn under(s: &PoolShape, axis: usize, o: usize) -> std::ops::Range<usize> {
    let (start, pad, size) = (o * s.stride[axis], s.padding[axis], if axis == 0 { s.h } else { s.w });
    start.saturating_sub(pad)..(start + s.kernel[axis]).saturating_sub(pad).min(size)
}

/// True when the window is of an ordinary size: the fast paths take memory and time in proportion to its width, the plain loops
/// to the elements inside.
fn ordinary(s: &PoolShape) -> bool {
    s.scratch() <= (32 * s.h * s.w).max(1 << 14)
}
