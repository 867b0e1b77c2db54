//! 2-D convolution (cross-correlation, as all frameworks call it), its options and its gradients.

use super::{
    bias_grad::{column_sums, plane_sums},
    conv2d_cpu as on_cpu,
    operands::same_float,
    window::{Padding, Pair, Window},
};
use crate::{
    Array, Context, Error, Layout, Result, Tensor,
    autograd::{Op, Saved, apply1},
    conv::{
        self, ConvCall, ConvOperands, ConvOutputs,
        problem::{ConvPass, ConvProblem},
    },
    gemm::{bf16x3::SplitCache, bn_stats::ChannelSums},
    shape::checked_numel,
};

/// The attributes of a convolution; each setter takes one number for both axes or `[height, width]`.
///
/// ```
/// use hadal::ops::Conv2dOptions;
/// let o = Conv2dOptions::new().stride(2).padding([1, 3]);
/// assert_eq!((o.stride, o.padding), ([2, 2], [1, 3, 1, 3]));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Conv2dOptions {
    /// Steps of the filter, vertical and horizontal; 1 by default.
    pub stride: [usize; 2],
    /// Zeros around the input: top, left, bottom, right; 0 by default.
    pub padding: [usize; 4],
    /// Distance between the filter's taps, vertical and horizontal; 1 by default.
    pub dilation: [usize; 2],
    /// Groups of channels that do not see each other; 1 by default, the number of channels for a depthwise convolution.
    pub groups: usize,
}

impl Default for Conv2dOptions {
    fn default() -> Self {
        Conv2dOptions { stride: [1, 1], padding: [0; 4], dilation: [1, 1], groups: 1 }
    }
}

impl Conv2dOptions {
    /// Stride 1, no padding, no dilation, one group.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the stride.
    pub fn stride(self, stride: impl Into<Pair>) -> Self {
        Conv2dOptions { stride: stride.into().0, ..self }
    }

    /// Sets the padding: one number, `[vertical, horizontal]` or `[top, left, bottom, right]`.
    pub fn padding(self, padding: impl Into<Padding>) -> Self {
        Conv2dOptions { padding: padding.into().0, ..self }
    }

    /// Sets the dilation.
    pub fn dilation(self, dilation: impl Into<Pair>) -> Self {
        Conv2dOptions { dilation: dilation.into().0, ..self }
    }

    /// Sets the number of groups.
    pub fn groups(self, groups: usize) -> Self {
        Conv2dOptions { groups, ..self }
    }
}

/// y = x ∗ w + b for x (N, C, H, W), w (O, C / groups, kh, kw) and, if given, b (O); y is (N, O, OH, OW).
///
/// y\[n, o, i, j\] = b\[o\] + Σ x\[n, c, i·sh + p·dh − top, j·sw + q·dw − left\] · w\[o, c, p, q\] over the channels c of o's group
/// and the taps p, q; outside of the input x is 0. OH = ⌊(H + top + bottom − dh·(kh − 1) − 1) / sh⌋ + 1, OW alike.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conv2d(pub Conv2dOptions);

impl Conv2d {
    /// The error that inputs of these shapes bring, if any.
    pub(crate) fn check(&self, x: &[usize], w: &[usize], b: Option<&[usize]>) -> Result<()> {
        self.problem(x, w, b).map(|_| ())
    }

    /// Checks the shapes, and gives the problem that all passes and algorithms take as it is.
    pub(super) fn problem(&self, x: &[usize], w: &[usize], b: Option<&[usize]>) -> Result<ConvProblem> {
        let Conv2dOptions { stride, padding, dilation, groups } = self.0;
        let shapes: Vec<&[usize]> = [x, w].into_iter().chain(b).collect();
        let fail = |reason: String| Err(Error::shape(self.name(), reason, &shapes));
        let &[n, c, h, width] = x else { return fail("an input of 4 dimensions (N, C, H, W) is needed".into()) };
        let &[o, cg, kh, kw] = w else { return fail("a weight of 4 dimensions (O, C / groups, kh, kw) is needed".into()) };
        if groups == 0 || c % groups != 0 || o % groups != 0 {
            return fail(format!("{groups} groups do not divide {c} input channels and {o} output channels"));
        }
        if c / groups != cg {
            let each = if groups == 1 { String::new() } else { format!(" in each of {groups} groups") };
            return fail(format!("the input has {} channels{each}, the weight takes {cg}", c / groups));
        }
        if b.is_some_and(|b| b != [o]) {
            return fail(format!("the bias needs {o} elements, one for each output channel"));
        }
        let [oh, ow] = Window { kernel: [kh, kw], stride, dilation, padding, ceil: false }.output(self.name(), x)?;
        checked_numel(self.name(), &[n, o, oh, ow])?;
        Ok(ConvProblem { n, c, h, w: width, o, kernel: [kh, kw], stride, padding, dilation, groups })
    }
}

/// y of each convolution of x, with A = x, B = w.
pub(super) fn fprop(op: &'static str, convs: &[ConvOperands]) -> Result<Vec<Array>> {
    match convs[0].a.context() {
        Context::Cpu => convs.iter().map(|c| on_cpu::fprop(op, c)).collect(),
        Context::Gpu(_) => Ok(conv::run(&ConvCall::new(op, ConvPass::Fprop, convs)?)?.arrays),
    }
}

