//! A 2-D convolution as all of its algorithms know it, and its three passes.

/// The sizes and attributes of a convolution: x is (n, c, h, w), the weights (o, c / groups, kh, kw), y (n, o, out_h, out_w).
///
/// The op makes it from the shapes that it has checked; nothing below checks them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvProblem {
    pub n: usize,
    pub c: usize,
    pub h: usize,
    pub w: usize,
    pub o: usize,
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    /// Top, left, bottom, right.
    pub padding: [usize; 4],
    pub dilation: [usize; 2],
    pub groups: usize,
}

/// A pass of a convolution, numbered as `PASS` in the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConvPass {
    /// y from x and w.
    Fprop,
    /// dx from dy and w.
    Dgrad,
    /// dw from dy and x.
    Wgrad,
}

impl ConvProblem {
    pub fn out_h(&self) -> usize {
        (self.h + self.padding[0] + self.padding[2] - self.dilation[0] * (self.kernel[0] - 1) - 1) / self.stride[0] + 1
    }

    pub fn out_w(&self) -> usize {
        (self.w + self.padding[1] + self.padding[3] - self.dilation[1] * (self.kernel[1] - 1) - 1) / self.stride[1] + 1
    }

    pub fn x_len(&self) -> usize {
        self.n * self.c * self.h * self.w
    }

    pub fn w_len(&self) -> usize {
        self.o * (self.c / self.groups) * self.kernel[0] * self.kernel[1]
    }

    pub fn y_len(&self) -> usize {
        self.n * self.o * self.out_h() * self.out_w()
    }

    /// Elements of one image's patches in a group, unrolled.
    pub fn patches(&self) -> usize {
        volume(&[self.c / self.groups, self.kernel[0], self.kernel[1], self.out_h(), self.out_w()])
    }

    pub(crate) fn x_shape(&self) -> [usize; 4] {
        [self.n, self.c, self.h, self.w]
    }

    pub(crate) fn w_shape(&self) -> [usize; 4] {
        [self.o, self.c / self.groups, self.kernel[0], self.kernel[1]]
    }

    pub(crate) fn y_shape(&self) -> [usize; 4] {
        [self.n, self.o, self.out_h(), self.out_w()]
    }

    /// The shape of a pass's result.
    pub(crate) fn result_shape(&self, pass: ConvPass) -> [usize; 4] {
        match pass {
            ConvPass::Fprop => self.y_shape(),
            ConvPass::Dgrad => self.x_shape(),
            ConvPass::Wgrad => self.w_shape(),
        }
    }

    /// 3x3 with stride 1 and padding 1: what the kernels with a halo compute.
    pub(crate) fn is_same_3x3(&self) -> bool {
        (self.kernel, self.stride, self.padding, self.dilation, self.groups) == ([3, 3], [1, 1], [1; 4], [1, 1], 1)
    }
}

/// The product of extents, at most `usize::MAX`.
pub(crate) fn volume(extents: &[usize]) -> usize {
    extents.iter().fold(1, |p, &v| p.saturating_mul(v))
}
