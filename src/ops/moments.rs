//! What a convolution leaves for a batch normalization behind it: of each part of its output's pixels, as it stores them, the mean
//! and the sum of squared differences from it for each channel (`kernels/spread.cuh`), so that nobody has to read them once more.
//!
//! They are noted at the memory that they describe, with the elements, and forgotten with them: [`DeviceBuffer`](crate::cuda::DeviceBuffer)
//! drops the note when it is written. Clones of an array share it, a copy has none.

use std::sync::Arc;

use crate::{Array, DType, Layout, Result, autograd, cuda::Launch};

/// Of memory that holds `pixels` times `channels` neighbouring elements.
#[derive(Debug)]
pub(crate) struct Moments {
    /// (count, 2, channels), then (count): means and squares, and pixels.
    sums: Array,
    count: usize,
    channels: usize,
    pixels: usize,
}

impl Moments {
    /// Room for `count` parts of `y`, where they may be wanted: in training, whatever comes behind, since what is not known
    /// before the first step would change the bits of the second one, and those of a run that goes on from a file.
    pub(crate) fn room(y: &Array, count: usize) -> Result<Option<Self>> {
        let &[n, channels, h, w] = y.shape() else { return Ok(None) };
        if !autograd::is_training() || y.layout() != Layout::ChannelsLast {
            return Ok(None);
        }
        #[cfg(test)]
        if super::moments_tests::off() {
            return Ok(None);
        }
        let sums = Array::uninit(&[count * (2 * channels + 1)], DType::F32, Layout::RowMajor, &y.context())?;
        Ok(Some(Moments { sums, count, channels, pixels: n * h * w }))
    }

    /// The `Parts` of `kernels/spread.cuh`, null for none.
    pub(crate) fn argument(moments: Option<&Self>, mut launch: Launch) -> Launch {
        let words = moments.map_or([0; 2], |m| [launch.pointer(&m.sums), m.count as u64]);
        launch.value(words)
    }

    /// Notes them with `y`, which the same kernel writes.
    pub(crate) fn note(self, y: &Array) -> Result<()> {
        y.cuda("moments")?.note(Arc::new(self));
        Ok(())
    }

    /// Made by a test.
    #[cfg(test)]
    pub(super) fn fake(sums: Array, count: usize, channels: usize, pixels: usize) -> Self {
        Moments { sums, count, channels, pixels }
    }

    /// Those of `x`, if they are known: the array and how many parts it has.
    pub(crate) fn of(x: &Array, channels: usize, pixels: usize) -> Result<Option<(Array, usize)>> {
        let noted = x.cuda("moments")?.noted().filter(|m| (m.channels, m.pixels) == (channels, pixels));
        Ok(noted.map(|m| (m.sums.clone(), m.count)))
    }
}
