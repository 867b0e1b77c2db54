//! AlexNet as the book builds it (Krizhevsky et al. 2012): one tower, and no local response normalization.

use super::Options;
use crate::nn::{Conv2D, Dense, Dropout, MaxPool2D, Sequential};

/// AlexNet for `classes` classes: five convolutions, two hidden dense layers with dropout, one for the output.
///
/// Images of 224x224; 67x67 are the smallest that its windows fit in.
///
/// ```
/// use hadal::models;
/// assert!(models::alexnet(10).to_string().contains("(0): Conv2D(? -> 96, kernel 11x11, stride 4x4"));
/// ```
pub fn alexnet(classes: usize) -> Sequential {
    alexnet_of(&Options::new(classes))
}

pub(super) fn alexnet_of(o: &Options) -> Sequential {
    let conv = |channels, kernel| Conv2D::new(o.channels(channels), kernel).relu();
    Sequential::new()
        // A large window with a large stride: the objects in ImageNet's pictures are large.
        .add(conv(96, 11).stride(4))
        .add(MaxPool2D::new(3).stride(2))
        .add(conv(256, 5).padding(2))
        .add(MaxPool2D::new(3).stride(2))
        .add(conv(384, 3).padding(1))
        .add(conv(384, 3).padding(1))
        .add(conv(256, 3).padding(1))
        .add(MaxPool2D::new(3).stride(2))
        // Most parameters are in these two; dropout keeps them from overfitting.
        .add(Dense::new(o.units(4096)).relu())
        .add(Dropout::new(0.5))
        .add(Dense::new(o.units(4096)).relu())
        .add(Dropout::new(0.5))
        .add(Dense::new(o.classes))
}
