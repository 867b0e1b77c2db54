//! Reductions on the CPU.

use std::ops::Range;

use crate::{
    Array, Result,
    cpu::{buffers::Buffer, memory, parallel},
    dtype::Real,
};

use super::{
    Fold,
    plan::{Plan, offset, pieces, work},
};
use crate::ops::number::Number;

/// Elements that one task reads at least.
const TASK: usize = 16 << 10;
/// Outputs that one task of neighbouring columns accumulates side by side.
const COLUMNS: usize = 1024;

/// What is accumulated for each output.
pub(super) fn fold<T: Number>(x: &[T], plan: &Plan, how: Fold) -> Result<Buffer<T::Wide>> {
    type W<T> = <T as Number>::Wide;
    let (zero, one) = (W::<T>::ZERO, W::<T>::ONE);
    match how {
        Fold::Sum => run(x, plan, zero, |acc, x: T| acc.plus(x.widen()), |a, b| a.plus(b)),
        Fold::Prod => run(x, plan, one, |acc, x: T| acc.times(x.widen()), |a, b| a.times(b)),
        Fold::Squares => run(x, plan, zero, |acc, x: T| acc.plus(x.widen().times(x.widen())), |a, b| a.plus(b)),
    }
}

/// The largest (smallest) element of each output; NaN if there is one.
pub(super) fn extremum<T: Number>(x: &[T], plan: &Plan, largest: bool) -> Result<Buffer<T>> {
    let max = |acc: T, x: T| if x > acc || x.is_nan() { x } else { acc };
    let min = |acc: T, x: T| if x < acc || x.is_nan() { x } else { acc };
    if largest { run(x, plan, T::LOWEST, max, max) } else { run(x, plan, T::HIGHEST, min, min) }
}

/// y[o] = step(… step(step(init, x[o, 0]), x[o, 1]) …)
fn run<T: Number, A: Number>(
    x: &[T],
    plan: &Plan,
    init: A,
    step: impl Fn(A, T) -> A + Sync,
    merge: impl Fn(A, A) -> A + Sync,
) -> Result<Buffer<A>> {
    if T::DTYPE == crate::DType::F64 {
        let one = |o| {
            let base = offset(&plan.kept, o);
            by_halves(0..plan.count, init, &|acc, r| step(acc, x[base + offset(&plan.reduced, r)]), &merge)
        };
        return memory::collected((0..plan.outputs).map(one)).map(Buffer::from_vec);
    }
    fast(x, plan, init, step, merge)
}

/// In f64 nothing wider is left to add in: halves are folded each for itself, so that the error grows with the logarithm of the count.
fn by_halves<A: Copy>(r: Range<usize>, init: A, step: &impl Fn(A, usize) -> A, merge: &impl Fn(A, A) -> A) -> A {
    if r.len() <= 64 {
        return r.fold(init, step);
    }
    let middle = r.start + r.len() / 2;
    merge(by_halves(r.start..middle, init, step, merge), by_halves(middle..r.end, init, step, merge))
}

/// The same in slices of the elements and, for each, either whole rows or neighbouring columns side by side.
fn fast<T: Number, A: Number>(
    x: &[T],
    plan: &Plan,
    init: A,
    step: impl Fn(A, T) -> A + Sync,
    merge: impl Fn(A, A) -> A + Sync,
) -> Result<Buffer<A>> {
    let (outputs, count, columns) = (plan.outputs, plan.count, plan.by_columns());
    // The number of slices depends on the sizes alone, so that any number of threads gives the same bits.
    let blocks = if columns { outputs.div_ceil(COLUMNS) } else { outputs };
    let slices = if blocks == 0 || blocks >= 64 { 1 } else { (work(plan) / TASK).clamp(1, 64 / blocks).min(count.max(1)) };
    let len = count.div_ceil(slices);
    let mut partial = Buffer::<A>::full(outputs * slices, init)?;
    let range = |slice: usize| (slice * len).min(count)..((slice + 1) * len).min(count);

    let column_block = |slice: usize, first: usize, acc: &mut [A]| {
        let r = range(slice);
        pieces(&plan.kept, first, first + acc.len(), |done, base, n| {
            let acc = &mut acc[done..done + n];
            pieces(&plan.reduced, r.start, r.end, |_, at, rows| {
                let stride = plan.reduced.last().map_or(0, |a| a.1);
                for row in 0..rows {
                    let x = &x[base + at + row * stride..][..n];
                    acc.iter_mut().zip(x).for_each(|(acc, &x)| *acc = step(*acc, x));
                }
            });
        });
    };
    let row = |slice: usize, o: usize| {
        let (r, base) = (range(slice), offset(&plan.kept, o));
        let stride = plan.reduced.last().map_or(0, |a| a.1);
        let mut acc = init;
        pieces(&plan.reduced, r.start, r.end, |_, at, n| {
            let at = base + at;
            if stride == 1 && n >= 16 {
                acc = merge(acc, lanes(&x[at..at + n], init, &step, &merge));
            } else {
                acc = (0..n).fold(acc, |acc, i| step(acc, x[at + i * stride]));
            }
        });
        acc
    };

    if outputs == 0 {
        return Ok(partial);
    }
    let spread = work(plan) >= 2 * TASK;
    match (columns, spread) {
        (true, false) => {
            for (slice, acc) in partial.chunks_mut(outputs).enumerate() {
                acc.chunks_mut(COLUMNS).enumerate().for_each(|(b, acc)| column_block(slice, b * COLUMNS, acc));
            }
        }
        (true, true) => parallel::pieces(&mut partial, outputs, &|slice, acc| {
            parallel::pieces(acc, COLUMNS, &|b, acc| column_block(slice, b * COLUMNS, acc));
        }),
        (false, false) => partial.iter_mut().enumerate().for_each(|(j, acc)| *acc = row(j / outputs, j % outputs)),
        (false, true) => {
            let group = (TASK / len.max(1)).max(1);
            parallel::pieces(&mut partial, group, &|g, acc| {
                acc.iter_mut().enumerate().for_each(|(j, acc)| {
                    let j = g * group + j;
                    *acc = row(j / outputs, j % outputs);
                });
            });
        }
    }
    if slices == 1 {
        return Ok(partial);
    }
    let mut y = Buffer::<A>::stale(outputs)?;
    for (o, y) in y.iter_mut().enumerate() {
        *y = (1..slices).fold(partial[o], |acc, slice| merge(acc, partial[slice * outputs + o]));
    }
    Ok(y)
}

