//! 2-D convolution on the GPU: start here.
//!
//! A [`ConvCall`] is a pass of one [`ConvProblem`], or of two of one input, with its operands. [`run`] asks the one selector
//! ([`crate::gemm::select`]) for a plan from the list [`ConvPlan`], and launches it:
//!
//! | algorithm | files | passes | computes |
//! | --- | --- | --- | --- |
//! | first layer | [`first_layer`], [`first_layer_plan`] | fprop, wgrad | at most 4 channels; mma.sync, 3xTF32, f32 |
//! | depthwise | [`depthwise`] | all | a filter for each channel; every dtype |
//! | halo wgmma | [`halo_wgmma`], [`halo_wgrad`] | all | 3x3, stride 1, padding 1; bf16, f16, TF32 on sm_90a |
//! | im2col wgmma | [`im2col_wgmma`], [`im2col_wgrad`], [`phases`] | all, two at once | bf16, f16, TF32 on sm_90a, by TMA's im2col |
//! | mma.sync | [`mma`] | all | bf16, f16, TF32, 3xTF32 from sm_75 or sm_80 on |
//! | one by one | [`one_by_one`] | all, two | two convolutions of one input, each by an algorithm of its own |
//! | bf16x6 | [`bf16x6`] | all, two at once | f32 on sm_90a |
//! | SIMT | [`simt`] | all | everything |
//!
//! A new algorithm is a file that implements [`Algorithm`](crate::gemm::select::Algorithm), and a line of the list.

mod bf16x6;
mod depthwise;
pub(crate) mod first_layer;
pub(crate) mod first_layer_plan;
mod halo_wgmma;
mod halo_wgrad;
mod im2col_wgmma;
mod im2col_wgrad;
mod mma;
mod one_by_one;
mod phases;
pub(crate) mod problem;
mod simt;
mod wgmma_params;

use crate::{
    Array, DType, Error, Layout, Result, autograd,
    gemm::{
        arch::Arch,
        select::{AnyPlan, Tuning, algorithms, select},
    },
    precision::{self, Precision},
};
use bf16x6::Bf16x6;
use depthwise::Depthwise;
use first_layer::FirstLayer;
use halo_wgmma::HaloWgmma;
use im2col_wgmma::Im2colWgmma;
use mma::Mma;
use one_by_one::OneByOne;
use problem::{ConvPass, ConvProblem};
use simt::Simt;

algorithms!(
    /// A plan of one of the algorithms, in the order in which they are asked.
    ConvPlan for ConvCall -> ConvOutputs:
    FirstLayer,
    Depthwise,
    HaloWgmma,
    Im2colWgmma,
    Mma,
    OneByOne,
    Bf16x6,
    Simt,
);

/// One convolution of a call. As in CUTLASS, A is x (fprop) or dy (dgrad, wgrad), B is w (fprop, dgrad) or x (wgrad).
#[derive(Clone, Copy)]
pub(crate) struct ConvOperands<'a> {
    pub problem: &'a ConvProblem,
    pub a: &'a Array,
    pub b: &'a Array,
    /// Of the output channels, in fprop.
    pub bias: Option<&'a Array>,
}

/// A pass of one convolution, or of two with the same x, on a GPU.
#[derive(Clone, Copy)]
pub(crate) struct ConvCall<'a> {
    pub op: &'static str,
    pub pass: ConvPass,
    pub convs: &'a [ConvOperands<'a>],
    /// In dgrad: what other uses of x have sent back, to which dx is added. Its memory may be written.
    pub grad_so_far: Option<&'a Array>,
    /// In wgrad: dbias is computed along with dw where that costs nothing.
    pub wants_bias_grad: bool,
    pub arch: Arch,
    pub precision: Precision,
}

/// The result of a call.
pub(crate) struct ConvOutputs {
    /// y of each convolution, dx of all together, or dw of each.
    pub arrays: Vec<Array>,
    /// Where it was asked for, and came along.
    pub bias_grad: Option<Array>,
    /// dx contains `grad_so_far`.
    pub accumulated: bool,
}

