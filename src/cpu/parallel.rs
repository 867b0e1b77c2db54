//! Loops over slices on all cores. Chunks are fixed, so results do not depend on the number of threads.
//!
//! The loops hand their closures to rayon as `dyn Fn`: its machinery is then compiled once for each element type instead
//! of once for each closure, which more than halves the time to build the crate, and a call for a chunk costs nothing.

use std::cell::Cell;

use rayon::{ThreadPoolBuilder, prelude::*};

use super::simd;
use crate::Result;

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
    if SEEN.replace(true) || std::thread::current().name() != Some("main") || rayon::current_thread_index().is_some() {
        return;
    }
    // Without threads to start the global pool remains, which says so itself.
    if let Ok(pool) = ThreadPoolBuilder::new().use_current_thread().build() {
        std::mem::forget(pool);
    }
}

/// `f(i, piece)` for each piece of `len` elements of `y`, on all cores.
#[inline(never)]
pub(crate) fn pieces<Y: Send>(y: &mut [Y], len: usize, f: &(dyn Fn(usize, &mut [Y]) + Sync)) {
    y.par_chunks_mut(len.max(1)).enumerate().for_each(|(i, y)| f(i, y));
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
    y.par_chunks_mut(len.max(1)).enumerate().try_for_each(|(i, y)| f(i, y))
}
