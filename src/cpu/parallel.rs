//! Loops over slices on all cores. Chunks are fixed, so results do not depend on the number of threads.
//!
//! The loops hand their closures to rayon as `dyn Fn`: its machinery is then compiled once for each element type instead
//! of once for each closure, which more than halves the time to build the crate, and a call for a chunk costs nothing.
//!
//! **Two rules, both kept by [`Each`], through which every loop of the crate goes.** A thread of rayon's that waits for the end of a
//! loop takes up other tasks meanwhile, maybe the user's:
//!
//! - *No lock of ours is held while rayon is waited for*: such a task may want it, and the thread would wait for itself. Who holds one
//!   that a task may want does so inside of [`alone`], where loops need nobody else.
//! - *Nothing of the thread's own leaks into such a task*: recording, training mode, precision, the stream of random numbers, the trace of
//!   a hybridized block and the capture of a CUDA graph are those of the work that waits, and put aside.

use std::{
    cell::Cell,
    sync::{Mutex, OnceLock, PoisonError},
    thread,
};

use rayon::{
    ThreadPoolBuilder,
    iter::plumbing::{Producer, ProducerCallback},
    prelude::*,
};

use super::{opt_level, simd};
use crate::{Result, autograd, cuda::capture, hybrid::trace, precision, random};

/// Below this many elements a loop stays on its thread.
pub(crate) const SERIAL: usize = 32 << 10;
/// Elements that one task takes.
const CHUNK: usize = 16 << 10;

/// Makes the program's main thread a worker of a pool of its own, of which it is one thread; called for every op.
///
/// A thread from outside of rayon's pool hands a loop over and sleeps until it is done: two wake-ups by the system, which take
/// longer than the loops of a small net. As a worker it takes part, and finds the others still awake from the loop before. Other threads
/// go on to use rayon's global pool, so that they find all cores even while the main thread waits for them.
pub(crate) fn enlist() {
    thread_local!(static SEEN: Cell<bool> = const { Cell::new(false) });
    if SEEN.replace(true) {
        return;
    }
    opt_level::warn();
    if thread::current().name() != Some("main") || rayon::current_thread_index().is_some() {
        return;
    }
    // Without threads to start the global pool remains, which says so itself.
    if let Ok(pool) = ThreadPoolBuilder::new().use_current_thread().build() {
        std::mem::forget(pool);
    }
}

thread_local!(static ALONE: Cell<bool> = const { Cell::new(false) });

/// Runs `f` with loops that wait for no thread of rayon's: for what holds a lock, and for threads that such threads may wait for.
pub(crate) fn alone<T>(f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _restore = Restore(ALONE.replace(true));
    f()
}

/// True where loops may be handed to rayon.
pub(crate) fn shared() -> bool {
    !ALONE.get()
}

/// Puts aside all that is this thread's, while it waits for rayon.
#[must_use]
pub(crate) struct Waiting {
    _flags: autograd::Flags,
    _precision: precision::Here,
    _draws: random::Aside,
    _trace: trace::Aside,
    _capture: capture::Aside,
}

impl Waiting {
    pub(crate) fn new() -> Self {
        Waiting {
            _flags: autograd::Flags::set(false, false),
            _precision: precision::Here::set(None),
            _draws: random::Aside::new(),
            _trace: trace::Aside::new(),
            _capture: capture::Aside::new(),
        }
    }
}

/// Loops of the crate over rayon's iterators.
pub(crate) trait Each: IndexedParallelIterator {
    /// `f` for each item, on all cores. Inside of [`alone`] on this thread, and where there are many items on some threads beside it.
    fn each(self, f: impl Fn(Self::Item) + Send + Sync) {
        let items = self.len();
        if shared() {
            let _waiting = Waiting::new();
            self.for_each(f);
        } else {
            self.with_producer(Alone { f, items });
        }
    }

    /// [`Each::each`] for a closure that may fail, for want of memory say: an error, after which no other item is begun.
    fn try_each(self, f: impl Fn(Self::Item) -> Result<()> + Send + Sync) -> Result<()> {
        let failed = OnceLock::new();
        self.each(|item| {
            if failed.get().is_none()
                && let Err(e) = f(item)
            {
                // Of several errors at once the first one is given.
                let _ = failed.set(e);
            }
        });
        failed.into_inner().map_or(Ok(()), Err)
    }
}

