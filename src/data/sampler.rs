//! The order in which samples are visited: shuffled by seed and epoch, cut into batches, resumable anywhere.
//!
//! The permutation is defined here once and for all and depends on no other crate, so that a seed means the same order
//! in every version. With `mix` as SplitMix64's output function and `G = 0x9e3779b97f4a7c15` its increment, the state
//! starts at `mix(mix(epoch + G) ^ seed)`; each draw adds `G` and takes the upper 32 bits of `mix(state)`. A number
//! below `n` is drawn by Lemire's multiplication with rejection (no bias), and Fisher-Yates goes down from the last
//! place: `for i in (1..n).rev() { swap(i, below(i + 1)) }`.

use std::ops::Range;

use crate::{
    cpu::memory,
    error::{Error, Result},
};

const INCREMENT: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output function.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(INCREMENT);
        mix(self.0)
    }

    /// A number below `n`, which is not 0, without bias (Lemire, 2019).
    fn below(&mut self, n: u32) -> u32 {
        loop {
            let product = (self.next() >> 32) * u64::from(n);
            let low = product as u32;
            if low >= n || low >= n.wrapping_neg() % n {
                return (product >> 32) as u32;
            }
        }
    }
}

/// The numbers 0 to `n - 1` in the order of this seed and epoch, the same on every machine and in every version.
///
/// # Errors
///
/// [`Error::Invalid`] where `n` is above 2^32 - 1 or the memory doesn't suffice.
///
/// ```
/// # use hadal::data::permutation;
/// assert_eq!(permutation(8, 0, 0)?, [3, 0, 5, 4, 7, 6, 1, 2]);
/// assert_ne!(permutation(8, 0, 0)?, permutation(8, 0, 1)?);
/// # Ok::<(), hadal::Error>(())
/// ```
pub fn permutation(n: usize, seed: u64, epoch: u64) -> Result<Vec<u32>> {
    let mut order = in_order(n)?;
    let mut random = SplitMix64(mix(mix(epoch.wrapping_add(INCREMENT)) ^ seed));
    for i in (1..order.len()).rev() {
        // n fits 32 bits, and so does i + 1.
        order.swap(i, random.below(i as u32 + 1) as usize);
    }
    Ok(order)
}

fn in_order(n: usize) -> Result<Vec<u32>> {
    let count = u32::try_from(n).map_err(|_| invalid(format!("{n} samples; at most {} expected", u32::MAX)))?;
    let mut order = memory::reserved(n)?;
    order.extend(0..count);
    Ok(order)
}

/// What to do with the samples left over when the batch size doesn't divide their number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LastBatch {
    /// They make a smaller batch (the book's loader).
    #[default]
    Keep,
    /// They are left out of this epoch.
    Discard,
}

/// A place in training: the next batch to be visited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The batch in the epoch, from 0; equal to the number of batches where the epoch is over.
    pub batch: usize,
}

/// Cuts `n` samples into batches, in a new order every epoch where a seed is given and in their own order where not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sampler {
    samples: usize,
    batch_size: usize,
    shuffle: Option<u64>,
    last: LastBatch,
}

