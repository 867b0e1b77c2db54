//! A bounds-checked front to the `gemm` crate, of which only the parts for f32 and f64 are built.
//!
//! This is the only module of the CPU path that contains `unsafe`. The crate takes raw pointers with arbitrary strides; here every matrix is a slice with a row
//! and a column stride, and the products are refused (by a panic) unless each element that can be touched lies inside its slice and no two elements of the
//! destination share a place.

#![allow(unsafe_code)]

use gemm_common::Parallelism;

use super::parallel::{self, Waiting};

/// A read-only `rows x cols` view: element (i, j) is `data[i * rs + j * cs]`.
#[derive(Clone, Copy)]
pub struct Mat<'a, T> {
    pub data: &'a [T],
    pub rs: usize,
    pub cs: usize,
}

impl<'a, T> Mat<'a, T> {
    pub fn new(data: &'a [T], rs: usize, cs: usize) -> Self {
        Self { data, rs, cs }
    }

    /// Row-major with `ld` elements from row to row.
    pub fn row_major(data: &'a [T], ld: usize) -> Self {
        Self { data, rs: ld, cs: 1 }
    }

    /// The transpose; nothing moves.
    pub fn t(self) -> Self {
        Self { data: self.data, rs: self.cs, cs: self.rs }
    }
}

/// A writable `rows x cols` view: element (i, j) is `data[i * rs + j * cs]`.
pub struct MatMut<'a, T> {
    pub data: &'a mut [T],
    pub rs: usize,
    pub cs: usize,
}

impl<'a, T> MatMut<'a, T> {
    #[cfg(test)]
    pub fn new(data: &'a mut [T], rs: usize, cs: usize) -> Self {
        Self { data, rs, cs }
    }

    /// Row-major with `ld` elements from row to row.
    pub fn row_major(data: &'a mut [T], ld: usize) -> Self {
        Self { data, rs: ld, cs: 1 }
    }
}

/// Whether one product may be split over the threads of the current pool. The split never crosses the summed dimension, so the result does not depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Threads {
    One,
    Pool,
}

/// Element types that the products are compiled for.
pub trait Scalar: Copy + Send + Sync + PartialEq + 'static {
    const ZERO: Self;
    /// The crate's product for this type and this processor.
    fn product() -> Product<Self>;
}

/// `(m, n, k, c, c_cs, c_rs, read_c, a, a_cs, a_rs, b, b_cs, b_rs, beta, alpha, conj_c, conj_a, conj_b, threads)`
#[allow(clippy::type_complexity)]
pub type Product<T> = unsafe fn(
    usize,
    usize,
    usize,
    *mut T,
    isize,
    isize,
    bool,
    *const T,
    isize,
    isize,
    *const T,
    isize,
    isize,
    T,
    T,
    bool,
    bool,
    bool,
    Parallelism,
);

impl Scalar for f32 {
    const ZERO: f32 = 0.0;
    fn product() -> Product<f32> {
        gemm_f32::gemm::f32::get_gemm_fn()
    }
}

impl Scalar for f64 {
    const ZERO: f64 = 0.0;
    fn product() -> Product<f64> {
        gemm_f64::gemm::f64::get_gemm_fn()
    }
}

/// The largest index that a `rows x cols` view touches; `None` when the arithmetic overflows.
fn last_index(rows: usize, cols: usize, rs: usize, cs: usize) -> Option<usize> {
    let down = (rows - 1).checked_mul(rs)?;
    let along = (cols - 1).checked_mul(cs)?;
    down.checked_add(along)
}

fn check(what: &str, len: usize, rows: usize, cols: usize, rs: usize, cs: usize) {
    if rows == 0 || cols == 0 {
        return;
    }
    let inside = last_index(rows, cols, rs, cs).is_some_and(|last| last < len);
    assert!(inside, "gemm: {what} is {rows}x{cols} with strides ({rs}, {cs}), which does not fit into {len} elements");
    assert!(rs <= isize::MAX as usize && cs <= isize::MAX as usize, "gemm: {what} has a stride beyond isize");
}

/// Raises the width from which the crate copies a left operand that is contiguous already: up to 96 columns the copy costs more than it gains.
fn tune() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| gemm_common::gemm::set_lhs_packing_threshold_single_thread(16));
}

