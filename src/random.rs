//! Counter-based random numbers: element `i` of a draw depends only on the seed, the draw and `i`.
//!
//! Philox4x32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011). The CPU and the GPU
//! compute the same numbers, in any order and on any number of threads.
//!
//! # Threads
//!
//! Each thread has a stream of draws of its own, and no two threads have the same one.
//!
//! - [`seed`] starts the calling thread's stream anew. The program's main thread, if it never calls it, has the seed 0.
//! - Any other thread that has not called `seed` gets a stream derived from the program's seed, which is the last one that any
//!   thread has given to `seed`, and from a number: 0 for the first such thread that draws after the seed was set, 1 for the second, and so on.
//!   Threads that begin one after the other so have the same numbers in every run. Which of several threads draws first is up
//!   to the system, and so is the thread that runs a task of a pool.
//! - Where the numbers must not depend on that, [`Streams`] numbers streams by the item of work instead of the thread.
//!   [`Prefetch`](crate::data::Prefetch) does so: its item `i` has the same numbers whatever the number of workers.
//!
//! ```
//! use hadal::{Tensor, cpu, random};
//! use std::thread;
//! let draw = || Tensor::uniform(0.0, 1.0, &[4], &cpu())?.to_vec();
//! random::seed(7);
//! let (a, b) = (thread::spawn(draw).join().unwrap()?, thread::spawn(draw).join().unwrap()?);
//! assert_ne!(a, b);
//! random::seed(7);
//! assert_eq!(a, thread::spawn(draw).join().unwrap()?);
//! # Ok::<(), hadal::Error>(())
//! ```

