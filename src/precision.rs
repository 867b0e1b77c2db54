//! How exact f32 matrix products and convolutions are on a GPU.
//!
//! By default an f32 product is as accurate as f32 arithmetic, whatever computes it: on tensor cores each operand is split in
//! two or three, and three or six products make up one. [`Precision::Tf32`] gives that up for speed, and only who asks for it gets it:
//!
//! ```
//! use hadal::{Tensor, cpu, precision::{self, Precision}};
//! let x = Tensor::ones(&[4, 64], &cpu())?;
//! let y = precision::with(Precision::Tf32, || x.matmul_t(&x, false, true))?; // here, on this thread
//! precision::set(Precision::Tf32); // or from here on, on all threads
//! assert_eq!(precision::get(), Precision::Tf32);
//! precision::set(Precision::F32);
//! # assert_eq!(y.to_vec()?, vec![64.0; 16]);
//! # Ok::<(), hadal::Error>(())
//! ```
//!
//! The setting counts when an operation runs. A gradient is computed in the backward pass: `backward` belongs into the closure of
//! [`with`], too. It touches arrays of [`DType::F32`](crate::DType::F32) on GPUs of compute capability 8.0 and later, and nothing else.

use std::{
    cell::Cell,
    sync::atomic::{AtomicBool, Ordering},
};

/// What f32 matrix products and convolutions may be computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// As accurate as f32 arithmetic: a relative error of about 10⁻⁷ of the sum of the terms' magnitudes.
    #[default]
    F32,
    /// Operands are rounded to TF32 (to the nearest of 11 significant bits, f32's range), sums are kept in f32: a relative error of
    /// about 10⁻³·⁵, several times faster. Hopper splits some operands into two bf16 instead, whose products are more accurate; an
    /// infinity may come out as NaN there.
    Tf32,
}

static EVERYWHERE: AtomicBool = AtomicBool::new(false);

thread_local! {
    static HERE: Cell<Option<Precision>> = const { Cell::new(None) };
}

/// The precision that an operation of this thread would run with now.
pub fn get() -> Precision {
    let everywhere = || if EVERYWHERE.load(Ordering::Relaxed) { Precision::Tf32 } else { Precision::F32 };
    HERE.get().unwrap_or_else(everywhere)
}

/// Sets the precision for all threads, but where [`with`] says otherwise.
pub fn set(precision: Precision) {
    EVERYWHERE.store(precision == Precision::Tf32, Ordering::Relaxed);
}

/// Sets this thread's precision until it is dropped, also by a panic.
#[must_use]
pub(crate) struct Here(Option<Precision>);

impl Here {
    /// `None` for what holds on all threads.
    pub(crate) fn set(precision: Option<Precision>) -> Self {
        Here(HERE.replace(precision))
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        HERE.set(self.0);
    }
}

/// Runs `f` with that precision on this thread; what was there before holds again when it ends, also by a panic.
pub fn with<T>(precision: Precision, f: impl FnOnce() -> T) -> T {
    let _here = Here::set(Some(precision));
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_nest_and_end() {
        assert_eq!(get(), Precision::F32);
        with(Precision::Tf32, || {
            assert_eq!(get(), Precision::Tf32);
            assert_eq!(with(Precision::F32, get), Precision::F32);
            assert_eq!(get(), Precision::Tf32);
            assert_eq!(std::thread::spawn(get).join().unwrap(), Precision::F32);
        });
        let panics = std::panic::catch_unwind(|| with(Precision::Tf32, || panic!("on purpose")));
        assert!(panics.is_err() && get() == Precision::F32);
    }
}
