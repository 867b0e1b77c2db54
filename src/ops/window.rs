//! The geometry of sliding windows, shared by convolution and pooling: attributes, their checks, the output's size.

use crate::{Error, Result};

/// A height and a width: made from one number for both, or from `[height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair(pub [usize; 2]);

impl From<usize> for Pair {
    fn from(both: usize) -> Self {
        Pair([both, both])
    }
}

impl From<[usize; 2]> for Pair {
    fn from(pair: [usize; 2]) -> Self {
        Pair(pair)
    }
}

/// Padding on the four sides, top, left, bottom, right: made from one number for all, `[vertical, horizontal]`, or all four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding(pub [usize; 4]);

impl From<usize> for Padding {
    fn from(all: usize) -> Self {
        Padding([all; 4])
    }
}

impl From<[usize; 2]> for Padding {
    fn from([v, h]: [usize; 2]) -> Self {
        Padding([v, h, v, h])
    }
}

impl From<[usize; 4]> for Padding {
    fn from(sides: [usize; 4]) -> Self {
        Padding(sides)
    }
}

/// The largest value of an attribute and of a padded extent: kernels count rows and columns in 32 bits.
const LIMIT: usize = i32::MAX as usize;

/// A window that slides over a padded plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    /// Top, left, bottom, right.
    pub padding: [usize; 4],
    /// Rounds the output's size up instead of down.
    pub ceil: bool,
}

impl Window {
    /// The height and width of the output on input `x`, of shape (N, C, H, W).
    ///
    /// Each is ⌊(H + top + bottom − dilation·(k − 1) − 1) / stride⌋ + 1, or with ⌈·⌉ in ceil mode; there a last window that
    /// would start beyond the input, inside the bottom or right padding, is left out, since it would see nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a zero kernel, stride or dilation, [`Error::Shape`] when the window exceeds the padded input.
    pub(crate) fn output(&self, op: &'static str, x: &[usize]) -> Result<[usize; 2]> {
        let &[_, _, h, w] = x else {
            return Err(Error::shape(op, "an input of 4 dimensions (N, C, H, W) is needed", &[x]));
        };
        Ok([self.along(op, x, 0, h)?, self.along(op, x, 1, w)?])
    }

    fn along(&self, op: &'static str, x: &[usize], axis: usize, size: usize) -> Result<usize> {
        let (kernel, stride, dilation) = (self.kernel[axis], self.stride[axis], self.dilation[axis]);
        let (before, after) = (self.padding[axis], self.padding[axis + 2]);
        for (name, value) in [("kernel", kernel), ("stride", stride), ("dilation", dilation)] {
            if value == 0 {
                return Err(Error::invalid(op, format!("the {name} must be positive, {self} found")));
            }
        }
        let padded = size.checked_add(before).and_then(|s| s.checked_add(after));
        let span = (kernel - 1).checked_mul(dilation).and_then(|s| s.checked_add(1));
        let (Some(padded), Some(span)) = (padded.filter(|&p| p <= LIMIT), span) else {
            return Err(Error::shape(op, format!("too large: {self}"), &[x]));
        };
        if stride > LIMIT {
            return Err(Error::invalid(op, format!("the stride is too large: {self}")));
        }
        let Some(room) = padded.checked_sub(span) else {
            return Err(Error::shape(
                op,
                format!("a window that spans {span} exceeds the padded input's {padded}: {self}"),
                &[x],
            ));
        };
        if !self.ceil {
            return Ok(room / stride + 1);
        }
        let out = room.div_ceil(stride) + 1;
        // At most room + stride, which does not overflow: both are below 2³¹.
        Ok(if out > 1 && (out - 1) * stride >= size + before { out - 1 } else { out })
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Window { kernel, stride, dilation, padding, .. } = self;
        write!(f, "kernel {kernel:?}, stride {stride:?}, dilation {dilation:?}, padding {padding:?} (top, left, bottom, right)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(kernel: usize, stride: usize, padding: impl Into<Padding>, ceil: bool) -> Window {
        Window { kernel: [kernel; 2], stride: [stride; 2], dilation: [1, 1], padding: padding.into().0, ceil }
    }

    #[test]
    fn sizes_follow_the_formula() {
        let size = |w: Window, h: usize| w.output("test", &[1, 1, h, h]).unwrap()[0];
        assert_eq!(size(window(3, 1, 1, false), 8), 8);
        assert_eq!(size(window(3, 2, 1, false), 8), 4);
        assert_eq!(size(window(2, 2, 0, false), 7), 3);
        assert_eq!(size(window(2, 2, 0, true), 7), 4);
        assert_eq!(size(window(3, 2, 1, true), 8), 5);
        // A third window would start at padded row 6, in the bottom padding.
        assert_eq!(size(window(2, 3, 1, true), 4), 2);
        assert_eq!(size(Window { dilation: [2, 2], ..window(3, 1, 0, false) }, 5), 1);
    }

    #[test]
    fn impossible_windows_are_refused() {
        let fails = |w: Window| w.output("test", &[1, 1, 4, 4]).unwrap_err().to_string();
        assert!(fails(window(0, 1, 0, false)).contains("kernel must be positive"));
        assert!(fails(window(1, 0, 0, false)).contains("stride must be positive"));
        assert!(fails(window(5, 1, 0, false)).contains("exceeds the padded input's 4"));
        for huge in [usize::MAX, 1 << 40] {
            assert!(fails(window(huge, 1, 0, false)).contains("exceeds"));
            assert!(fails(window(1, huge, 0, false)).contains("too large"));
            assert!(fails(window(1, 1, huge, false)).contains("too large"));
            assert!(fails(Window { dilation: [huge; 2], ..window(3, 1, 0, false) }).contains("too large"));
        }
        assert!(window(1, 1, 0, false).output("test", &[4, 4]).is_err());
    }
}
