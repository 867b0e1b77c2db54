//! Shapes, strides, broadcasting and the physical layouts of 4-D arrays.

use std::fmt;

use crate::{Error, Result};

/// How the elements of an array lie in memory; users always see N,C,H,W.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// The last axis is contiguous.
    #[default]
    RowMajor,
    /// A 4-D array (N,C,H,W) whose channels are contiguous: memory order N,H,W,C, as tensor cores want it.
    ChannelsLast,
}

/// The most elements that an array can have: with 8 bytes each they fill the address space.
const MOST: usize = isize::MAX as usize / 8;

/// Number of elements of `shape`, 1 for a scalar; `usize::MAX` when that is too small a type.
pub fn numel(shape: &[usize]) -> usize {
    if shape.contains(&0) { 0 } else { shape.iter().fold(1, |n, &e| n.saturating_mul(e)) }
}

/// Number of elements of the shape of an array: every array's shape has passed here.
///
/// The extents other than 0 are bounded, too, where another is 0. So no product of some of an array's extents overflows,
/// and strides, planes and rows are multiplied without looking; only what attributes enlarge has to be checked again.
///
/// # Errors
/// [`Error::Shape`] when the product of the extents, each counted as at least 1, exceeds the address space.
pub(crate) fn checked_numel(op: &'static str, shape: &[usize]) -> Result<usize> {
    let most = shape.iter().try_fold(1usize, |n, &e| n.checked_mul(e.max(1))).filter(|&n| n <= MOST);
    let most = most.ok_or_else(|| Error::shape(op, "too many elements", &[shape]))?;
    Ok(if shape.contains(&0) { 0 } else { most })
}

/// Element strides of `shape` in `layout`.
///
/// ```
/// use hadal::{Layout, shape::strides};
/// assert_eq!(strides(&[2, 3, 4, 5], Layout::RowMajor), [60, 20, 5, 1]);
/// assert_eq!(strides(&[2, 3, 4, 5], Layout::ChannelsLast), [60, 1, 15, 3]);
/// ```
pub fn strides(shape: &[usize], layout: Layout) -> Vec<usize> {
    if let (Layout::ChannelsLast, &[_, c, h, w]) = (layout, shape) {
        let row = w.saturating_mul(c);
        return vec![h.saturating_mul(row), 1, row, c];
    }
    let mut s = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        s[i - 1] = s[i].saturating_mul(shape[i]);
    }
    s
}

/// The shape that `a` and `b` broadcast to, by numpy's rule: aligned at the end, an extent of 1 stretches.
///
/// # Errors
/// [`Error::Shape`] when two extents differ and neither is 1, or the result is too large for any memory.
pub fn broadcast(op: &'static str, a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| if i + s.len() >= rank { s[i + s.len() - rank] } else { 1 };
    let joined = (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(Error::shape(op, "shapes do not broadcast", &[a, b])),
        })
        .collect::<Result<Vec<_>>>()?;
    checked_numel(op, &joined)?;
    Ok(joined)
}

/// Row-major strides of `shape` seen as `out` (which it broadcasts to): 0 where an axis is stretched.
pub fn broadcast_strides(shape: &[usize], out: &[usize]) -> Vec<usize> {
    let own = strides(shape, Layout::RowMajor);
    let skip = out.len().saturating_sub(shape.len());
    (0..out.len()).map(|i| if i < skip || shape[i - skip] == 1 { 0 } else { own[i - skip] }).collect()
}

/// A non-negative axis from one that may count from the end.
///
/// # Errors
/// [`Error::Invalid`] when it is outside `-rank..rank`.
pub fn axis(op: &'static str, axis: isize, rank: usize) -> Result<usize> {
    let a = if axis < 0 { rank.checked_sub(axis.unsigned_abs()) } else { Some(axis.unsigned_abs()) };
    a.filter(|&a| a < rank).ok_or_else(|| Error::invalid(op, format!("axis {axis} is outside of {rank} dimensions")))
}

/// Sorted, distinct axes; an empty list means all of them.
///
/// # Errors
/// [`Error::Invalid`] when an axis is out of range or named twice.
pub fn axes(op: &'static str, list: &[isize], rank: usize) -> Result<Vec<usize>> {
    if list.is_empty() {
        return Ok((0..rank).collect());
    }
    let mut out = list.iter().map(|&a| axis(op, a, rank)).collect::<Result<Vec<_>>>()?;
    out.sort_unstable();
    if out.windows(2).any(|w| w[0] == w[1]) {
        return Err(Error::invalid(op, format!("an axis is named twice in {list:?}")));
    }
    Ok(out)
}

/// Prints a shape as Python does: `(2, 3)`, `(5,)`, `()`.
pub struct Display<'a>(pub &'a [usize]);

impl fmt::Display for Display<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [one] => write!(f, "({one},)"),
            many => {
                let list: Vec<String> = many.iter().map(usize::to_string).collect();
                write!(f, "({})", list.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_numpy() {
        assert_eq!(broadcast("add", &[3, 1], &[4]).unwrap(), [3, 4]);
        assert_eq!(broadcast("add", &[], &[2, 3]).unwrap(), [2, 3]);
        assert_eq!(broadcast("add", &[0, 1], &[1, 5]).unwrap(), [0, 5]);
        assert!(broadcast("add", &[2], &[3]).is_err());
        assert_eq!(broadcast_strides(&[3, 1], &[2, 3, 4]), [0, 1, 0]);
    }

    #[test]
    fn the_extents_beside_a_0_are_bounded_too() {
        assert_eq!((numel(&[usize::MAX, 2, 0]), numel(&[0, usize::MAX, 2]), numel(&[])), (0, 0, 1));
        for shape in [&[usize::MAX, 2, 0][..], &[0, 1 << 62], &[1 << 31, 1 << 31], &[usize::MAX]] {
            let e = checked_numel("zeros", shape).unwrap_err().to_string();
            assert!(e.contains("too many elements"), "{shape:?}: {e}");
        }
        assert_eq!(checked_numel("zeros", &[0, 1 << 40]).unwrap(), 0);
        assert_eq!(checked_numel("zeros", &[3, 1 << 40]).unwrap(), 3 << 40);
        assert_eq!(checked_numel("zeros", &[]).unwrap(), 1);
    }

    #[test]
    fn axes_count_from_the_end() {
        assert_eq!(axes("sum", &[0, -1], 3).unwrap(), [0, 2]);
        assert!(axes("sum", &[2, -1], 3).is_err());
        assert!(axis("sum", 3, 3).is_err());
    }
}