/// c := alpha * a * b + beta * c, with a of m x k, b of k x n and c of m x n elements. `beta == 0` overwrites c without reading it (so NaN there does not spread).
///
/// # Panics
/// When a view does not fit into its slice, or when two elements of c would share a place.
#[allow(clippy::too_many_arguments)]
pub fn gemm<T: Scalar>(m: usize, n: usize, k: usize, alpha: T, a: Mat<T>, b: Mat<T>, beta: T, c: MatMut<T>, threads: Threads) {
    check("a", a.data.len(), m, k, a.rs, a.cs);
    check("b", b.data.len(), k, n, b.rs, b.cs);
    check("c", c.data.len(), m, n, c.rs, c.cs);
    // Either each row ends before the next one starts, or each column does: then i * rs + j * cs is one-to-one.
    let beyond = |step: usize, count: usize, inner: usize| (count - 1).checked_mul(inner).is_some_and(|last| step > last);
    let distinct = match (m, n) {
        (0..=1, 0..=1) => true,
        (0..=1, _) => c.cs > 0,
        (_, 0..=1) => c.rs > 0,
        _ => (c.cs > 0 && beyond(c.rs, n, c.cs)) || (c.rs > 0 && beyond(c.cs, m, c.rs)),
    };
    assert!(distinct, "gemm: the {m}x{n} destination with strides ({}, {}) overlaps itself", c.rs, c.cs);
    if m == 0 || n == 0 {
        return;
    }
    let (parallelism, _waiting) = match threads {
        Threads::Pool if parallel::shared() => (Parallelism::Rayon(0), Some(Waiting::new())),
        _ => (Parallelism::None, None),
    };
    // The crate prefers a destination whose columns are contiguous: of the transposed problem, if need be.
    let (m, n, a, b, c_rs, c_cs) = if c.cs < c.rs { (n, m, b.t(), a.t(), c.cs, c.rs) } else { (m, n, a, b, c.rs, c.cs) };
    tune();
    // SAFETY: `check` established that every index i * rs + j * cs with i and j in range lies inside the slice of its matrix, and that the strides fit isize;
    // c is uniquely borrowed and its elements are distinct, so threads that write different elements do not race, and the shared borrows of a and b cannot
    // alias c. With k == 0, a and b are empty and the crate does not read them. The function is the crate's for T, and all strides are non-negative, as it
    // expects. The slices outlive the call, which is synchronous.
    unsafe {
        T::product()(
            m,
            n,
            k,
            c.data.as_mut_ptr(),
            c_cs as isize,
            c_rs as isize,
            beta != T::ZERO,
            a.data.as_ptr(),
            a.cs as isize,
            a.rs as isize,
            b.data.as_ptr(),
            b.cs as isize,
            b.rs as isize,
            beta,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_a_plain_product_for_all_strides() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (17, 50, 33), (64, 1, 70), (1, 33, 9), (4, 4, 0)] {
            for a_t in [false, true] {
                for b_t in [false, true] {
                    for c_t in [false, true] {
                        for beta in [0.0f64, 1.0, 0.5] {
                            let a: Vec<f64> = (0..m * k).map(|i| (i % 13) as f64 - 6.0).collect();
                            let b: Vec<f64> = (0..n * k).map(|i| (i % 11) as f64 - 5.0).collect();
                            let mut c: Vec<f64> = (0..m * n).map(|i| (i % 7) as f64).collect();
                            let old = c.clone();
                            let (ars, acs) = if a_t { (1, m) } else { (k, 1) };
                            let (brs, bcs) = if b_t { (1, k) } else { (n, 1) };
                            let (crs, ccs) = if c_t { (1, m) } else { (n, 1) };
                            gemm(
                                m,
                                n,
                                k,
                                2.0,
                                Mat::new(&a, ars, acs),
                                Mat::new(&b, brs, bcs),
                                beta,
                                MatMut::new(&mut c, crs, ccs),
                                Threads::Pool,
                            );
                            for i in 0..m {
                                for j in 0..n {
                                    let sum: f64 = (0..k).map(|l| a[i * ars + l * acs] * b[l * brs + j * bcs]).sum();
                                    let at = i * crs + j * ccs;
                                    assert_eq!(c[at], 2.0 * sum + beta * old[at]);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn beta_zero_does_not_read_the_destination() {
        let mut c = [f32::NAN; 4];
        gemm(
            2,
            2,
            1,
            1.0,
            Mat::row_major(&[1.0, 2.0], 1),
            Mat::row_major(&[3.0, 4.0], 2),
            0.0,
            MatMut::row_major(&mut c, 2),
            Threads::One,
        );
        assert_eq!(c, [3.0, 4.0, 6.0, 8.0]);
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_short_slice_is_refused() {
        let mut c = [0.0f32; 4];
        gemm(
            2,
            2,
            2,
            1.0,
            Mat::row_major(&[1.0; 3], 2),
            Mat::row_major(&[1.0; 4], 2),
            0.0,
            MatMut::row_major(&mut c, 2),
            Threads::One,
        );
    }

    #[test]
    #[should_panic(expected = "overlaps itself")]
    fn an_overlapping_destination_is_refused() {
        let mut c = [0.0f32; 8];
        gemm(
            2,
            2,
            2,
            1.0,
            Mat::row_major(&[1.0; 4], 2),
            Mat::row_major(&[1.0; 4], 2),
            0.0,
            MatMut::new(&mut c, 1, 1),
            Threads::One,
        );
    }
}
