//! ResNets of two-convolution blocks as the book builds them (He et al. 2016): biases in all convolutions, the stride in a
//! block's first one, no batch-norm in the short cut. The deep ones are in `bottleneck.rs`.

use super::Options;
use crate::{
    Result, Tensor,
    nn::{Activation, BatchNorm, Conv2D, Dense, Forward, GlobalAvgPool2D, MaxPool2D, Sequential},
};

crate::block! {
    /// Two 3x3 convolutions with batch-norm and a short cut around them.
    ///
    /// ```
    /// use hadal::{Tensor, cpu, init, models::Residual, nn::{Block, Forward}};
    /// let block = Residual::new(6, true, 2);
    /// block.initialize(init::Xavier::new(), &cpu())?;
    /// assert_eq!(block.forward(&Tensor::ones(&[4, 3, 6, 6], &cpu())?)?.shape(), [4, 6, 3, 3]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[derive(Debug)]
    pub struct Residual {
        conv1: Conv2D,
        conv2: Conv2D,
        conv3: Option<Conv2D>,
        bn1: BatchNorm,
        bn2: BatchNorm,
    }
}

impl Residual {
    /// With a 1x1 convolution in the short cut where channels or size change.
    pub fn new(channels: usize, use_1x1conv: bool, stride: usize) -> Self {
        Residual {
            conv1: Conv2D::new(channels, 3).padding(1).stride(stride),
            conv2: Conv2D::new(channels, 3).padding(1),
            conv3: use_1x1conv.then(|| Conv2D::new(channels, 1).stride(stride)),
            bn1: BatchNorm::new(),
            bn2: BatchNorm::new(),
        }
    }
}

impl Forward for Residual {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.bn1.forward(&self.conv1.forward(x)?)?.relu()?;
        let y = self.bn2.forward(&self.conv2.forward(&y)?)?;
        let x = match &self.conv3 {
            Some(conv3) => conv3.forward(x)?,
            None => x.clone(),
        };
        (y + x)?.relu()
    }
}

/// A stage of `n` residual blocks; the first one halves height and width unless it follows the stem.
pub fn resnet_block(channels: usize, n: usize, first_block: bool) -> Sequential {
    let mut stage = Sequential::new();
    for i in 0..n {
        let entry = i == 0 && !first_block;
        stage.push(Residual::new(channels, entry, if entry { 2 } else { 1 }));
    }
    stage
}

/// ResNet-18 for `classes` classes: a 7x7 stem, four stages of two blocks, global pooling, a dense layer.
pub fn resnet18(classes: usize) -> Sequential {
    resnet_of([2, 2, 2, 2], &Options::new(classes))
}

/// ResNet-34 for `classes` classes: stages of 3, 4, 6 and 3 blocks.
///
/// ```
/// use hadal::{models, nn::Block};
/// assert_eq!(models::resnet34(10).tree().matches("Residual").count(), 3 + 4 + 6 + 3);
/// ```
pub fn resnet34(classes: usize) -> Sequential {
    resnet_of([3, 4, 6, 3], &Options::new(classes))
}

pub(super) fn resnet_of(blocks: [usize; 4], o: &Options) -> Sequential {
    let [n1, n2, n3, n4] = blocks;
    Sequential::new()
        .add(Conv2D::new(o.channels(64), 7).stride(2).padding(3))
        .add(BatchNorm::new())
        .add(Activation::relu())
        .add(MaxPool2D::new(3).stride(2).padding(1))
        .add(resnet_block(o.channels(64), n1, true))
        .add(resnet_block(o.channels(128), n2, false))
        .add(resnet_block(o.channels(256), n3, false))
        .add(resnet_block(o.channels(512), n4, false))
        .add(GlobalAvgPool2D::new())
        .add(Dense::new(o.classes))
}