impl Sampler {
    /// Batches of `batch_size` out of `samples`, in order, the smaller last one kept.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where there is no sample, the batch size is 0, or there are more than 2^32 - 1 samples.
    ///
    /// ```
    /// # use hadal::data::{LastBatch, Position, Sampler};
    /// let sampler = Sampler::new(10, 4)?;
    /// let sizes: Vec<usize> = sampler.epoch(0)?.map(|batch| batch.len()).collect();
    /// assert_eq!(sizes, [4, 4, 2]);
    ///
    /// let sampler = sampler.shuffle(7).last_batch(LastBatch::Discard);
    /// let mut batches = sampler.epoch(3)?;
    /// batches.next();
    /// let saved: Position = batches.position();
    /// let rest: Vec<_> = batches.collect();
    /// assert_eq!(sampler.resume(saved)?.collect::<Vec<_>>(), rest);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn new(samples: usize, batch_size: usize) -> Result<Self> {
        if samples == 0 || u32::try_from(samples).is_err() {
            return Err(invalid(format!("{samples} samples; 1 to {} expected", u32::MAX)));
        }
        if batch_size == 0 {
            return Err(invalid("a batch size of 0; at least 1 expected".into()));
        }
        Ok(Self { samples, batch_size, shuffle: None, last: LastBatch::Keep })
    }

    /// Shuffles every epoch by [`permutation`]`(n, seed, epoch)`.
    #[must_use]
    pub fn shuffle(mut self, seed: u64) -> Self {
        self.shuffle = Some(seed);
        self
    }

    /// Says what becomes of a smaller last batch.
    #[must_use]
    pub fn last_batch(mut self, last: LastBatch) -> Self {
        self.last = last;
        self
    }

    /// How many samples there are.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// The size of every batch but perhaps the last.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// How many batches an epoch has.
    pub fn batches(&self) -> usize {
        match self.last {
            LastBatch::Keep => self.samples.div_ceil(self.batch_size),
            LastBatch::Discard => self.samples / self.batch_size,
        }
    }

    /// The batches of an epoch, from its first.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where the memory for the order (4 bytes for each sample) doesn't suffice.
    pub fn epoch(&self, epoch: u64) -> Result<Batches> {
        self.resume(Position { epoch, batch: 0 })
    }

    /// The batches from a saved [`Batches::position`] to the end of its epoch, the same as if it had never stopped.
    ///
    /// # Errors
    ///
    /// As [`Sampler::epoch`]; and where the epoch has fewer batches than the position says.
    pub fn resume(&self, at: Position) -> Result<Batches> {
        let batches = self.batches();
        if at.batch > batches {
            return Err(invalid(format!("batch {} of epoch {}; an epoch has {batches}", at.batch, at.epoch)));
        }
        let order = match self.shuffle {
            Some(seed) => permutation(self.samples, seed, at.epoch)?,
            None => in_order(self.samples)?,
        };
        Ok(Batches { order, batch_size: self.batch_size, batches, at })
    }
}

/// One epoch's batches as lists of sample numbers: an iterator that knows its place.
#[derive(Clone)]
pub struct Batches {
    order: Vec<u32>,
    batch_size: usize,
    batches: usize,
    at: Position,
}

impl std::fmt::Debug for Batches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<Batches of {}, at {} of {} in epoch {}>", self.batch_size, self.at.batch, self.batches, self.at.epoch)
    }
}

impl Batches {
    /// The place of the batch that [`Iterator::next`] gives next, for [`Sampler::resume`].
    pub fn position(&self) -> Position {
        self.at
    }

    /// The sample numbers of batch `i` of the epoch, wherever the iterator is; `None` past the last batch.
    pub fn get(&self, i: usize) -> Option<&[u32]> {
        if i >= self.batches {
            return None;
        }
        let start = i.checked_mul(self.batch_size)?;
        self.order.get(start..start.saturating_add(self.batch_size).min(self.order.len()))
    }

    /// The numbers of the batches still to come, for a [`Prefetch`](super::Prefetch) over [`Batches::get`].
    pub fn remaining(&self) -> Range<usize> {
        self.at.batch..self.batches
    }

    /// All sample numbers of the epoch in order, for a device that keeps the whole order in its memory.
    pub fn order(&self) -> &[u32] {
        &self.order
    }
}

impl Iterator for Batches {
    type Item = Vec<u32>;

    fn next(&mut self) -> Option<Vec<u32>> {
        let batch = self.get(self.at.batch)?.to_vec();
        self.at.batch += 1;
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.remaining().len();
        (left, Some(left))
    }
}

impl ExactSizeIterator for Batches {}

