//! ResNet-50, 101 and 152 (He et al. 2016, table 1): bottleneck blocks, no biases in convolutions, since a batch-norm follows each.
//!
//! The stride stands in a block's 3x3 convolution (known as v1.5), where the paper has it in the first 1x1 one. The parameters
//! are the same, and so are their counts: 25,557,032 for ResNet-50 with 1000 classes; what differs is that no pixel is skipped
//! without having been seen. Weights of other frameworks' ResNets are mostly of this variant.

use super::Options;
use crate::{
    Result, Tensor,
    nn::{Activation, BatchNorm, Conv2D, Dense, Forward, GlobalAvgPool2D, MaxPool2D, Sequential},
};

crate::block! {
    /// 1x1, 3x3 and 1x1 convolutions, the last one to four times the channels, with a short cut around them.
    ///
    /// ```
    /// use hadal::{Tensor, cpu, init, models::Bottleneck, nn::{Block, Forward}};
    /// let block = Bottleneck::new(6, true, 2);
    /// block.initialize(init::Xavier::new(), &cpu())?;
    /// assert_eq!(block.forward(&Tensor::ones(&[4, 3, 6, 6], &cpu())?)?.shape(), [4, 24, 3, 3]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[derive(Debug)]
    pub struct Bottleneck {
        conv1: Conv2D,
        bn1: BatchNorm,
        conv2: Conv2D,
        bn2: BatchNorm,
        conv3: Conv2D,
        bn3: BatchNorm,
        shortcut: Option<Sequential>,
    }
}

impl Bottleneck {
    /// With a 1x1 convolution and batch-norm in the short cut where channels or size change; 4 · `channels` go out.
    pub fn new(channels: usize, use_1x1conv: bool, stride: usize) -> Self {
        let project =
            || Sequential::new().add(Conv2D::new(channels.saturating_mul(4), 1).stride(stride).no_bias()).add(BatchNorm::new());
        Bottleneck {
            conv1: Conv2D::new(channels, 1).no_bias(),
            bn1: BatchNorm::new(),
            conv2: Conv2D::new(channels, 3).padding(1).stride(stride).no_bias(),
            bn2: BatchNorm::new(),
            conv3: Conv2D::new(channels.saturating_mul(4), 1).no_bias(),
            bn3: BatchNorm::new(),
            shortcut: use_1x1conv.then(project),
        }
    }
}

impl Forward for Bottleneck {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.bn1.forward(&self.conv1.forward(x)?)?.relu()?;
        let y = self.bn2.forward(&self.conv2.forward(&y)?)?.relu()?;
        let y = self.bn3.forward(&self.conv3.forward(&y)?)?;
        let x = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x)?,
            None => x.clone(),
        };
        (y + x)?.relu()
    }
}

/// A stage of `n` blocks; the first one changes the channels, and halves height and width unless the stage follows the stem.
pub fn bottleneck_block(channels: usize, n: usize, first_block: bool) -> Sequential {
    let mut stage = Sequential::new();
    for i in 0..n {
        let entry = i == 0;
        stage.push(Bottleneck::new(channels, entry, if entry && !first_block { 2 } else { 1 }));
    }
    stage
}

/// ResNet-50 for `classes` classes: stages of 3, 4, 6 and 3 bottlenecks.
///
/// ```
/// use hadal::{models, nn::Block};
/// assert_eq!(models::resnet50(10).tree().matches("Bottleneck").count(), 3 + 4 + 6 + 3);
/// ```
pub fn resnet50(classes: usize) -> Sequential {
    bottleneck_of([3, 4, 6, 3], &Options::new(classes))
}

/// ResNet-101 for `classes` classes: stages of 3, 4, 23 and 3 bottlenecks.
pub fn resnet101(classes: usize) -> Sequential {
    bottleneck_of([3, 4, 23, 3], &Options::new(classes))
}

/// ResNet-152 for `classes` classes: stages of 3, 8, 36 and 3 bottlenecks.
pub fn resnet152(classes: usize) -> Sequential {
    bottleneck_of([3, 8, 36, 3], &Options::new(classes))
}

pub(super) fn bottleneck_of(blocks: [usize; 4], o: &Options) -> Sequential {
    let [n1, n2, n3, n4] = blocks;
    Sequential::new()
        .add(Conv2D::new(o.channels(64), 7).stride(2).padding(3).no_bias())
        .add(BatchNorm::new())
        .add(Activation::relu())
        .add(MaxPool2D::new(3).stride(2).padding(1))
        .add(bottleneck_block(o.channels(64), n1, true))
        .add(bottleneck_block(o.channels(128), n2, false))
        .add(bottleneck_block(o.channels(256), n3, false))
        .add(bottleneck_block(o.channels(512), n4, false))
        .add(GlobalAvgPool2D::new())
        .add(Dense::new(o.classes))
}