/// A dense row in eight chains that do not wait for each other.
fn lanes<T: Copy, A: Copy>(x: &[T], init: A, step: impl Fn(A, T) -> A, merge: impl Fn(A, A) -> A) -> A {
    let mut lane = [init; 8];
    let (eights, rest) = x.as_chunks::<8>();
    for x in eights {
        for (lane, &x) in lane.iter_mut().zip(x) {
            *lane = step(*lane, x);
        }
    }
    let head = lane.into_iter().fold(init, &merge);
    rest.iter().fold(head, |acc, &x| step(acc, x))
}

/// For each output the place, in the plan's order, of the first element that is its extremum.
pub(super) fn places<T: Number>(x: &[T], plan: &Plan, y: &[T]) -> Result<Buffer<i64>> {
    let mut index = Buffer::<i64>::stale(plan.outputs)?;
    crate::cpu::parallel::chunks(&mut index, |start, index| {
        for (o, index) in index.iter_mut().enumerate() {
            let (y, base) = (y[start + o], offset(&plan.kept, start + o));
            let hit = |x: T| x == y || (x.is_nan() && y.is_nan());
            let found = match plan.reduced[..] {
                [(n, 1)] => x[base..base + n].iter().position(|&x| hit(x)),
                [(n, stride)] => (0..n).position(|r| hit(x[base + r * stride])),
                _ => (0..plan.count).position(|r| hit(x[base + offset(&plan.reduced, r)])),
            };
            *index = found.unwrap_or(0) as i64;
        }
    });
    Ok(index)
}

/// The gradient of a product, as the product of what is before a factor times that of what is behind it, in f64: no quotient of the
/// whole, which a zero, an infinity or an overflow among the factors would spoil.
pub(super) fn prod_gradient<F: Real>(x: &Array, dy: &Array, plan: &Plan) -> Result<Array> {
    let (x_, dy) = (x.real::<F>("prod")?, dy.to_layout(plan.layout)?);
    let (dy, count) = (dy.real::<F>("prod")?, plan.count);
    // By output first, which all cores share.
    let mut by_output = Buffer::<F>::stale(x.len())?;
    parallel::try_rows(&mut by_output, count, |o, dx| {
        let base = offset(&plan.kept, o);
        let factor = |r: usize| x_[base + offset(&plan.reduced, r)].to_f64();
        let mut left = memory::reserved(count)?;
        let mut product = 1.0;
        for r in 0..count {
            left.push(product);
            product *= factor(r);
        }
        let mut right = 1.0;
        for r in (0..count).rev() {
            let others = left[r] * right;
            dx[r] = if others == 0.0 { F::ZERO } else { F::from_f64(dy[o].to_f64() * others) };
            right *= factor(r);
        }
        Ok(())
    })?;
    let mut dx = Buffer::<F>::stale(x.len())?;
    for (o, from) in by_output.chunks(count.max(1)).enumerate() {
        let base = offset(&plan.kept, o);
        from.iter().enumerate().for_each(|(r, &v)| dx[base + offset(&plan.reduced, r)] = v);
    }
    Ok(Array::from_real(dx, x.shape(), x.dtype())?.with_layout(x.layout()))
}
