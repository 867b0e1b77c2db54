//! The first layers of a ResNet in one op: convolution, batch normalization, ReLU, max-pooling.
//!
//! Of images with few channels the convolution makes many times as much as it reads, so on a GPU [`device`] computes it twice instead
//! of storing it. Whatever that is not for, and the CPU, runs the three ops one after the other: [`composed`].

mod composed;
mod device;
mod plan;
#[cfg(test)]
mod tests;

use super::{Conv2d, Conv2dOptions};
use crate::{
    Array, Error, Result, Tensor,
    autograd::{Op, Saved, apply, apply1},
    ops::{MaxPool2d, PoolOptions},
};

/// y = max-pooling of ReLU(γ(c − μ)/√(σ² + ε) + β) of the convolution c = x ∗ w + b, with the mean μ and the biased variance σ² of each
/// of c's channels: the first layers of a ResNet (He et al. 2016, table 1).
///
/// Inputs x (N, C, H, W), w (O, C/groups, kh, kw), if `bias` b (O), then γ and β (O); outputs y (N, O, …), μ and σ² (O). The values
/// are those of [`Conv2d`], [`BatchNormRelu`](crate::ops::BatchNormRelu) and [`MaxPool2d`] in turn, and so are the gradients.
///
/// On a GPU, channels-last x of at most four channels, whose gradient is not wanted, takes kernels that never store c: forward they
/// compute it once for μ and σ² and once for y, in f32 throughout, where the separate ops round it to x's dtype between. Of
/// the winners of the pooling a byte each is kept, which also tells where ReLU is flat. Backward c is not needed: with z =
/// dL/d(γ(c − μ)/√(σ² + ε) + β), which is dy at the winners, X the patches of x (tap, pixel), r = 1/√(σ² + ε) and N pixels, all follows
/// from the sums D = z Xᵀ, Z = Σ z, S = Σ X and G = X Xᵀ:
///
/// dβ = Z, dγ = r (w·D + (b − μ) Z), dw = γ r (D − S Z/N − (w·G + (b − μ) S) r dγ/N), and db is 0, since the normalization
/// takes b away again (gradients of μ and σ² as outputs come on top: see `kernels/stem_pool_weight.cu`). The sums of a block of
/// the kernel are f32, those over blocks f64. Where x hardly varies beside its mean, dw loses digits, since G then
/// has the square of the mean in it: in f32 it is off by some 10⁻⁵ where the mean is a hundred deviations.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct StemBlock {
    /// The attributes of the convolution.
    pub conv: Conv2dOptions,
    /// Whether it has a bias.
    pub bias: bool,
    /// ε, added to the variance.
    pub eps: f64,
    /// The attributes of the pooling.
    pub pool: PoolOptions,
}

/// [`StemBlock`] with given μ and σ², for prediction.
///
/// Inputs x, w, if `bias` b, then γ, β, μ and σ² (O); output y. All inputs have gradients, for which the ops run one after the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StemBlockInference(pub StemBlock);

/// What both are given.
#[derive(Clone, Copy, Debug)]
struct Inputs<'a> {
    x: &'a Array,
    w: &'a Array,
    b: Option<&'a Array>,
    gamma: &'a Array,
    beta: &'a Array,
    /// μ and σ² where they are given.
    statistics: Option<[&'a Array; 2]>,
}

impl StemBlock {
    /// With that convolution, whether it has a bias, ε, and that pooling.
    pub fn new(conv: Conv2dOptions, bias: bool, eps: f64, pool: PoolOptions) -> Self {
        StemBlock { conv, bias, eps, pool }
    }

