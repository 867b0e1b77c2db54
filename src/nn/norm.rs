//! [`BatchNorm`].

use std::sync::Arc;

use super::{Forward, Info, Parameter, Role, Structure};
use crate::{
    Error, Result, Tensor,
    autograd::{self, Op},
    ops::{self, RunningStats},
};

/// Normalizes each channel over the batch: y = γ (x − μ) / √(σ² + ε) + β (Ioffe and Szegedy 2015).
///
/// Axis 1 holds the channels. In training μ and σ² are the batch's, and the running statistics move towards them:
/// running = m · running + (1 − m) · batch with m = 0.9 and the biased variance, as MXNet keeps it. Otherwise the
/// running statistics are used.
///
/// Its parameters and statistics stay f32 where a net is [cast](super::Block::cast) to bf16 or f16, as Gluon's and PyTorch's do; x
/// and y are then of the half type, and the sums between them f32.
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

    fn run(&self, x: &Tensor) -> Result<Tensor> {
        let shape = x.shape();
        let &[_, c, ..] = shape.as_slice() else {
            return Err(Error::shape("batch_norm", "an input (N, C, …) is needed", &[&shape]));
        };
        let ready = |p: &Parameter| p.ready(&[c]);
        let (gamma, beta, mean, var) =
            (ready(&self.gamma)?, ready(&self.beta)?, ready(&self.running_mean)?, ready(&self.running_var)?);
        if !autograd::is_training() {
            return x.batch_norm_inference(&gamma, &beta, &mean, &var, self.epsilon);
        }
        let op: Arc<dyn Op> = Arc::new(ops::BatchNorm { eps: self.epsilon });
        let stats = RunningStats { mean: &mean, var: &var, momentum: self.momentum };
        ops::batch_norm_following(&op, &[x, &gamma, &beta], stats)
    }
}

impl Forward for BatchNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.info.at(self.run(x))
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
}
