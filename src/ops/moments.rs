//! What a convolution and a batch normalization behind it leave for each other, so that nobody has to read an array once more.
//!
//! Forward, the convolution leaves mean and sum of squared differences of each part of its output's pixels, as it stores them, for each
//! channel (`kernels/spread.cuh`). Backward, batch-norm's dx adds up to the gradient of the mean over each channel, whatever
//! arrived: that is the gradient of the convolution's bias, zero where nobody uses the mean.
//!
//! Both are noted at the memory that they describe, with the elements, and forgotten with them: [`DeviceBuffer`](crate::cuda::DeviceBuffer)
//! drops the note when it is written. Clones of an array share it, a copy has none.

use std::sync::Arc;

use crate::{Array, DType, Layout, Result, autograd, cuda::Launch};

/// What is known of the elements of device memory.
#[derive(Clone, Debug)]
pub(crate) enum Note {
    Moments(Arc<Moments>),
    Sums(Arc<Sums>),
}

/// The sums over each channel of an array of this shape and layout.
#[derive(Debug)]
pub(crate) struct Sums {
    sums: Array,
    shape: Vec<usize>,
    layout: Layout,
}

impl Sums {
    /// Notes them with `x`, which the same op writes.
    pub(crate) fn note(x: &Array, sums: &Array) -> Result<()> {
        let all = Sums { sums: sums.clone(), shape: x.shape().to_vec(), layout: x.layout() };
        x.cuda("sums")?.note(Note::Sums(Arc::new(all)));
        Ok(())
    }

    /// Those of `x`, if they are known.
    pub(crate) fn of(x: &Array) -> Result<Option<Array>> {
        let Some(Note::Sums(known)) = x.cuda("sums")?.noted() else { return Ok(None) };
        Ok((known.shape == x.shape() && known.layout == x.layout()).then(|| known.sums.clone()))
    }
}

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
        let words = moments.map_or([0; 2], |m| Self::parts(&mut launch, &m.sums, m.count));
        launch.value(words)
    }

    /// The same for `count` parts in an array of one's own.
    pub(crate) fn parts(launch: &mut Launch, sums: &Array, count: usize) -> [u64; 2] {
        [launch.pointer(sums), count as u64]
    }

    /// Notes them with `y`, which the same kernel writes.
    pub(crate) fn note(self, y: &Array) -> Result<()> {
        y.cuda("moments")?.note(Note::Moments(Arc::new(self)));
        Ok(())
    }

    /// Made by a test.
    #[cfg(test)]
    pub(super) fn fake(sums: Array, count: usize, channels: usize, pixels: usize) -> Self {
        Moments { sums, count, channels, pixels }
    }

    /// Those of `x`, if they are known: the array and how many parts it has.
    pub(crate) fn of(x: &Array, channels: usize, pixels: usize) -> Result<Option<(Array, usize)>> {
        let Some(Note::Moments(known)) = x.cuda("moments")?.noted() else { return Ok(None) };
        Ok(((known.channels, known.pixels) == (channels, pixels)).then(|| (known.sums.clone(), known.count)))
    }
}
