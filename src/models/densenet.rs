//! DenseNet (Huang et al. 2017): the book's, and the paper's DenseNet-121.

use super::Options;
use crate::{
    Result, Tensor,
    nn::{Activation, AvgPool2D, BatchNorm, Conv2D, Dense, Forward, GlobalAvgPool2D, MaxPool2D, Sequential},
};

/// Batch-norm, relu, then a 3x3 convolution: the order of pre-activation ResNets.
pub fn conv_block(channels: usize) -> Sequential {
    Sequential::new().add(BatchNorm::new()).add(Activation::relu()).add(Conv2D::new(channels, 3).padding(1))
}

/// The paper's layer of DenseNet-B: a 1x1 convolution to four times as many channels, then the 3x3 one; no biases, since a
/// batch-norm follows.
pub fn bottleneck_conv_block(channels: usize) -> Sequential {
    Sequential::new()
        .add(BatchNorm::new())
        .add(Activation::relu())
        .add(Conv2D::new(channels.saturating_mul(4), 1).no_bias())
        .add(BatchNorm::new())
        .add(Activation::relu())
        .add(Conv2D::new(channels, 3).padding(1).no_bias())
}

crate::block! {
    /// Layers of which each sees the outputs of all layers before it, joined along the channels.
    ///
    /// (N, C, H, W) becomes (N, C + layers · growth, H, W), the input's channels first.
    ///
    /// ```
    /// use hadal::{Tensor, cpu, init, models::{DenseBlock, transition_block}, nn::{Block, Forward}};
    /// let (block, transition) = (DenseBlock::new(2, 10), transition_block(10));
    /// block.initialize(init::Xavier::new(), &cpu())?;
    /// transition.initialize(init::Xavier::new(), &cpu())?;
    /// let y = block.forward(&Tensor::ones(&[4, 3, 8, 8], &cpu())?)?;
    /// assert_eq!(y.shape(), [4, 23, 8, 8]);
    /// assert_eq!(transition.forward(&y)?.shape(), [4, 10, 4, 4]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[derive(Debug)]
    pub struct DenseBlock {
        net: Vec<Sequential>,
    }
}

impl DenseBlock {
    /// The book's: `num_convs` times [`conv_block`] with that many channels each, the growth rate.
    pub fn new(num_convs: usize, channels: usize) -> Self {
        DenseBlock { net: (0..num_convs).map(|_| conv_block(channels)).collect() }
    }

    /// The paper's: `num_convs` times [`bottleneck_conv_block`].
    pub fn bottleneck(num_convs: usize, channels: usize) -> Self {
        DenseBlock { net: (0..num_convs).map(|_| bottleneck_conv_block(channels)).collect() }
    }
}

impl Forward for DenseBlock {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for conv in &self.net {
            x = Tensor::concat(&[&x, &conv.forward(&x)?], 1)?;
        }
        Ok(x)
    }
}

/// Reduces the channels with a 1x1 convolution, and height and width to a half with a mean pool.
pub fn transition_block(channels: usize) -> Sequential {
    transition(Conv2D::new(channels, 1))
}

fn transition(conv: Conv2D) -> Sequential {
    Sequential::new().add(BatchNorm::new()).add(Activation::relu()).add(conv).add(AvgPool2D::new(2).stride(2))
}

/// The book's DenseNet for `classes` classes: 64 channels, growth rate 32, four dense blocks of four convolutions each,
/// transitions that halve the channels between them. The book trains it with images of 96x96; 32x32 are the smallest.
///
/// ```
/// use hadal::models;
/// assert_eq!(models::densenet(10).len(), 4 + 4 + 3 + 4);
/// ```
pub fn densenet(classes: usize) -> Sequential {
    densenet_of(&Options::new(classes))
}

pub(super) fn densenet_of(o: &Options) -> Sequential {
    let (mut channels, growth_rate) = (o.channels(64), o.channels(32));
    let mut net = Sequential::new()
        .add(Conv2D::new(channels, 7).stride(2).padding(3))
        .add(BatchNorm::new())
        .add(Activation::relu())
        .add(MaxPool2D::new(3).stride(2).padding(1));
    let num_convs_in_dense_blocks = [4, 4, 4, 4];
    for (i, num_convs) in num_convs_in_dense_blocks.into_iter().enumerate() {
        if i > 0 {
            channels /= 2;
            net.push(transition_block(channels));
        }
        net.push(DenseBlock::new(num_convs, growth_rate));
        channels += num_convs * growth_rate;
    }
    net.add(BatchNorm::new()).add(Activation::relu()).add(GlobalAvgPool2D::new()).add(Dense::new(o.classes))
}

/// The paper's DenseNet-121 for `classes` classes (DenseNet-BC: bottlenecks, compression ½): growth rate 32, dense blocks of
/// 6, 12, 24 and 16 layers, no biases in convolutions.
///
/// ```
/// use hadal::models;
/// assert!(models::densenet121(1000).to_string().contains("(14): Dense(? -> 1000)"));
/// ```
pub fn densenet121(classes: usize) -> Sequential {
    densenet121_of(&Options::new(classes))
}

pub(super) fn densenet121_of(o: &Options) -> Sequential {
    let (mut channels, growth_rate) = (o.channels(64), o.channels(32));
    let mut net = Sequential::new()
        .add(Conv2D::new(channels, 7).stride(2).padding(3).no_bias())
        .add(BatchNorm::new())
        .add(Activation::relu())
        .add(MaxPool2D::new(3).stride(2).padding(1));
    for (i, num_convs) in [6, 12, 24, 16].into_iter().enumerate() {
        if i > 0 {
            channels /= 2;
            net.push(transition(Conv2D::new(channels, 1).no_bias()));
        }
        net.push(DenseBlock::bottleneck(num_convs, growth_rate));
        channels += num_convs * growth_rate;
    }
    net.add(BatchNorm::new()).add(Activation::relu()).add(GlobalAvgPool2D::new()).add(Dense::new(o.classes))
}