impl ConvOutputs {
    pub(crate) fn new(arrays: Vec<Array>) -> Self {
        ConvOutputs { arrays, bias_grad: None, accumulated: false }
    }

    /// The only array, or the first.
    pub(crate) fn single(mut self) -> Result<Array> {
        self.arrays.pop().ok_or_else(|| Error::invalid("conv2d", "a pass without a result"))
    }
}

impl<'a> ConvCall<'a> {
    /// Of `convs`, which are not empty.
    pub(crate) fn new(op: &'static str, pass: ConvPass, convs: &'a [ConvOperands<'a>]) -> Result<Self> {
        let arch = Arch::of(convs[0].a)?;
        Ok(ConvCall { op, pass, convs, grad_so_far: None, wants_bias_grad: false, arch, precision: precision::get() })
    }

    /// The convolution, if it is only one.
    fn single(&self) -> Option<&'a ConvOperands<'a>> {
        if let [one] = self.convs { Some(one) } else { None }
    }

    /// That of operands and results.
    fn dtype(&self) -> DType {
        self.convs[0].a.dtype()
    }

    /// That of the results: images lie as the images of the other side, dw as x.
    fn layout(&self) -> Layout {
        let first = &self.convs[0];
        if self.pass == ConvPass::Wgrad { first.b.layout() } else { first.a.layout() }
    }

    /// Memory for the result of a convolution.
    fn uninit(&self, conv: &ConvOperands, layout: Layout) -> Result<Array> {
        Array::uninit(&conv.problem.result_shape(self.pass), self.dtype(), layout, &conv.a.context())
    }

    /// A launch got a plan that is not for its call.
    fn unsupported(&self) -> Error {
        Error::invalid(self.op, "a plan of another convolution")
    }

    /// All that its time depends on, for the autotuner.
    fn key(&self) -> Vec<usize> {
        let p = self.convs[0].problem;
        let nhwc = |a: &Array| usize::from(a.layout() == Layout::ChannelsLast);
        let layouts = self.convs.iter().flat_map(|c| [nhwc(c.a), nhwc(c.b)]).fold(1, |bits, b| bits * 2 + b);
        let epilogue = self.convs.iter().map(|c| c.bias.is_some());
        // Statistics for a batch norm are stored in training.
        let stats = self.pass == ConvPass::Fprop && autograd::is_training();
        let epilogue = epilogue.chain([self.grad_so_far.is_some(), self.wants_bias_grad, stats]);
        let epilogue = epilogue.fold(1, |bits, b| bits * 2 + usize::from(b));
        let precision = if self.dtype() == DType::F32 { self.precision as usize } else { 0 };
        let mut key = vec![self.dtype() as usize, precision, self.pass as usize, epilogue, layouts, p.n, p.c, p.h, p.w, p.groups];
        for p in self.convs.iter().map(|c| c.problem) {
            key.push(p.o);
            key.extend([p.kernel, p.stride, p.dilation].as_flattened().iter().chain(&p.padding));
        }
        key
    }
}

/// Computes a pass.
pub(crate) fn run(call: &ConvCall) -> Result<ConvOutputs> {
    let trial = |plan: &ConvPlan| -> Result<()> {
        // What has arrived stays as it is.
        let scratch = call.grad_so_far.map(Array::uninit_like).transpose()?;
        plan.launch(&ConvCall { grad_so_far: scratch.as_ref(), ..*call }).map(|_| ())
    };
    let device = call.convs[0].a.cuda(call.op)?.owner();
    let plan = select(call, &Tuning { device, family: "conv2d", key: &|| call.key(), trial: &trial })?;
    let mut outputs = plan.launch(call)?;
    if let (Some(sum), false) = (call.grad_so_far, outputs.accumulated) {
        outputs.arrays.iter_mut().try_for_each(|dx| dx.add_assign(sum))?;
    }
    Ok(outputs)
}
