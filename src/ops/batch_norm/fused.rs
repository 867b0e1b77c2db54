//! Batch normalization, a residual and ReLU in one pass over memory.

use super::{Behind, Gradients, Running, given, gradients, train};
use crate::{
    Array, Error, Result, Tensor,
    autograd::{Op, Saved, apply, apply1},
};

/// y = ReLU(γ(x − μ)/√(σ² + ε) + β), or with a residual r ReLU(γ(x − μ)/√(σ² + ε) + β + r), as [`BatchNorm`](super::BatchNorm)
/// normalizes.
///
/// Inputs x (N, C, …), γ (C), β (C) and maybe r like x; outputs y, μ, σ². The forward pass writes y in the pass that
/// normalizes. With g = dy where y > 0, else 0, the gradients are those of `BatchNorm` for g, and dr = g; two passes over memory
/// need x, dy and y, so that nothing between them is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormRelu {
    /// ε, added to the variance.
    pub eps: f64,
}

/// [`BatchNormRelu`] with given μ and σ², for prediction.
///
/// Inputs x (N, C, …), then γ, β, μ, σ² (C), and maybe the residual r like x; all of them have gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormInferenceRelu {
    /// ε, added to the variance.
    pub eps: f64,
}

/// ReLU behind the normalization, and the residual, if there is one, before it; in x's memory order.
fn behind<'a>(op: &'static str, x: &Array, residual: Option<&Array>, place: &'a mut Option<Array>) -> Result<Behind<'a>> {
    if let Some(r) = residual {
        if r.shape() != x.shape() {
            return Err(Error::shape(op, "the residual has the input's shape", &[x.shape(), r.shape()]));
        }
        if r.dtype() != x.dtype() {
            return Err(Error::DType { op, dtype: r.dtype(), hint: "the residual has the input's dtype" });
        }
        *place = Some(r.to_layout(x.layout())?);
    }
    Ok(Behind { relu: true, residual: place.as_ref() })
}

impl BatchNormRelu {
    /// The forward pass, which running statistics may follow.
    pub(super) fn run(&self, inputs: &[&Array], saved: &mut Saved, running: Option<Running>) -> Result<Vec<Array>> {
        let Some((&[x, gamma, beta], residual @ ([] | [_]))) = inputs.split_first_chunk() else {
            return Err(Error::invalid(self.name(), "x, gamma, beta and at most a residual are needed"));
        };
        let mut place = None;
        let behind = behind(self.name(), x, residual.first().copied(), &mut place)?;
        let y = train(self.name(), self.eps, [x, gamma, beta], behind, saved, running)?;
        saved.outputs(self.name(), inputs, y)
    }
}

impl Op for BatchNormRelu {
    fn name(&self) -> &'static str {
        "batch_norm_relu"
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        self.run(x, saved, None)
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy, dmean, dvar] = saved.gradients(self.name(), dy)?;
        let Gradients { dx, dgamma, dbeta, dr, .. } = gradients(self.name(), self.eps, saved, dy, Some((dmean, dvar)), Some(3))?;
        let mut all = vec![dx, dgamma, dbeta, dr];
        all.truncate(saved.inputs());
        Ok(all)
    }
}

impl Op for BatchNormInferenceRelu {
    fn name(&self) -> &'static str {
        "batch_norm_inference_relu"
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let Some((&[x, gamma, beta, mean, var], residual @ ([] | [_]))) = inputs.split_first_chunk() else {
            return Err(Error::invalid(self.name(), "x, gamma, beta, mean, var and at most a residual are needed"));
        };
        let mut place = None;
        let behind = behind(self.name(), x, residual.first().copied(), &mut place)?;
        let y = given(self.name(), self.eps, [x, gamma, beta, mean, var], behind, saved)?;
        saved.outputs(self.name(), inputs, y)
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        let Gradients { dx, dgamma, dbeta, dmean, dvar, dr } = gradients(self.name(), self.eps, saved, dy, None, Some(5))?;
        let mut all = vec![dx, dgamma, dbeta, dmean, dvar, dr];
        all.truncate(saved.inputs());
        Ok(all)
    }
}

impl Tensor {
    /// ReLU of [`Tensor::batch_norm`], and of its sum with `residual` where there is one, in one pass: y, the mean and the biased
    /// variance per channel. See [`BatchNormRelu`].
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::from_vec(vec![1f32, 3., 10., 30.], &[2, 2], &cpu())?; // the columns are the channels
    /// let (one, zero) = (Tensor::ones(&[2], &cpu())?, Tensor::zeros(&[2], &cpu())?);
    /// assert_eq!(x.batch_norm_relu(&one, &zero, None, 0.0)?.0.to_vec()?, [0., 0., 1., 1.]);
    /// let r = Tensor::from_vec(vec![1.5f32, 0., -3., 0.], &[2, 2], &cpu())?;
    /// assert_eq!(x.batch_norm_relu(&one, &zero, Some(&r), 0.0)?.0.to_vec()?, [0.5, 0., 0., 1.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`Tensor::batch_norm`]; [`Error::Shape`] or [`Error::DType`] when `residual` is not like x.
    pub fn batch_norm_relu(
        &self,
        gamma: &Tensor,
        beta: &Tensor,
        residual: Option<&Tensor>,
        eps: f64,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let inputs: Vec<&Tensor> = [self, gamma, beta].into_iter().chain(residual).collect();
        match <[Tensor; 3]>::try_from(apply(BatchNormRelu { eps }, &inputs)?) {
            Ok([y, mean, var]) => Ok((y, mean, var)),
            Err(_) => Err(Error::invalid("batch_norm_relu", "three outputs are expected")),
        }
    }

    /// [`Tensor::batch_norm_relu`] with the given statistics [μ, σ²]. See [`BatchNormInferenceRelu`].
    ///
    /// # Errors
    /// As for [`Tensor::batch_norm_relu`].
    pub fn batch_norm_inference_relu(
        &self,
        gamma: &Tensor,
        beta: &Tensor,
        [mean, var]: [&Tensor; 2],
        residual: Option<&Tensor>,
        eps: f64,
    ) -> Result<Tensor> {
        let inputs: Vec<&Tensor> = [self, gamma, beta, mean, var].into_iter().chain(residual).collect();
        apply1(BatchNormInferenceRelu { eps }, &inputs)
    }
}