fn invalid(reason: String) -> Error {
    Error::Invalid { op: "sampler", reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // Published outputs for the seed 1234567.
        let mut random = SplitMix64(1_234_567);
        let wanted = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([random.next(), random.next(), random.next()], wanted);
    }

    #[test]
    fn the_order_never_changes() {
        // Computed by a separate program from the definition at the top of this file.
        assert_eq!(permutation(10, 0, 0).unwrap(), [1, 4, 5, 0, 7, 6, 9, 8, 2, 3]);
        assert_eq!(permutation(10, 42, 3).unwrap(), [4, 7, 1, 2, 8, 9, 3, 0, 5, 6]);
        let sum = |n, seed, epoch| {
            let order = permutation(n, seed, epoch).unwrap();
            order.iter().fold(0u64, |h, &i| h.wrapping_mul(1_000_003).wrapping_add(u64::from(i)))
        };
        assert_eq!(sum(60_000, 1, 5), 15_183_237_435_124_710_390);
        assert_eq!(sum(1_000, u64::MAX, u64::MAX), 4_054_226_825_287_634_984);
    }

    #[test]
    fn permutations_hold_every_number_once() {
        for n in [0, 1, 2, 3, 255, 256, 60_000] {
            let mut order = permutation(n, 9, 1).unwrap();
            order.sort_unstable();
            assert!(order.iter().copied().eq(0..n as u32));
        }
    }

    #[test]
    fn every_order_of_four_is_about_equally_frequent() {
        let mut counts = std::collections::HashMap::new();
        for epoch in 0..24_000 {
            *counts.entry(permutation(4, 5, epoch).unwrap()).or_insert(0i32) += 1;
        }
        assert_eq!(counts.len(), 24);
        // Chi-squared with 23 degrees of freedom: 49.7 is passed once in a thousand.
        let chi: f64 = counts.values().map(|&c| f64::from((c - 1000) * (c - 1000)) / 1000.0).sum();
        assert!(chi < 49.7, "{chi}");
    }

    #[test]
    fn small_bounds_and_rejection() {
        let mut random = SplitMix64(3);
        for n in [1, 2, 3, 7, u32::MAX, (1 << 31) + 1] {
            for _ in 0..200 {
                assert!(random.below(n) < n);
            }
        }
    }

    #[test]
    fn batches() {
        let sampler = Sampler::new(10, 4).unwrap();
        assert_eq!(sampler.batches(), 3);
        assert_eq!(sampler.epoch(9).unwrap().collect::<Vec<_>>(), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
        let discard = sampler.clone().last_batch(LastBatch::Discard);
        assert_eq!(discard.epoch(9).unwrap().collect::<Vec<_>>(), [vec![0, 1, 2, 3], vec![4, 5, 6, 7]]);
        assert_eq!(discard.epoch(0).unwrap().get(2), None);
        assert_eq!(Sampler::new(3, 9).unwrap().last_batch(LastBatch::Discard).epoch(0).unwrap().count(), 0);
        assert_eq!(Sampler::new(3, usize::MAX).unwrap().epoch(0).unwrap().collect::<Vec<_>>(), [[0, 1, 2]]);
        assert_eq!(Sampler::new(60_000, 256).unwrap().epoch(0).unwrap().len(), 235);
    }

    #[test]
    fn every_position_resumes_exactly() {
        let sampler = Sampler::new(50, 7).unwrap().shuffle(1);
        let mut batches = sampler.epoch(2).unwrap();
        let all: Vec<_> = batches.clone().collect();
        assert_eq!(all.concat(), permutation(50, 1, 2).unwrap());
        for i in 0..=all.len() {
            assert_eq!(batches.position(), Position { epoch: 2, batch: i });
            let resumed = sampler.resume(batches.position()).unwrap();
            assert_eq!(resumed.remaining(), i..all.len());
            assert_eq!(resumed.collect::<Vec<_>>(), all[i..]);
            assert_eq!(batches.next().as_deref(), all.get(i).map(Vec::as_slice));
        }
        assert_eq!(batches.position().batch, all.len(), "the end stays the end");
    }

    #[test]
    fn bad_arguments_are_errors() {
        assert_eq!(Sampler::new(5, 0).unwrap_err().to_string(), "sampler: a batch size of 0; at least 1 expected");
        assert!(Sampler::new(0, 5).is_err());
        assert!(Sampler::new(1 << 33, 5).is_err());
        assert!(permutation(1 << 33, 0, 0).is_err());
        let error = Sampler::new(5, 5).unwrap().resume(Position { epoch: 0, batch: 2 }).unwrap_err();
        assert_eq!(error.to_string(), "sampler: batch 2 of epoch 0; an epoch has 1");
    }
}
