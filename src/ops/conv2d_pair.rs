//! Two convolutions of one input, as a block begins that has one in its short cut.

use super::conv2d::{Conv2d, Conv2dOptions, bias_grad, dgrad, fprop, wgrad};
use crate::{
    Array, Error, Result, Tensor,
    autograd::{Op, Saved, apply},
    conv::{ConvOperands, problem::ConvProblem},
    gemm::bf16x3::SplitCache,
    ops::operands::same_float,
};

/// y₁ = x ∗ w₁ + b₁ and y₂ = x ∗ w₂ + b₂, the two convolutions of x that a residual block begins with where it changes channels or
/// size (He et al. 2016, section 3.3: option B).
///
/// Inputs are x (N, C, H, W), w₁, b₁ if `bias[0]`, w₂, b₂ if `bias[1]`, with shapes as for [`Conv2d`]; outputs y₁ and y₂. The
/// values are those of two [`Conv2d`]. On tensor cores of compute capability 9.0 each pass is one launch, and dx, to which both
/// add, is written once: with strides (2, 2), the 1x1 filter's pixels are one of the four phases of dx.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Conv2dPair {
    /// The attributes of both.
    pub options: [Conv2dOptions; 2],
    /// Which of them have a bias.
    pub bias: [bool; 2],
}

impl Conv2dPair {
    /// With both convolutions' attributes and whether they have a bias.
    pub fn new(options: [Conv2dOptions; 2], bias: [bool; 2]) -> Self {
        Conv2dPair { options, bias }
    }

    /// The numbers of each one's filters and bias among the inputs.
    fn places(&self) -> [(usize, Option<usize>); 2] {
        let second = 2 + usize::from(self.bias[0]);
        [(1, self.bias[0].then_some(2)), (second, self.bias[1].then_some(second + 1))]
    }

    fn inputs(&self) -> usize {
        3 + self.bias.iter().filter(|&&b| b).count()
    }

    /// Both problems, from the inputs' shapes.
    fn problems<'a>(&self, shape: impl Fn(usize) -> &'a [usize]) -> Result<[ConvProblem; 2]> {
        let [(w1, b1), (w2, b2)] = self.places();
        let one = |i: usize, w, b: Option<usize>| Conv2d(self.options[i]).problem(shape(0), shape(w), b.map(&shape));
        Ok([one(0, w1, b1)?, one(1, w2, b2)?])
    }
}

impl Op for Conv2dPair {
    fn name(&self) -> &'static str {
        "conv2d_pair"
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        if x.len() != self.inputs() {
            return Err(Error::invalid(self.name(), format!("{} inputs are needed: x, filters and biases", self.inputs())));
        }
        same_float(self.name(), x)?;
        let (places, problems) = (self.places(), self.problems(|i| x[i].shape())?);
        let conv = |i: usize| {
            let (w, b) = places[i];
            ConvOperands { problem: &problems[i], a: x[0], b: x[w], bias: b.map(|b| x[b]) }
        };
        let y = fprop(self.name(), &[conv(0), conv(1)])?;
        let [w1, w2] = places.map(|(w, _)| w);
        if saved.needs(0) {
            saved.keep(x[w1]);
            saved.keep(x[w2]);
        }
        if saved.needs(w1) || saved.needs(w2) {
            saved.keep(x[0]);
        }
        saved.outputs(self.name(), x, y)
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let (name, places, problems) = (self.name(), self.places(), self.problems(|i| saved.shape(i))?);
        let dy = saved.gradients::<2>(name, dy)?.each_ref();
        let _split_once = SplitCache::new(&dy);
        let with = |i: usize, b| ConvOperands { problem: &problems[i], a: dy[i], b, bias: None };
        let mut grads = vec![None; self.inputs()];
        if saved.needs(0) {
            let [w1, w2] = [saved.get(0)?, saved.get(1)?];
            grads[0] = Some(dgrad(name, &[with(0, w1), with(1, w2)], saved.arrived(0))?);
        }
        let wanted: Vec<usize> = [0, 1].into_iter().filter(|&i| saved.needs(places[i].0)).collect();
        if !wanted.is_empty() {
            let x = saved.get(2 * usize::from(saved.needs(0)))?;
            let convs: Vec<ConvOperands> = wanted.iter().map(|&i| with(i, x)).collect();
            let dw = wgrad(name, &convs, false)?.arrays;
            wanted.iter().zip(dw).for_each(|(&i, dw)| grads[places[i].0] = Some(dw));
        }
        for i in 0..2 {
            if let Some(b) = places[i].1.filter(|&b| saved.needs(b)) {
                grads[b] = Some(bias_grad(name, dy[i], &problems[i])?);
            }
        }
        Ok(grads)
    }

    fn adds(&self, i: usize) -> bool {
        i == 0
    }
}

impl Tensor {
    /// Two 2-D convolutions of the same (N, C, H, W), each with its filters, its bias if given and its attributes: the values of
    /// [`Tensor::conv2d`] twice, in fewer passes over memory where the device can; see [`Conv2dPair`].
    ///
    /// # Errors
    /// Those of [`Tensor::conv2d`].
    ///
    /// ```
    /// use hadal::{Tensor, cpu, ops::Conv2dOptions};
    /// let o = Conv2dOptions::new().stride(2);
    /// let x = Tensor::ones(&[1, 1, 4, 4], &cpu())?;
    /// let (w1, w2) = (Tensor::ones(&[1, 1, 3, 3], &cpu())?, Tensor::ones(&[1, 1, 1, 1], &cpu())?);
    /// let (y, short_cut) = x.conv2d_pair((&w1, None, o.padding(1)), (&w2, None, o))?;
    /// assert_eq!((y.to_vec()?, short_cut.to_vec()?), (vec![4., 6., 6., 9.], vec![1., 1., 1., 1.]));
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn conv2d_pair(
        &self,
        (w1, b1, first): (&Tensor, Option<&Tensor>, Conv2dOptions),
        (w2, b2, second): (&Tensor, Option<&Tensor>, Conv2dOptions),
    ) -> Result<(Tensor, Tensor)> {
        let op = Conv2dPair::new([first, second], [b1.is_some(), b2.is_some()]);
        let inputs: Vec<&Tensor> = [self, w1].into_iter().chain(b1).chain([w2]).chain(b2).collect();
        let mut y = apply(op, &inputs)?.into_iter();
        y.next().zip(y.next()).ok_or_else(|| Error::invalid("conv2d_pair", "the op gave fewer than two outputs"))
    }
}
