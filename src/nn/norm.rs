//! [`BatchNorm`].

use super::{Forward, Info, Parameter, Part, Role, Structure};
use crate::{Error, Result, Tensor, autograd, ops::Running};

/// Normalizes each channel over the batch: y = γ (x − μ) / √(σ² + ε) + β (Ioffe and Szegedy 2015).
///
/// Axis 1 holds the channels. In training μ and σ² are the batch's, and the running statistics move towards them:
/// running = m · running + (1 − m) · batch with m = 0.9 and the biased variance, as MXNet keeps it. Otherwise the
/// running statistics are used.
///
/// Its parameters and statistics stay f32 where a net is [cast](super::Block::cast) to bf16 or f16, as Gluon's and PyTorch's do; x
/// and y are then of the half type, and the sums between them f32.
#[derive(Debug)]
pub struct BatchNorm {
    info: Info,
    epsilon: f64,
    momentum: f64,
    gamma: Parameter,
    beta: Parameter,
    running_mean: Parameter,
    running_var: Parameter,
}

impl Default for BatchNorm {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchNorm {
    /// With ε = 10⁻⁵ and momentum 0.9.
    pub fn new() -> Self {
        let p = |role| Parameter::new(role, &[0]).wide();
        BatchNorm {
            info: Info::new("batchnorm"),
            epsilon: 1e-5,
            momentum: 0.9,
            gamma: p(Role::Scale),
            beta: p(Role::Offset),
            running_mean: p(Role::RunningMean),
            running_var: p(Role::RunningVar),
        }
    }

    /// Another ε.
    pub fn epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// Another momentum of the running statistics.
    pub fn momentum(mut self, momentum: f64) -> Self {
        self.momentum = momentum;
        self
    }

    /// [`Forward::forward`], then ReLU, in one pass over memory: the value of `self.forward(x)?.relu()`.
    ///
    /// # Errors
    /// As for `forward`.
    pub fn forward_relu(&self, x: &Tensor) -> Result<Tensor> {
        self.info.at(self.run(x, Some(None)))
    }

    /// [`Forward::forward`], plus `residual`, then ReLU, in one pass over memory: the end of a residual block.
    ///
    /// ```
    /// use hadal::{Tensor, autograd, cpu, init, nn::{BatchNorm, Block, Forward}};
    /// let bn = BatchNorm::new();
    /// bn.initialize(init::Xavier::new(), &cpu())?;
    /// let x = Tensor::arange(0.0, 12.0, 1.0, &cpu())?.reshape(&[3, 4])?;
    /// let fused = autograd::train_mode(|| bn.forward_add_relu(&x, &x))?;
    /// let plain = autograd::train_mode(|| (bn.forward(&x)? + &x)?.relu())?;
    /// assert_eq!(fused.to_vec()?, plain.to_vec()?);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for `forward`; [`Error::Shape`] or [`Error::DType`] when `residual` is not like x.
    pub fn forward_add_relu(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.info.at(self.run(x, Some(Some(residual))))
    }

    /// γ, β, the running mean and the running variance for `c` channels.
    pub(super) fn operands(&self, c: usize) -> Result<[Tensor; 4]> {
        let of = |p: &Parameter| p.ready(&[c]);
        Ok([of(&self.gamma)?, of(&self.beta)?, of(&self.running_mean)?, of(&self.running_var)?])
    }

    /// ε.
    pub(super) fn eps(&self) -> f64 {
        self.epsilon
    }

    /// Moves the running statistics towards the batch's.
    pub(super) fn follow(&self, [mean, var]: [&Tensor; 2], [batch_mean, batch_var]: [&Tensor; 2]) -> Result<()> {
        mean.update(|m| m.lerp_(&batch_mean.array(), self.momentum))?;
        var.update(|v| v.lerp_(&batch_var.array(), self.momentum))
    }

    /// With `relu` the fused operations, maybe with a residual.
    fn run(&self, x: &Tensor, relu: Option<Option<&Tensor>>) -> Result<Tensor> {
        let shape = x.shape();
        let &[_, c, ..] = shape.as_slice() else {
            return Err(Error::shape("batch_norm", "an input (N, C, …) is needed", &[&shape]));
        };
        let [gamma, beta, mean, var] = self.operands(c)?;
        if !autograd::is_training() {
            return match relu {
                None => x.batch_norm_inference(&gamma, &beta, &mean, &var, self.epsilon),
                Some(residual) => x.batch_norm_inference_relu(&gamma, &beta, [&mean, &var], residual, self.epsilon),
            };
        }
        if x.context().is_gpu() {
            // One launch finishes the batch's statistics and lets the running ones follow.
            let (all, name) = ([mean, var], |i: usize| ["running_mean", "running_var"][i].to_owned());
            let mut y = None;
            Tensor::update_all(&all, name, |running| {
                let [mean, var] = running else { return Ok(()) };
                let running = Running { mean, var, momentum: self.momentum };
                y = Some(x.batch_norm_running([&gamma, &beta], relu, self.epsilon, running)?);
                Ok(())
            })?;
            return y.ok_or_else(|| Error::invalid("batch_norm", "two running statistics are needed"));
        }
        // Here nothing is locked while other threads may be waited for.
        let (y, batch_mean, batch_var) = match relu {
            None => x.batch_norm(&gamma, &beta, self.epsilon)?,
            Some(residual) => x.batch_norm_relu(&gamma, &beta, residual, self.epsilon)?,
        };
        self.follow([&mean, &var], [&batch_mean, &batch_var])?;
        Ok(y)
    }
}

impl Forward for BatchNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.info.at(self.run(x, None))
    }
}

impl Structure for BatchNorm {
    fn info(&self) -> Option<&Info> {
        Some(&self.info)
    }

    fn own_parameters(&self) -> Vec<(&'static str, &Parameter)> {
        vec![
            ("gamma", &self.gamma),
            ("beta", &self.beta),
            ("running_mean", &self.running_mean),
            ("running_var", &self.running_var),
        ]
    }

    fn describe(&self) -> String {
        let c = self.gamma.shape()[..].iter().map(|&c| if c > 0 { c.to_string() } else { "?".to_owned() }).collect::<String>();
        format!("BatchNorm({c}, epsilon {}, momentum {})", self.epsilon, self.momentum)
    }

    fn part(&self) -> Option<Part<'_>> {
        Some(Part::BatchNorm(self))
    }
}
