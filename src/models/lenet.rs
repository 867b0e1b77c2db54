//! LeNet as the book builds it (LeCun et al. 1998).

use crate::{
    nn::{Conv2D, Dense, MaxPool2D, Sequential},
    ops::UnaryKind,
};

/// LeNet with the book's sigmoids, for 28x28 images.
pub fn lenet(classes: usize) -> Sequential {
    with(classes, UnaryKind::Sigmoid)
}

/// LeNet with relus.
pub fn lenet_relu(classes: usize) -> Sequential {
    with(classes, UnaryKind::Relu)
}

fn with(classes: usize, f: UnaryKind) -> Sequential {
    Sequential::new()
        .add(Conv2D::new(6, 5).activation(f))
        .add(MaxPool2D::new(2).stride(2))
        .add(Conv2D::new(16, 5).activation(f))
        .add(MaxPool2D::new(2).stride(2))
        .add(Dense::new(120).activation(f))
        .add(Dense::new(84).activation(f))
        .add(Dense::new(classes))
}