impl<I: IndexedParallelIterator> Each for I {}

/// A loop without rayon. Threads of its own take nothing else up, so it comes to an end whatever others wait for.
struct Alone<F> {
    f: F,
    items: usize,
}

impl<T, F: Fn(T) + Send + Sync> ProducerCallback<T> for Alone<F> {
    type Output = ();

    fn callback<P: Producer<Item = T>>(self, all: P) {
        /// Items for which a thread is started: a loop of at least a millisecond, where they are chunks.
        const SHARE: usize = 32;
        let Alone { f, items } = self;
        let threads = if items < 2 * SHARE { 1 } else { (items / SHARE).min(rayon::current_num_threads()).min(8) };
        if threads == 1 {
            return all.into_iter().for_each(f);
        }
        let (mut shares, mut rest) = (Vec::with_capacity(threads), all);
        for i in (1..threads).rev() {
            let (left, right) = rest.split_at(items * i / threads);
            shares.push(Mutex::new(Some(right)));
            rest = left;
        }
        let run = |share: &Mutex<Option<P>>| {
            let share = share.lock().unwrap_or_else(PoisonError::into_inner).take();
            alone(|| share.into_iter().flat_map(|share| share.into_iter()).for_each(&f));
        };
        thread::scope(|scope| {
            for share in &shares {
                // Without a thread its share stays for this one.
                let _ = thread::Builder::new().spawn_scoped(scope, || run(share));
            }
            rest.into_iter().for_each(&f);
            shares.iter().for_each(run);
        });
    }
}

/// `f(i, piece)` for each piece of `len` elements of `y`, on all cores.
#[inline(never)]
pub(crate) fn pieces<Y: Send>(y: &mut [Y], len: usize, f: &(dyn Fn(usize, &mut [Y]) + Sync)) {
    y.par_chunks_mut(len.max(1)).enumerate().each(|(i, y)| f(i, y));
}

/// `f(start, chunk)` over chunks of `y`; `start` is the chunk's offset.
pub(crate) fn chunks<Y: Send>(y: &mut [Y], f: impl Fn(usize, &mut [Y]) + Sync) {
    if y.len() < SERIAL {
        return f(0, y);
    }
    pieces(y, CHUNK, &|i, y| f(i * CHUNK, y));
}

/// `y[i] = f(x[i])`.
pub(crate) fn map<X: Copy + Sync, Y: Send>(y: &mut [Y], x: &[X], f: impl Fn(X) -> Y + Sync) {
    chunks(y, |start, y| y.iter_mut().zip(&x[start..]).for_each(|(y, &x)| *y = f(x)));
}

/// [`map`] for functions that compute rather than wait for memory: compiled for each instruction set, the best of which is taken.
pub(crate) fn map_vectorized<X: Copy + Sync, Y: Send>(y: &mut [Y], x: &[X], f: impl Fn(X) -> Y + Sync) {
    chunks(y, |start, y| {
        let x = &x[start..start + y.len()];
        simd::vectorized(
            #[inline(always)]
            || y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x)),
        );
    });
}

/// `y[i] = f(y[i])`, compiled as in [`map_vectorized`].
pub(crate) fn assign_vectorized<Y: Copy + Send>(y: &mut [Y], f: impl Fn(Y) -> Y + Sync) {
    chunks(y, |_, y| {
        simd::vectorized(
            #[inline(always)]
            || y.iter_mut().for_each(|y| *y = f(*y)),
        );
    });
}

/// `y[i] = f(a[i], b[i])`.
pub(crate) fn zip<A: Copy + Sync, B: Copy + Sync, Y: Send>(y: &mut [Y], a: &[A], b: &[B], f: impl Fn(A, B) -> Y + Sync) {
    chunks(y, |start, y| {
        let n = y.len();
        let (a, b) = (&a[start..start + n], &b[start..start + n]);
        y.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = f(a, b));
    });
}

/// [`zip`], compiled as in [`map_vectorized`].
pub(crate) fn zip_vectorized<A: Copy + Sync, B: Copy + Sync, Y: Send>(
    y: &mut [Y],
    a: &[A],
    b: &[B],
    f: impl Fn(A, B) -> Y + Sync,
) {
    chunks(y, |start, y| {
        let n = y.len();
        let (a, b) = (&a[start..start + n], &b[start..start + n]);
        simd::vectorized(
            #[inline(always)]
            || y.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = f(a, b)),
        );
    });
}