use std::{
    cell::Cell,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Where a thread's draws come from.
#[derive(Clone, Copy)]
enum Stream {
    /// No draw so far.
    New,
    /// No draw so far, and not the main thread's own stream: a task that a waiting thread has taken up.
    Task,
    /// Seed and number of draws, as the thread has set them.
    Own(u64, u64),
    /// Derived from the program's seed as it was in this generation.
    Derived { generation: u64, seed: u64, number: u64 },
}

/// What streams are derived from.
struct Program {
    seed: u64,
    /// Streams derived from this seed so far.
    streams: u64,
}

static PROGRAM: Mutex<Program> = Mutex::new(Program { seed: 0, streams: 0 });
/// How often the program's seed was set; changed under the lock of [`PROGRAM`].
static GENERATION: AtomicU64 = AtomicU64::new(0);

use crate::hybrid::trace;

thread_local! {
    static STREAM: Cell<Stream> = const { Cell::new(Stream::New) };
    /// How often the stream was set anew.
    static RESETS: Cell<u64> = const { Cell::new(0) };
}

/// Starts this thread's stream of draws anew from `seed`; without a call the main thread's seed is 0.
///
/// Threads that have not called it themselves derive new streams from this seed, at their next draw; see the [module](self).
///
/// ```
/// use hadal::{Tensor, cpu, random};
/// random::seed(7);
/// let a = Tensor::uniform(0.0, 1.0, &[4], &cpu())?.to_vec()?;
/// random::seed(7);
/// assert_eq!(a, Tensor::uniform(0.0, 1.0, &[4], &cpu())?.to_vec()?);
/// # Ok::<(), hadal::Error>(())
/// ```
#[doc(alias = "manual_seed")]
pub fn seed(seed: u64) {
    let mut program = PROGRAM.lock().unwrap_or_else(PoisonError::into_inner);
    *program = Program { seed, streams: 0 };
    GENERATION.fetch_add(1, Ordering::Release);
    drop(program);
    STREAM.set(Stream::Own(seed, 0));
    RESETS.set(RESETS.get().wrapping_add(1));
}

/// Where this thread's stream stands: the seed, and the number of draws so far. Restored by [`set_state`].
pub fn state() -> (u64, u64) {
    match STREAM.get() {
        Stream::Own(seed, number) => (seed, number),
        Stream::Derived { generation, seed, number } if generation == GENERATION.load(Ordering::Acquire) => (seed, number),
        Stream::New if std::thread::current().name() == Some("main") => {
            STREAM.set(Stream::Own(0, 0));
            (0, 0)
        }
        _ => derive(),
    }
}

/// Begins the next stream that is derived from the program's seed.
fn derive() -> (u64, u64) {
    let mut program = PROGRAM.lock().unwrap_or_else(PoisonError::into_inner);
    // No stream of draws gets as far as this number.
    let seed = Draw { seed: program.seed, number: u64::MAX }.key(program.streams);
    program.streams += 1;
    STREAM.set(Stream::Derived { generation: GENERATION.load(Ordering::Acquire), seed, number: 0 });
    (seed, 0)
}

/// Continues this thread's stream from a [`state`] saved earlier.
pub fn set_state(state: (u64, u64)) {
    put(state);
    RESETS.set(RESETS.get().wrapping_add(1));
}

/// A derived stream stays one, so that it follows the program's seed.
fn put((seed, number): (u64, u64)) {
    STREAM.set(match STREAM.get() {
        Stream::Derived { generation, seed: own, .. } if own == seed => Stream::Derived { generation, seed, number },
        _ => Stream::Own(seed, number),
    });
}

/// Gives the thread back its stream, also when what ran meanwhile panics.
#[must_use]
pub(crate) struct Aside(Stream);

impl Aside {
    /// Puts this thread's stream aside: draws until the guard is dropped are those of some other task.
    pub(crate) fn new() -> Self {
        Aside(STREAM.replace(Stream::Task))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        STREAM.set(self.0);
    }
}

/// `f` with this thread's draws from a stream of its own, which `draw` tells from others; then the thread's stream goes on.
pub(crate) fn apart<T>(draw: Draw, f: impl FnOnce() -> T) -> T {
    within(draw.key(u64::MAX), f)
}

fn within<T>(seed: u64, f: impl FnOnce() -> T) -> T {
    let _aside = Aside(STREAM.replace(Stream::Own(seed, 0)));
    f()
}

/// Streams numbered by the item of work, so that random numbers depend neither on the thread that takes an item nor on the order.
///
/// ```
/// use hadal::{Tensor, cpu, random::{self, Streams}};
/// random::seed(7);
/// let streams = Streams::next();
/// let noise = |i| streams.with(i, || Tensor::normal(0.0, 1.0, &[3], &cpu())?.to_vec());
/// let (zero, one) = (noise(0)?, noise(1)?);
/// assert_ne!(zero, one);
/// // The same on any thread, such as one of rayon's.
/// assert_eq!(rayon::join(|| noise(1), || noise(0)).0?, one);
/// # Ok::<(), hadal::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streams(Draw);

impl Streams {
    /// As many streams as there are numbers, decided by the next draw of this thread, which they take.
    #[allow(clippy::should_implement_trait)]
    pub fn next() -> Self {
        Streams(next_draw())
    }

    /// The streams that a given draw decides, which should have no other use.
    pub fn of(draw: Draw) -> Self {
        Streams(draw)
    }

    /// Runs `f` with this thread's draws from the beginning of stream `i`; then the thread's own stream goes on where it was.
    pub fn with<T>(&self, i: u64, f: impl FnOnce() -> T) -> T {
        within(self.0.key(i), f)
    }
}

/// How often this thread's stream was set anew: a change says that the draws since do not follow one another.
pub(crate) fn resets() -> u64 {
    RESETS.get()
}

/// Blocks that are computed side by side: 32-bit lanes of the widest vector registers.
const LANES: usize = 16;
/// The lower half of 64 bits.
const LOW: u64 = 0xFFFF_FFFF;
/// Their words.
const BATCH: usize = 4 * LANES;

/// The identity of one draw of arbitrarily many numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// The stream's seed, Philox's key.
    pub seed: u64,
    /// The draw's number in the stream, the upper half of Philox's counter.
    pub number: u64,
}

