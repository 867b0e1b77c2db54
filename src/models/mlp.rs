//! The book's multilayer perceptrons, with and without dropout.

use super::Options;
use crate::nn::{Dense, Dropout, Sequential};

/// 784-256-`classes` with relu.
///
/// ```
/// use hadal::{Tensor, cpu, init, models};
/// let net = models::mlp(10);
/// net.initialize(init::Normal(0.01), &cpu())?;
/// assert_eq!(net.forward(&Tensor::ones(&[2, 1, 28, 28], &cpu())?)?.shape(), [2, 10]);
/// # Ok::<(), hadal::Error>(())
/// ```
pub fn mlp(classes: usize) -> Sequential {
    mlp_of(&Options::new(classes))
}

pub(super) fn mlp_of(o: &Options) -> Sequential {
    Sequential::new().add(Dense::new(o.units(256)).relu()).add(Dense::new(o.classes))
}

/// 784-256-256-`classes` with relus, dropout 0.2 after the first and 0.5 after the second hidden layer.
pub fn dropout_mlp(classes: usize) -> Sequential {
    dropout_mlp_of(&Options::new(classes))
}

pub(super) fn dropout_mlp_of(o: &Options) -> Sequential {
    Sequential::new()
        .add(Dense::new(o.units(256)).relu())
        .add(Dropout::new(0.2))
        .add(Dense::new(o.units(256)).relu())
        .add(Dropout::new(0.5))
        .add(Dense::new(o.classes))
}