/// dx of all convolutions together, with A = dy, B = w, and what has arrived for it, whose memory may be written.
pub(super) fn dgrad(op: &'static str, convs: &[ConvOperands], grad_so_far: Option<&Array>) -> Result<Array> {
    match convs[0].a.context() {
        Context::Cpu => on_cpu::dgrad(op, convs, grad_so_far),
        Context::Gpu(_) => conv::run(&ConvCall { grad_so_far, ..ConvCall::new(op, ConvPass::Dgrad, convs)? })?.single(),
    }
}

/// dw of each convolution, in x's layout, with A = dy, B = x; db along with it where that is asked for and costs nothing.
pub(super) fn wgrad(op: &'static str, convs: &[ConvOperands], wants_bias_grad: bool) -> Result<ConvOutputs> {
    match convs[0].a.context() {
        Context::Cpu => Ok(ConvOutputs::new(convs.iter().map(|c| on_cpu::wgrad(op, c)).collect::<Result<_>>()?)),
        Context::Gpu(_) => conv::run(&ConvCall { wants_bias_grad, ..ConvCall::new(op, ConvPass::Wgrad, convs)? }),
    }
}

/// db.
pub(super) fn bias_grad(op: &'static str, dy: &Array, s: &ConvProblem) -> Result<Array> {
    if dy.context() == Context::Cpu {
        return on_cpu::bias_grad(op, dy, s);
    }
    if let Some(sums) = ChannelSums::of(dy)? {
        return sums.cast(dy.dtype());
    }
    let [n, o, oh, ow] = s.y_shape();
    match dy.layout() {
        Layout::ChannelsLast => column_sums(op, dy, n * oh * ow, o),
        Layout::RowMajor => plane_sums(dy, n, o, oh * ow),
    }
}

impl Op for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let (x, w, b) = match *inputs {
            [x, w] => (x, w, None),
            [x, w, b] => (x, w, Some(b)),
            _ => return Err(Error::invalid(self.name(), "two or three inputs are needed: x, w and perhaps b")),
        };
        same_float(self.name(), &[&[x, w][..], b.as_slice()].concat())?;
        let problem = &self.problem(x.shape(), w.shape(), b.map(Array::shape))?;
        let y = fprop(self.name(), &[ConvOperands { problem, a: x, b: w, bias: b }])?;
        if saved.needs(0) {
            saved.keep(w);
        }
        if saved.needs(1) {
            saved.keep(x);
        }
        saved.outputs(self.name(), inputs, y)
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let problem = &self.problem(saved.shape(0), saved.shape(1), None)?;
        let [dy] = saved.gradients(self.name(), dy)?;
        let on_gpu = dy.context() != Context::Cpu;
        let _split_once = SplitCache::new(&[dy]);
        let with = |b| [ConvOperands { problem, a: dy, b, bias: None }];
        let dx = match saved.needs(0) {
            true => Some(dgrad(self.name(), &with(saved.get(0)?), saved.arrived(0))?),
            false => None,
        };
        let wants_bias = saved.inputs() == 3 && saved.needs(2);
        let (mut dw, mut db) = (None, None);
        if saved.needs(1) {
            let x = saved.get(usize::from(saved.needs(0)))?;
            // A batch norm behind the convolution may know the sums already.
            let along = wants_bias && on_gpu && ChannelSums::of(dy)?.is_none();
            let outputs = wgrad(self.name(), &with(x), along)?;
            db = outputs.bias_grad.clone();
            dw = Some(outputs.single()?);
        }
        if wants_bias && db.is_none() {
            db = Some(bias_grad(self.name(), dy, problem)?);
        }
        let mut grads = vec![dx, dw];
        grads.extend((saved.inputs() == 3).then_some(db));
        Ok(grads)
    }

    fn adds(&self, i: usize) -> bool {
        i == 0
    }
}

impl Tensor {
    /// 2-D convolution of (N, C, H, W) with filters `w` (O, C / groups, kh, kw), plus `b` (O) if given.
    ///
    /// The output is (N, O, OH, OW) with OH = ⌊(H + top + bottom − dilation·(kh − 1) − 1) / stride⌋ + 1, in the input's layout.
    ///
    /// # Errors
    /// [`Error::Shape`] when channels, groups or bias do not fit or the filter exceeds the padded input, [`Error::Invalid`] for
    /// a zero stride, dilation or filter.
    ///
    /// ```
    /// use hadal::{Tensor, cpu, ops::Conv2dOptions};
    /// let x = Tensor::arange(0.0, 9.0, 1.0, &cpu())?.array().reshape(&[1, 1, 3, 3])?;
    /// let w = Tensor::arange(0.0, 4.0, 1.0, &cpu())?.array().reshape(&[1, 1, 2, 2])?;
    /// let y = Tensor::new(x).conv2d(&Tensor::new(w), None, Conv2dOptions::new())?;
    /// assert_eq!(y.to_vec()?, [19., 25., 37., 43.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn conv2d(&self, w: &Tensor, b: Option<&Tensor>, options: Conv2dOptions) -> Result<Tensor> {
        match b {
            Some(b) => apply1(Conv2d(options), &[self, w, b]),
            None => apply1(Conv2d(options), &[self, w]),
        }
    }
}
