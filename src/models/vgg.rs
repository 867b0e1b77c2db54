//! VGG as the book builds it (Simonyan and Zisserman 2015): blocks of 3x3 convolutions, then three dense layers.

use super::Options;
use crate::nn::{Conv2D, Dense, Dropout, MaxPool2D, Sequential};

/// Convolutions and channels of each block of VGG-11, configuration A of the paper.
pub const VGG11: &[(usize, usize)] = &[(1, 64), (1, 128), (2, 256), (2, 512), (2, 512)];
/// VGG-13: configuration B.
pub const VGG13: &[(usize, usize)] = &[(2, 64), (2, 128), (2, 256), (2, 512), (2, 512)];
/// VGG-16: configuration D.
pub const VGG16: &[(usize, usize)] = &[(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)];
/// VGG-19: configuration E.
pub const VGG19: &[(usize, usize)] = &[(2, 64), (2, 128), (4, 256), (4, 512), (4, 512)];

/// `num_convs` 3x3 convolutions with relu, then a pool that halves height and width.
///
/// ```
/// use hadal::{Tensor, cpu, init, models};
/// let block = models::vgg_block(2, 16);
/// block.initialize(init::Xavier::new(), &cpu())?;
/// assert_eq!(block.forward(&Tensor::ones(&[2, 3, 8, 8], &cpu())?)?.shape(), [2, 16, 4, 4]);
/// # Ok::<(), hadal::Error>(())
/// ```
pub fn vgg_block(num_convs: usize, channels: usize) -> Sequential {
    let mut block = Sequential::new();
    for _ in 0..num_convs {
        block.push(Conv2D::new(channels, 3).padding(1).relu());
    }
    block.push(MaxPool2D::new(2).stride(2));
    block
}

/// A VGG of any blocks, each given by its number of convolutions and of channels. Five blocks need images of 32x32 at least.
///
/// The book trains VGG-11 with a quarter of its channels:
///
/// ```
/// use hadal::models::{self, VGG11};
/// let ratio = 4;
/// let small_conv_arch: Vec<_> = VGG11.iter().map(|&(convs, channels)| (convs, channels / ratio)).collect();
/// let net = models::vgg(&small_conv_arch, 10);
/// # assert_eq!(net.len(), 5 + 5);
/// ```
pub fn vgg(conv_arch: &[(usize, usize)], classes: usize) -> Sequential {
    vgg_of(conv_arch, &Options::new(classes))
}

pub(super) fn vgg_of(conv_arch: &[(usize, usize)], o: &Options) -> Sequential {
    let mut net = Sequential::new();
    for &(num_convs, channels) in conv_arch {
        net.push(vgg_block(num_convs, o.channels(channels)));
    }
    net.add(Dense::new(o.units(4096)).relu())
        .add(Dropout::new(0.5))
        .add(Dense::new(o.units(4096)).relu())
        .add(Dropout::new(0.5))
        .add(Dense::new(o.classes))
}
