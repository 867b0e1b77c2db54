//! The book's multilayer perceptron with dropout.

use crate::nn::{Dense, Dropout, Sequential};

/// 784-256-256-`classes` with relus, dropout 0.2 after the first and 0.5 after the second hidden layer.
pub fn dropout_mlp(classes: usize) -> Sequential {
    Sequential::new()
        .add(Dense::new(256).relu())
        .add(Dropout::new(0.2))
        .add(Dense::new(256).relu())
        .add(Dropout::new(0.5))
        .add(Dense::new(classes))
}
