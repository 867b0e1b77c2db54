//! Network in network as the book builds it (Lin et al. 2014): 1x1 convolutions instead of dense layers.

use super::Options;
use crate::{
    nn::{Conv2D, Dropout, Flatten, GlobalAvgPool2D, MaxPool2D, Sequential},
    ops::{Padding, Pair},
};

/// A convolution and two 1x1 ones, which act as dense layers on each pixel; relu after each.
///
/// ```
/// use hadal::{Tensor, cpu, init, models};
/// let block = models::nin_block(6, 11, 4, 0);
/// block.initialize(init::Xavier::new(), &cpu())?;
/// assert_eq!(block.forward(&Tensor::ones(&[2, 1, 31, 31], &cpu())?)?.shape(), [2, 6, 6, 6]);
/// # Ok::<(), hadal::Error>(())
/// ```
pub fn nin_block(channels: usize, kernel: impl Into<Pair>, stride: impl Into<Pair>, padding: impl Into<Padding>) -> Sequential {
    Sequential::new()
        .add(Conv2D::new(channels, kernel).stride(stride).padding(padding).relu())
        .add(Conv2D::new(channels, 1).relu())
        .add(Conv2D::new(channels, 1).relu())
}

/// NiN for `classes` classes: AlexNet's windows, a channel for each class at the end, and its mean as the logit.
///
/// Images of 224x224; 67x67 are the smallest that its windows fit in.
///
/// ```
/// use hadal::models;
/// assert!(models::nin(10).to_string().contains("GlobalAvgPool2D"));
/// ```
pub fn nin(classes: usize) -> Sequential {
    nin_of(&Options::new(classes))
}

pub(super) fn nin_of(o: &Options) -> Sequential {
    Sequential::new()
        .add(nin_block(o.channels(96), 11, 4, 0))
        .add(MaxPool2D::new(3).stride(2))
        .add(nin_block(o.channels(256), 5, 1, 2))
        .add(MaxPool2D::new(3).stride(2))
        .add(nin_block(o.channels(384), 3, 1, 1))
        .add(MaxPool2D::new(3).stride(2))
        .add(Dropout::new(0.5))
        .add(nin_block(o.classes, 3, 1, 1))
        .add(GlobalAvgPool2D::new())
        // (N, classes, 1, 1) becomes (N, classes).
        .add(Flatten::new())
}