    /// Sorts the inputs, of which so many are statistics.
    fn inputs<'a>(&self, op: &'static str, all: &[&'a Array], statistics: usize) -> Result<Inputs<'a>> {
        let wrong = || Error::invalid(op, format!("{} inputs are needed", 4 + usize::from(self.bias) + statistics));
        let (&[x, w], rest) = all.split_first_chunk().ok_or_else(wrong)?;
        let (b, rest) = match rest {
            [b, rest @ ..] if self.bias => (Some(*b), rest),
            rest => (None, rest),
        };
        match (rest, statistics) {
            (&[gamma, beta], 0) => Ok(Inputs { x, w, b, gamma, beta, statistics: None }),
            (&[gamma, beta, mean, var], 2) => Ok(Inputs { x, w, b, gamma, beta, statistics: Some([mean, var]) }),
            _ => Err(wrong()),
        }
    }

    /// Whether the kernels take the arrays [x, w] and the parameters, recorded or not; without an error where they do not fit.
    pub(crate) fn is_fused(&self, x: &Array, w: &Array, parameters: &[&Array], recorded: bool) -> Result<bool> {
        device::takes(self, x, w, parameters, recorded)
    }
}

impl Op for StemBlock {
    fn name(&self) -> &'static str {
        "stem_block"
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let inputs = self.inputs(self.name(), x, 0)?;
        let fused = if saved.needs(0) { None } else { device::forward(self, &inputs, saved.wanted())? };
        let wanted = saved.wanted();
        // A clone is a handle; whoever goes backward without the kernels computes from the inputs again.
        x.iter().filter(|_| wanted).for_each(|a| saved.keep(a));
        let Some(fused) = fused else {
            return saved.outputs(self.name(), x, composed::forward(self, x, vec![false; x.len()], false)?.0);
        };
        let [mean, var] = fused.statistics;
        if let Some(place) = &fused.place {
            [&mean, &var, place].into_iter().for_each(|a| saved.keep(a));
        }
        saved.outputs(self.name(), x, vec![fused.y, mean, var])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        saved.check(self.name(), dy)?;
        let n = saved.inputs();
        let x = (0..n).map(|i| saved.get(i)).collect::<Result<Vec<_>>>()?;
        let fused = match (saved.get(n), saved.get(n + 1), saved.get(n + 2)) {
            (Ok(mean), Ok(var), Ok(place)) => device::backward(self, &self.inputs(self.name(), &x, 0)?, [mean, var], place, dy)?,
            _ => None,
        };
        let Some([dw, db, dgamma, dbeta]) = fused else {
            return composed::backward(self, &x, (0..n).map(|i| saved.needs(i)).collect(), dy, false);
        };
        let mut all = vec![None, dw];
        all.extend(self.bias.then_some(db));
        all.extend([dgamma, dbeta]);
        Ok(all)
    }
}

impl Op for StemBlockInference {
    fn name(&self) -> &'static str {
        "stem_block_inference"
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let inputs = self.0.inputs(self.name(), x, 2)?;
        if saved.wanted() {
            x.iter().for_each(|a| saved.keep(a));
        } else if let Some(fused) = device::forward(&self.0, &inputs, false)? {
            return saved.outputs(self.name(), x, vec![fused.y]);
        }
        saved.outputs(self.name(), x, composed::forward(&self.0, x, vec![false; x.len()], true)?.0)
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        saved.check(self.name(), dy)?;
        let x = (0..saved.inputs()).map(|i| saved.get(i)).collect::<Result<Vec<_>>>()?;
        composed::backward(&self.0, &x, (0..x.len()).map(|i| saved.needs(i)).collect(), dy, true)
    }
}

impl Tensor {
    /// Convolution, batch normalization with the batch's own statistics, ReLU and max-pooling: y, and the mean and the biased variance
    /// of the convolution's channels. See [`StemBlock`].
    ///
    /// ```
    /// use hadal::{Tensor, cpu, ops::{Conv2dOptions, PoolOptions}};
    /// let x = Tensor::arange(0.0, 16.0, 1.0, &cpu())?.reshape(&[1, 1, 4, 4])?;
    /// let (w, one, zero) = (Tensor::ones(&[1, 1, 1, 1], &cpu())?, Tensor::ones(&[1], &cpu())?, Tensor::zeros(&[1], &cpu())?);
    /// let (y, mean, var) = x.stem_block((&w, None), [&one, &zero], 0.0, Conv2dOptions::new(), PoolOptions::new(2))?;
    /// assert_eq!((y.shape(), mean.to_vec()?, var.to_vec()?), (vec![1, 1, 2, 2], vec![7.5], vec![21.25]));
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Tensor::conv2d`], [`Tensor::batch_norm`] and [`Tensor::max_pool2d`].
    pub fn stem_block(
        &self,
        (w, b): (&Tensor, Option<&Tensor>),
        [gamma, beta]: [&Tensor; 2],
        eps: f64,
        conv: Conv2dOptions,
        pool: PoolOptions,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let op = StemBlock::new(conv, b.is_some(), eps, pool);
        let inputs: Vec<&Tensor> = [self, w].into_iter().chain(b).chain([gamma, beta]).collect();
        let name = op.name();
        <[Tensor; 3]>::try_from(apply(op, &inputs)?)
            .map(|[y, mean, var]| (y, mean, var))
            .map_err(|_| Error::invalid(name, "three outputs are expected"))
    }

    /// [`Tensor::stem_block`] with the given statistics [μ, σ²]. See [`StemBlockInference`].
    ///
    /// # Errors
    /// As for [`Tensor::stem_block`].
    pub fn stem_block_inference(
        &self,
        (w, b): (&Tensor, Option<&Tensor>),
        parameters: [&Tensor; 4],
        eps: f64,
        conv: Conv2dOptions,
        pool: PoolOptions,
    ) -> Result<Tensor> {
        let op = StemBlockInference(StemBlock::new(conv, b.is_some(), eps, pool));
        let inputs: Vec<&Tensor> = [self, w].into_iter().chain(b).chain(parameters).collect();
        apply1(op, &inputs)
    }
}