/// The next draw of this thread's stream.
pub fn next_draw() -> Draw {
    let (seed, number) = state();
    put((seed, number.wrapping_add(1)));
    trace::drew();
    Draw { seed, number }
}

impl Draw {
    /// The seed of a stream of its own.
    fn key(&self, i: u64) -> u64 {
        let [a, b, ..] = self.block(i);
        u64::from(a) | u64::from(b) << 32
    }

    /// Four independent 32-bit words, elements `4·block … 4·block + 3` of the draw.
    pub fn block(&self, block: u64) -> [u32; 4] {
        let counter = [block & LOW, block >> 32, self.number & LOW, self.number >> 32];
        philox(counter.map(|c| [c]), [self.seed as u32, (self.seed >> 32) as u32]).map(|[c]| c as u32)
    }

    /// Calls `f(i, words)` with the words of elements `start + i` and on, until all of `start..start + len` have come.
    ///
    /// Under [`simd::vectorized`](crate::cpu::simd::vectorized) the rounds of many blocks run side by side.
    #[inline(always)]
    pub(crate) fn batches(&self, start: usize, len: usize, mut f: impl FnMut(usize, &[u32])) {
        let (mut i, stop) = (start, start + len);
        while i < stop {
            let first = i / BATCH * BATCH;
            let batch = self.blocks(first as u64 / 4);
            let next = (first + BATCH).min(stop);
            f(i - start, &batch[i - first..next - first]);
            i = next;
        }
    }

    /// Calls `f(i, word)` for each element `start + i` of `start..start + len`.
    pub(crate) fn words(&self, start: usize, len: usize, mut f: impl FnMut(usize, u32)) {
        self.batches(start, len, |i, words| words.iter().zip(i..).for_each(|(&w, i)| f(i, w)));
    }

    /// The words of `LANES` blocks, `first` and on.
    #[inline(always)]
    fn blocks(&self, first: u64) -> [u32; BATCH] {
        let blocks: [u64; LANES] = std::array::from_fn(|lane| first + lane as u64);
        let counter = [blocks.map(|b| b & LOW), blocks.map(|b| b >> 32), [self.number & LOW; LANES], [self.number >> 32; LANES]];
        let c = philox(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        let mut words = [0; BATCH];
        for lane in 0..LANES {
            for (word, c) in words[lane * 4..lane * 4 + 4].iter_mut().zip(&c) {
                *word = c[lane] as u32;
            }
        }
        words
    }

    /// Standard normals of elements `2·pair` and `2·pair + 1` by Box and Muller's transform.
    pub(crate) fn normal_pair(&self, pair: u64) -> [f32; 2] {
        let block = self.block(pair / 2);
        let at = (pair % 2) as usize * 2;
        // 1 − u lies in (0, 1], so the logarithm is finite.
        let r = (-2.0 * (1.0 - unit(block[at])).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * unit(block[at + 1])).sin_cos();
        [r * cos, r * sin]
    }
}

/// The words of one [`Draw`] in order, as a generator for the `rand` crate and its distributions.
///
/// ```
/// use hadal::random::{self, Philox};
/// use rand::RngExt;
/// random::seed(7);
/// let dice: Vec<u8> = Philox::next().random_iter::<u8>().take(3).map(|b| b % 6 + 1).collect();
/// assert!(dice.iter().all(|d| (1..=6).contains(d)));
/// ```
#[derive(Clone, Debug)]
pub struct Philox {
    draw: Draw,
    position: u64,
}

impl Philox {
    /// Over the next draw of this thread's stream.
    #[allow(clippy::should_implement_trait)]
    pub fn next() -> Self {
        Self::over(next_draw())
    }

    /// Over a given draw.
    pub fn over(draw: Draw) -> Self {
        Philox { draw, position: 0 }
    }

