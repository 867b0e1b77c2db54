//! Batch-norm statistics from a convolution's epilogue (cuDNN's genStats), attached to the output's memory so that batch norm skips a pass.
//!
//! Forward, the convolution leaves mean and sum of squared differences of each part of its output's pixels for each channel
//! (`kernels/spread.cuh`). Backward, the sum of batch norm's dx over each channel is the gradient of the mean, which is also the gradient
//! of the convolution's bias; it is zero where nobody uses the mean.
//!
//! Both belong to the elements: [`DeviceBuffer`](crate::cuda::DeviceBuffer) drops them when it is written. Clones of an array share them,
//! a copy has none.

use std::sync::Arc;

use crate::{Array, DType, Layout, Result, autograd, cuda::Launch};

/// Statistics of the elements of device memory.
#[derive(Clone, Debug)]
pub(crate) enum BufferStats {
    Bn(Arc<BnPartials>),
    Sums(Arc<ChannelSums>),
}

/// The sums over each channel of an array of this shape and layout.
#[derive(Debug)]
pub(crate) struct ChannelSums {
    sums: Array,
    shape: Vec<usize>,
    layout: Layout,
}

impl ChannelSums {
    /// Attaches them to `x`, which the same op writes.
    pub(crate) fn attach(x: &Array, sums: &Array) -> Result<()> {
        let all = ChannelSums { sums: sums.clone(), shape: x.shape().to_vec(), layout: x.layout() };
        x.cuda("sums")?.note(BufferStats::Sums(Arc::new(all)));
        Ok(())
    }

    /// Those of `x`, if they are known.
    pub(crate) fn of(x: &Array) -> Result<Option<Array>> {
        let Some(BufferStats::Sums(known)) = x.cuda("sums")?.noted() else { return Ok(None) };
        Ok((known.shape == x.shape() && known.layout == x.layout()).then(|| known.sums.clone()))
    }
}

/// Of memory that holds `pixels` times `channels` neighbouring elements.
#[derive(Debug)]
pub(crate) struct BnPartials {
    /// (count, 2, channels), then (count): means and squares, and pixels.
    sums: Array,
    count: usize,
    channels: usize,
    pixels: usize,
}

impl BnPartials {
    /// Memory for `count` parts of `y`, in training. They are computed whatever reads y: to learn that a batch norm does would change
    /// the bits from the first step to the second, and those of a run that continues from a file.
    pub(crate) fn uninit(y: &Array, count: usize) -> Result<Option<Self>> {
        let &[n, channels, h, w] = y.shape() else { return Ok(None) };
        if !autograd::is_training() || y.layout() != Layout::ChannelsLast {
            return Ok(None);
        }
        #[cfg(test)]
        if crate::ops::moments_tests::off() {
            return Ok(None);
        }
        let sums = Array::uninit(&[count * (2 * channels + 1)], DType::F32, Layout::RowMajor, &y.context())?;
        Ok(Some(BnPartials { sums, count, channels, pixels: n * h * w }))
    }

    /// The `Parts` of `kernels/spread.cuh`, null for none.
    pub(crate) fn argument(moments: Option<&Self>, mut launch: Launch) -> Launch {
        let words = moments.map_or([0; 2], |m| Self::parts(&mut launch, &m.sums, m.count));
        launch.value(words)
    }

    /// The same for `count` parts in an array of one's own.
    pub(crate) fn parts(launch: &mut Launch, sums: &Array, count: usize) -> [u64; 2] {
        [launch.pointer(sums), count as u64]
    }

    /// Attaches them to `y`, which the same kernel writes.
    pub(crate) fn attach(self, y: &Array) -> Result<()> {
        y.cuda("moments")?.note(BufferStats::Bn(Arc::new(self)));
        Ok(())
    }

    /// Made by a test.
    #[cfg(test)]
    pub(crate) fn fake(sums: Array, count: usize, channels: usize, pixels: usize) -> Self {
        BnPartials { sums, count, channels, pixels }
    }

    /// Those of `x`, if they are known: the array and how many parts it has.
    pub(crate) fn of(x: &Array, channels: usize, pixels: usize) -> Result<Option<(Array, usize)>> {
        let Some(BufferStats::Bn(known)) = x.cuda("moments")?.noted() else { return Ok(None) };
        Ok(((known.channels, known.pixels) == (channels, pixels)).then(|| (known.sums.clone(), known.count)))
    }
}
