//! Kernels of the user's: [`Source::kernel`] and the launch that it begins.

use std::marker::PhantomData;

use super::{
    launch::Launch,
    source::{Define, Source},
    tensor_map::TensorMap,
};
use crate::{Array, Result, random::Draw};

impl Source {
    /// Begins a launch of the kernel `name` on the device of `array`, compiled with `defines`.
    ///
    /// The file is compiled at the first launch with these defines on this device; `common.cuh` wants `scalar_t`.
    ///
    /// ```
    /// use hadal::{Array, Result, cuda::Source};
    /// static TWICE: Source = Source::new(
    ///     "twice.cu",
    ///     r#"#include "common.cuh"
    /// extern "C" __global__ void twice(scalar_t* y, const scalar_t* x, i64 n) {
    ///   GRID_STRIDE(i, n) store(y + i, 2 * load(x + i));
    /// }"#,
    /// );
    ///
    /// /// y = 2x on a GPU
    /// fn twice(x: &Array) -> Result<Array> {
    ///     let mut y = x.empty_like()?;
    ///     let launch = TWICE.kernel("twice", x, &[("scalar_t", x.dtype().into())])?;
    ///     let launch = launch.array_mut(&mut y).array(x).value(x.len() as i64);
    ///     // SAFETY: the arguments are those of `twice`, which touches elements below n of y and x, and both have n.
    ///     unsafe { launch.run_1d(x.len()) }?;
    ///     Ok(y)
    /// }
    ///
    /// if let Ok(gpu) = hadal::gpu(0) {
    ///     let y = twice(&Array::from_vec(vec![1f32, 2., 3.], &[3], &gpu)?)?;
    ///     assert_eq!(y.to_vec::<f32>()?, [2., 4., 6.]);
    /// }
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Context`](crate::Error::Context) when `array` is on the CPU, [`Error::Compile`](crate::Error::Compile) with
    /// NVRTC's log, [`Error::Invalid`](crate::Error::Invalid) when the file has no kernel of that name.
    pub fn kernel(&self, name: &'static str, array: &Array, defines: &[(&'static str, Define)]) -> Result<Kernel<'static>> {
        Ok(Kernel { launch: Launch::of(self, array, name, defines)?, arrays: PhantomData })
    }
}

/// A launch of a user's kernel: its arguments in order, then [`Kernel::run`] or [`Kernel::run_1d`].
///
/// The arrays given stay borrowed until then, so that none is freed or handed on before the kernel is queued.
#[must_use = "nothing happens before `run` or `run_1d`"]
pub struct Kernel<'a> {
    launch: Launch,
    arrays: PhantomData<&'a mut Array>,
}

impl<'a> Kernel<'a> {
    /// The same launch, with a shorter borrow.
    fn then<'b>(self, f: impl FnOnce(Launch) -> Launch) -> Kernel<'b>
    where
        'a: 'b,
    {
        Kernel { launch: f(self.launch), arrays: PhantomData }
    }

    /// A pointer to the elements of an array that the kernel reads, in its [`layout`](Array::layout).
    pub fn array<'b>(self, a: &'b Array) -> Kernel<'b>
    where
        'a: 'b,
    {
        self.then(|l| l.array(a))
    }

    /// A pointer to the elements of an array that the kernel writes; copied first when it is shared.
    pub fn array_mut<'b>(self, a: &'b mut Array) -> Kernel<'b>
    where
        'a: 'b,
    {
        self.then(|mut l| {
            if let Err(e) = a.make_unique() {
                l.fail(e);
            }
            l.array(a)
        })
    }

    /// An array that the kernel reads by the copy engine: a parameter `const __grid_constant__ TensorMap`. A wrong map is an error
    /// of [`Kernel::run`].
    pub fn tensor<'b>(self, a: &'b Array, map: &TensorMap) -> Kernel<'b>
    where
        'a: 'b,
    {
        self.then(|l| l.tensor(a, map))
    }

    /// An array that the kernel writes by the copy engine; copied first when it is shared.
    pub fn tensor_mut<'b>(self, a: &'b mut Array, map: &TensorMap) -> Kernel<'b>
    where
        'a: 'b,
    {
        self.then(|mut l| {
            if let Err(e) = a.make_unique() {
                l.fail(e);
            }
            l.tensor(a, map)
        })
    }

    /// The null pointer, for an array that is left out.
    pub fn null(self) -> Self {
        self.then(|l| l.optional(None))
    }

    /// A value, byte for byte the kernel's type: `i32`, `u32`, `i64`, `u64`, `f32`, `f64`, or a `repr(C)` struct.
    pub fn value<T: bytemuck::Pod>(self, v: T) -> Self {
        self.then(|l| l.value(v))
    }

    /// Random numbers: the `Draw` of `philox.cuh`, which the kernel passes through `resolved` first. A
    /// [`Graph`](super::Graph)'s replays then go on with the thread's stream instead of repeating the draw.
    pub fn draw(self, draw: Draw) -> Self {
        self.then(|l| l.draw(draw))
    }

    /// Queues the kernel over a loop `GRID_STRIDE(i, n)`; nothing for `n` = 0.
    ///
    /// # Errors
    /// As [`Kernel::run`].
    ///
    /// # Safety
    /// As [`Kernel::run`].
    pub unsafe fn run_1d(self, n: usize) -> Result<()> {
        self.launch.run_1d(n)
    }

    /// Queues the kernel with blocks of `block` threads, `grid` of them, and so much dynamic shared memory; it runs after all
    /// work queued before. An empty grid is no launch.
    ///
    /// # Errors
    /// [`Error::Context`](crate::Error::Context) for an array elsewhere, [`Error::Invalid`](crate::Error::Invalid) for arguments
    /// whose number or sizes are not the kernel's (drivers from 12.4 on tell), [`Error::Cuda`](crate::Error::Cuda) from the
    /// driver; what goes wrong on the device is reported by a later call (`HADAL_SYNC=1` waits).
    ///
    /// # Safety
    /// The arguments must be the kernel's in number, type and order, and with them it must touch only memory of the arrays
    /// given, and write only those given by [`Kernel::array_mut`]. A kernel is foreign code in this process's address space:
    /// a wild write reaches other arrays, and where the device shares the host's page tables (HMM, Grace) the host's memory.
    pub unsafe fn run(self, grid: [u32; 3], block: [u32; 3], shared_bytes: u32) -> Result<()> {
        self.launch.run(grid, block, shared_bytes)
    }
}
