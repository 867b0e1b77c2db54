//! 2-D convolution and its gradients.
//!
//! Three algorithms are chosen from the shape alone: Winograd F(2x2, 3x3) for dense 3x3 kernels of stride 1 with enough channels, plain loops for depthwise kernels, and
//! im2col with a matrix product for everything else.

mod bilinear;
mod depthwise;
mod im2col;
mod lanes;
mod tiles;
mod winograd;
mod winograd_grad;

use crate::cpu::parallel::Each;
use crate::{Result, cpu::memory};
use rayon::prelude::*;

pub use crate::conv::problem::ConvProblem;

impl ConvProblem {
    /// Whether the attributes describe a convolution at all; the message says what is wrong.
    pub fn validate(&self) -> std::result::Result<(), String> {
        let Self { c, o, groups, kernel, stride, dilation, padding, h, w, .. } = *self;
        if groups == 0 || c % groups != 0 || o % groups != 0 {
            return Err(format!("{groups} groups do not divide {c} input and {o} output channels"));
        }
        if kernel.contains(&0) || stride.contains(&0) || dilation.contains(&0) {
            return Err(format!("kernel {kernel:?}, stride {stride:?} and dilation {dilation:?} must be positive"));
        }
        for (axis, size) in [h, w].into_iter().enumerate() {
            let span = dilation[axis] * (kernel[axis] - 1) + 1;
            if size + padding[axis] + padding[axis + 2] < span {
                return Err(format!(
                    "a kernel that spans {span} exceeds the padded input of {}",
                    size + padding[axis] + padding[axis + 2]
                ));
            }
        }
        Ok(())
    }

    fn check(&self, x: &[f32], w: &[f32], y: &[f32]) {
        if let Err(message) = self.validate() {
            panic!("conv2d: {message}");
        }
        assert_eq!(
            (x.len(), w.len(), y.len()),
            (self.x_len(), self.w_len(), self.y_len()),
            "conv2d: slice lengths of x, w, y do not match {self:?}"
        );
    }

    fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.c == self.groups
    }

    /// The tile transforms cost about as much as they save when there are few channels on either side.
    fn suits_winograd(&self) -> bool {
        self.kernel == [3, 3]
            && self.stride == [1, 1]
            && self.dilation == [1, 1]
            && self.groups == 1
            && self.c >= 16
            && self.o >= 16
            && self.padding.iter().all(|&p| p <= 2)
            && self.out_h() * self.out_w() >= 4
    }
}

/// y = conv(x, w) + bias.
pub fn conv2d_forward(x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32], s: &ConvProblem) -> Result<()> {
    s.check(x, w, y);
    assert!(bias.is_none_or(|b| b.len() == s.o), "conv2d: the bias needs one value per output channel");
    if y.is_empty() {
        return Ok(());
    }
    if s.suits_winograd() {
        winograd::forward(x, w, bias, y, s)
    } else if s.is_depthwise() {
        depthwise::forward(x, w, bias, y, s);
        Ok(())
    } else {
        im2col::forward(x, w, bias, y, s)
    }
}

/// dx = the gradient with respect to x (overwritten).
pub fn conv2d_backward_data(dy: &[f32], w: &[f32], dx: &mut [f32], s: &ConvProblem) -> Result<()> {
    s.check(dx, w, dy);
    if dx.is_empty() {
        return Ok(());
    }
    if s.suits_winograd() {
        winograd::backward_data(dy, w, dx, s)
    } else if s.is_depthwise() {
        depthwise::backward_data(dy, w, dx, s);
        Ok(())
    } else {
        im2col::backward_data(dy, w, dx, s)
    }
}

/// dw = the gradient with respect to the weights (overwritten).
pub fn conv2d_backward_weight(x: &[f32], dy: &[f32], dw: &mut [f32], s: &ConvProblem) -> Result<()> {
    s.check(x, dw, dy);
    if dy.is_empty() {
        dw.fill(0.0);
        return Ok(());
    }
    if s.suits_winograd() {
        winograd_grad::backward_weight(x, dy, dw, s)
    } else if s.is_depthwise() {
        depthwise::backward_weight(x, dy, dw, s)
    } else {
        im2col::backward_weight(x, dy, dw, s)
    }
}

/// Images per parallel part of the bias gradient.
const BIAS_PART: usize = 16;

/// db[o] = the sum of dy over images and pixels (overwritten); dy is (n, o, pixels).
pub fn conv2d_backward_bias(dy: &[f32], db: &mut [f32], n: usize, pixels: usize) -> Result<()> {
    let o = db.len();
    assert_eq!(dy.len(), n * o * pixels, "conv2d: dy does not match the bias");
    db.fill(0.0);
    if dy.is_empty() {
        return Ok(());
    }
    // One row of sums per fixed part, added up in order.
    let part_len = BIAS_PART * o * pixels;
    let mut sums = memory::filled(dy.len().div_ceil(part_len) * o, 0.0f64)?;
    sums.par_chunks_mut(o).zip(dy.par_chunks(part_len)).each(|(sums, part)| {
        for image in part.chunks_exact(o * pixels) {
            for (sum, plane) in sums.iter_mut().zip(image.chunks_exact(pixels)) {
                *sum += crate::cpu::elementwise::sum(plane) as f64;
            }
        }
    });
    for (i, out) in db.iter_mut().enumerate() {
        *out = sums.chunks_exact(o).map(|part| part[i]).sum::<f64>() as f32;
    }
    Ok(())
}
