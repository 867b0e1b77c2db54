//! One layer: linear and softmax regression.

use crate::nn::{Dense, Sequential};

/// ŷ = x wᵀ + b with one output, for [`L2`](crate::loss::L2).
///
/// ```
/// use hadal::{Tensor, cpu, init, models};
/// let net = models::linear_regression();
/// net.initialize(init::Normal(0.01), &cpu())?;
/// assert_eq!(net.forward(&Tensor::ones(&[10, 2], &cpu())?)?.shape(), [10, 1]);
/// # Ok::<(), hadal::Error>(())
/// ```
pub fn linear_regression() -> Sequential {
    Sequential::new().add(Dense::new(1))
}

/// One logit for each class, for [`SoftmaxCrossEntropy`](crate::loss::SoftmaxCrossEntropy), which has the softmax in it.
///
/// ```
/// use hadal::{Tensor, cpu, init, models, nn::Block};
/// let net = models::softmax_regression(10);
/// net.initialize(init::Normal(0.01), &cpu())?;
/// assert_eq!(net.forward(&Tensor::ones(&[2, 1, 28, 28], &cpu())?)?.shape(), [2, 10]);
/// assert_eq!(net.parameter_count()?, 784 * 10 + 10);
/// # Ok::<(), hadal::Error>(())
/// ```
pub fn softmax_regression(classes: usize) -> Sequential {
    Sequential::new().add(Dense::new(classes))
}
