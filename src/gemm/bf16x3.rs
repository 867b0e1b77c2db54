//! Operands of bf16x6: an f32 array as three planes of bf16, whose sum is the f32.

use std::cell::RefCell;

use super::{arch::Arch, model::bf16x6::PLANES};
use crate::{Array, DType, Layout, Result, cuda::Launch, precision};

/// Whether `a` may be an operand of bf16x6.
fn is_split(a: &Array) -> Result<bool> {
    Ok(Arch::of(a)?.has_bf16x6(a.dtype(), precision::get()))
}

thread_local! {
    /// Arrays whose planes are cached, with these once there are some.
    static CACHE: RefCell<Vec<(Array, Option<Array>)>> = const { RefCell::new(Vec::new()) };
}

/// While it lives, each of its arrays is split once by this thread: dy, which dgrad and wgrad both read.
#[must_use]
pub(crate) struct SplitCache(usize);

impl SplitCache {
    pub(crate) fn new(arrays: &[&Array]) -> Self {
        CACHE.with_borrow_mut(|cache| {
            let before = cache.len();
            cache.extend(arrays.iter().filter(|a| is_split(a).unwrap_or(false)).map(|&a| (a.clone(), None)));
            SplitCache(before)
        })
    }

    /// The place of `a`: the same memory, whose elements are split one by one.
    fn place(a: &Array) -> Result<Option<usize>> {
        let memory = a.cuda("split")?;
        let is = |(of, _): &(Array, _)| of.cuda("split").is_ok_and(|m| std::ptr::eq(m, memory)) && of.len() == a.len();
        Ok(CACHE.with_borrow(|cache| cache.iter().position(is)))
    }
}

impl Drop for SplitCache {
    fn drop(&mut self) {
        // Freeing memory must not happen inside of the borrow.
        let own = CACHE.with_borrow_mut(|cache| cache.split_off(self.0.min(cache.len())));
        drop(own);
    }
}

/// `a` as three planes of bf16, (3, stride) with a stride that is a multiple of 8 elements.
pub(crate) fn split_bf16x3(a: &Array) -> Result<Array> {
    let place = SplitCache::place(a)?;
    if let Some(planes) = place.and_then(|i| CACHE.with_borrow(|cache| cache[i].1.clone())) {
        return Ok(planes);
    }
    let stride = a.len().next_multiple_of(8);
    let planes = Array::uninit(&[PLANES, stride], DType::BF16, Layout::RowMajor, &a.context())?;
    Launch::new(a, "split_planes.cu", "split_planes", &[])?
        .array(&planes)
        .array(a)
        .value(a.len() as i64)
        .value(stride as i64)
        .run_in_turn(a.len().div_ceil(256 * 8))?;
    if let Some(i) = place {
        CACHE.with_borrow_mut(|cache| cache[i].1 = Some(planes.clone()));
    }
    Ok(planes)
}
