//! Loops over slices on all cores. Chunks are fixed, so results do not depend on the number of threads.

use rayon::prelude::*;

/// Below this many elements a loop stays on its thread.
const SERIAL: usize = 32 << 10;
/// Elements that one task takes.
const CHUNK: usize = 16 << 10;

/// `y[i] = f(x[i])`.
pub(crate) fn map<X: Copy + Sync, Y: Send>(y: &mut [Y], x: &[X], f: impl Fn(X) -> Y + Sync) {
    let run = |(y, x): (&mut [Y], &[X])| y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x));
    if y.len() < SERIAL {
        return run((y, x));
    }
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(run);
}

/// `y[i] = f(a[i], b[i])`.
pub(crate) fn zip<A: Copy + Sync, B: Copy + Sync, Y: Send>(y: &mut [Y], a: &[A], b: &[B], f: impl Fn(A, B) -> Y + Sync) {
    let run = |((y, a), b): ((&mut [Y], &[A]), &[B])| y.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = f(a, b));
    if y.len() < SERIAL {
        return run(((y, a), b));
    }
    y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK)).for_each(run);
}

/// `f(&mut y[i], x[i])`.
pub(crate) fn zip_assign<X: Copy + Sync, Y: Send>(y: &mut [Y], x: &[X], f: impl Fn(&mut Y, X) + Sync) {
    let run = |(y, x): (&mut [Y], &[X])| y.iter_mut().zip(x).for_each(|(y, &x)| f(y, x));
    if y.len() < SERIAL {
        return run((y, x));
    }
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(run);
}

/// `f(start, chunk)` over chunks of `y`; `start` is the chunk's offset.
pub(crate) fn chunks<Y: Send>(y: &mut [Y], f: impl Fn(usize, &mut [Y]) + Sync) {
    if y.len() < SERIAL {
        return f(0, y);
    }
    y.par_chunks_mut(CHUNK).enumerate().for_each(|(i, y)| f(i * CHUNK, y));
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
    y.par_chunks_mut(group * len).enumerate().for_each(|(g, rows)| {
        rows.chunks_mut(len).enumerate().for_each(|(i, y)| f(g * group + i, y));
    });
}