/// `f(&mut y[i], x[i])`.
pub(crate) fn zip_assign<X: Copy + Sync, Y: Send>(y: &mut [Y], x: &[X], f: impl Fn(&mut Y, X) + Sync) {
    chunks(y, |start, y| y.iter_mut().zip(&x[start..]).for_each(|(y, &x)| f(y, x)));
}

/// `f(i, row)` over rows of `len` elements of `y`.
pub(crate) fn rows<Y: Send>(y: &mut [Y], len: usize, f: impl Fn(usize, &mut [Y]) + Sync) {
    if len == 0 {
        return;
    }
    if y.len() < SERIAL {
        return y.chunks_mut(len).enumerate().for_each(|(i, y)| f(i, y));
    }
    // Short rows are grouped so that a task is worth its cost.
    let group = (CHUNK / len).max(1);
    pieces(y, group * len, &|g, rows| {
        rows.chunks_mut(len).enumerate().for_each(|(i, y)| f(g * group + i, y));
    });
}

/// [`rows`] by a closure that needs memory of its own.
pub(crate) fn try_rows<Y: Send>(y: &mut [Y], len: usize, f: impl Fn(usize, &mut [Y]) -> Result<()> + Sync) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    if y.len() < SERIAL {
        return y.chunks_mut(len).enumerate().try_for_each(|(i, y)| f(i, y));
    }
    let group = (CHUNK / len).max(1);
    try_pieces(y, group * len, &|g, rows| rows.chunks_mut(len).enumerate().try_for_each(|(i, y)| f(g * group + i, y)))
}

#[inline(never)]
fn try_pieces<Y: Send>(y: &mut [Y], len: usize, f: &(dyn Fn(usize, &mut [Y]) -> Result<()> + Sync)) -> Result<()> {
    y.par_chunks_mut(len.max(1)).enumerate().try_each(|(i, y)| f(i, y))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    /// Every element once, whatever runs the loop, with and without threads of its own.
    #[test]
    fn loops_under_a_lock_do_all_items() {
        for n in [0, 1, 63, 64, 65, 1000] {
            let (mut y, x) = (vec![0u32; n], (0..n as u32).collect::<Vec<_>>());
            alone(|| y.par_iter_mut().zip(&x).each(|(y, x)| *y += x + 1));
            assert!(y.iter().zip(1..).all(|(&y, i)| y == i), "{n}");
        }
        assert!(shared());
    }

    #[test]
    fn an_error_ends_a_loop_with_and_without_rayon() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        for n in [1, 63, 1000] {
            let begun = AtomicUsize::new(0);
            let fails = |at: usize| {
                let run = |i: usize| {
                    begun.fetch_add(1, Ordering::Relaxed);
                    if i == at { Err(Error::invalid("loop", "no memory")) } else { Ok(()) }
                };
                (0..n).into_par_iter().try_each(run)
            };
            for at in [0, n / 2, n - 1] {
                assert!(fails(at).is_err() && alone(|| fails(at)).is_err(), "{n} {at}");
            }
            begun.store(0, Ordering::Relaxed);
            assert!(fails(n).is_ok() && alone(|| fails(n)).is_ok());
            assert_eq!(begun.into_inner(), 2 * n);
        }
        assert!(shared());
    }

    /// What a waiting thread may take up does not see that this one records, trains, rounds and draws.
    #[test]
    fn nothing_of_the_thread_is_seen_while_it_waits() {
        let seen = || (autograd::is_recording(), autograd::is_training(), precision::get());
        let own = |f: &dyn Fn()| precision::with(precision::Precision::Tf32, || autograd::record(f));
        random::seed(6);
        own(&|| {
            let waiting = Waiting::new();
            let inside = (seen(), random::next_draw());
            drop(waiting);
            assert_eq!(inside.0, (false, false, precision::Precision::F32));
            assert_ne!(inside.1.seed, 6);
            assert_eq!(seen(), (true, true, precision::Precision::Tf32));
            assert_eq!(random::next_draw(), random::Draw { seed: 6, number: 0 });
        });
    }
}