    fn word(&mut self) -> u32 {
        let word = self.draw.block(self.position / 4)[(self.position % 4) as usize];
        self.position += 1;
        word
    }
}

impl rand::TryRng for Philox {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(self.word())
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(u64::from(self.word()) | u64::from(self.word()) << 32)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        for chunk in bytes.chunks_mut(4) {
            chunk.copy_from_slice(&self.word().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// A word's upper 24 bits as a float in [0, 1).
pub(crate) fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Philox4x32 with ten rounds, of `N` counters at once; each 32-bit word in 64 bits, as vector registers multiply them.
#[inline(always)]
fn philox<const N: usize>(mut c: [[u64; N]; 4], mut k: [u32; 2]) -> [[u64; N]; 4] {
    for _ in 0..10 {
        let [k0, k1] = k.map(u64::from);
        let [c0, c1, c2, c3] = &mut c;
        for (((c0, c1), c2), c3) in c0.iter_mut().zip(c1).zip(c2).zip(c3) {
            let (a, b) = (*c0 * 0xD251_1F53, *c2 * 0xCD9E_8D57);
            (*c0, *c2) = ((b >> 32) ^ *c1 ^ k0, (a >> 32) ^ *c3 ^ k1);
            (*c1, *c3) = (b & LOW, a & LOW);
        }
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Known-answer tests of Random123 for philox4x32-10.
        let one = |c: [u32; 4], k| philox(c.map(|c| [u64::from(c)]), k).map(|[c]| c as u32);
        assert_eq!(one([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(one([!0; 4], [!0; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let (c, k) = ([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]);
        assert_eq!(one(c, k), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    fn on_a_thread() -> (u64, u64) {
        std::thread::spawn(state).join().unwrap()
    }

    /// `f` while no other test of this process sets the program's seed, which derived streams follow.
    fn undisturbed<T>(f: impl Fn() -> T) -> T {
        loop {
            let generation = GENERATION.load(Ordering::Acquire);
            let value = f();
            if generation == GENERATION.load(Ordering::Acquire) {
                return value;
            }
        }
    }

    #[test]
    fn streams_depend_on_their_number_alone() {
        let streams = Streams::of(Draw { seed: 5, number: 2 });
        let all: std::collections::BTreeSet<u64> = (0..1000).map(|i| streams.with(i, next_draw).seed).collect();
        assert_eq!(all.len(), 1000);
        let elsewhere = std::thread::spawn(move || streams.with(3, || (next_draw(), next_draw()))).join().unwrap();
        assert_eq!(elsewhere, streams.with(3, || (next_draw(), next_draw())));
        seed(9);
        let before = state();
        assert!(std::panic::catch_unwind(|| streams.with(3, || panic!("inside"))).is_err());
        assert_eq!(state(), before, "the thread's own stream goes on after a panic");
        drop(Aside::new());
        assert_eq!(state(), before);
    }

    #[test]
    fn threads_without_a_seed_have_streams_of_their_own() {
        let streams = undisturbed(|| (0..8).map(|_| on_a_thread()).collect::<std::collections::BTreeSet<_>>());
        assert_eq!(streams.len(), 8);
        // What a waiting thread takes up does not continue its stream.
        seed(4);
        let taken = undisturbed(|| {
            let _aside = Aside::new();
            (next_draw(), next_draw())
        });
        assert_ne!(taken.0.seed, 4);
        assert_eq!((taken.0.seed, taken.0.number + 1), (taken.1.seed, taken.1.number));
        assert_eq!(next_draw(), Draw { seed: 4, number: 0 });
    }

    #[test]
    fn words_are_those_of_the_blocks_wherever_a_chunk_starts() {
        let draw = Draw { seed: 3, number: 9 };
        for (start, len) in [(0, 0), (0, 1), (0, 23), (7, 16), (61, 7), (5, 300), (64, 64), (u32::MAX as usize * 4 - 100, 300)] {
            let mut all = Vec::new();
            draw.batches(start, len, |i, words| {
                assert_eq!(i, all.len());
                all.extend_from_slice(words);
            });
            let expected: Vec<u32> = (start..start + len).map(|i| draw.block(i as u64 / 4)[i % 4]).collect();
            assert_eq!(all, expected, "{start} {len}");
        }
    }
}
