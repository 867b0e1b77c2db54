//! Launches: a kernel, its arguments in order, checked as far as the driver knows them.

use std::{ffi::c_void, sync::Arc};

use once_cell::sync::Lazy;

use cudarc::driver::sys::CUstream;

use super::{
    backlog::Work,
    capture,
    device::Device,
    driver::{Failure, checked},
    program::{Function, Program},
    source::{Define, Source},
    tensor_map::TensorMap,
};
use crate::{Array, Context, DType, Error, Result, Storage, random::Draw, shape::numel};

/// `HADAL_SYNC=1` waits after each launch, so that a failing kernel is named.
pub(super) static SYNC: Lazy<bool> = Lazy::new(|| crate::settings::flag("HADAL_SYNC", false).unwrap_or(false));

/// The `Index` of `kernels/common.cuh`: extents and strides by value, unused axes 1 and 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Dims {
    extent: [i64; Dims::MAX],
    stride: [i64; Dims::MAX],
}

impl Dims {
    /// The most axes that kernels know.
    pub(crate) const MAX: usize = 8;

    /// Extents and strides of up to 8 axes.
    pub(crate) fn new(op: &'static str, extent: &[usize], stride: &[usize]) -> Result<Self> {
        if extent.len() > Self::MAX {
            return Err(Error::shape(op, format!("kernels know at most {} dimensions", Self::MAX), &[extent]));
        }
        let mut d = Dims { extent: [1; Self::MAX], stride: [0; Self::MAX] };
        for (i, (&e, &s)) in extent.iter().zip(stride).enumerate() {
            (d.extent[i], d.stride[i]) = (e as i64, s as i64);
        }
        Ok(d)
    }
}

/// One launch: a kernel, its arguments in order, then [`Launch::run`] or [`Launch::run_1d`].
pub(crate) struct Launch {
    device: Arc<Device>,
    queued: Queued,
    wrong: Option<Error>,
    /// In tests that record launches instead of running them.
    #[cfg(test)]
    record: Option<crate::testing::Record>,
}

/// The part of a launch that may have to wait for its program, see [`super::backlog`].
pub(super) struct Queued {
    target: Target,
    name: &'static str,
    /// The arguments' bytes, each at a multiple of 8.
    words: Vec<u64>,
    /// Where in `words` each argument begins, and its bytes.
    places: Vec<(usize, usize)>,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
}

enum Target {
    #[cfg(test)]
    Recorded,
    Ready(Arc<Function>),
    Pending(Arc<Program>),
}

impl Launch {
    /// The kernel `name` of `kernels/<file>`, compiled with `defines`, on the device of `array`.
    pub(crate) fn new(array: &Array, file: &'static str, name: &'static str, defines: &[(&'static str, Define)]) -> Result<Self> {
        Self::of(&Source::own(file), array, name, defines)
    }

    /// The kernel `name` of `source`.
    pub(super) fn of(source: &Source, array: &Array, name: &'static str, defines: &[(&'static str, Define)]) -> Result<Self> {
        let device = array.cuda(name)?.owner().clone();
        #[cfg(test)]
        if let Some(record) = crate::testing::Record::new(source.file(), name, defines) {
            let queued = Queued {
                target: Target::Recorded,
                name,
                words: Vec::new(),
                places: Vec::new(),
                grid: [1; 3],
                block: [1; 3],
                shared_bytes: 0,
            };
            return Ok(Launch { device, queued, wrong: None, record: Some(record) });
        }
        let program = device.program(source, defines);
        let waits = source.is_own() && device.defers() && !program.is_done();
        let target = if waits { Target::Pending(program) } else { Target::Ready(program.function(&device, name)?) };
        let (words, places) = (Vec::with_capacity(32), Vec::with_capacity(16));
        let queued = Queued { target, name, words, places, grid: [1; 3], block: [1; 3], shared_bytes: 0 };
        Ok(Launch {
            device,
            queued,
            wrong: None,
            #[cfg(test)]
            record: None,
        })
    }

    fn word(&mut self, w: u64) {
        self.queued.places.push((self.queued.words.len(), 8));
        self.queued.words.push(w);
    }

    /// Where an array's elements are, if it lies on the launch's device; a graph holds it from here on.
    fn address(&mut self, a: &Array) -> Option<u64> {
        match a.storage() {
            Storage::Cuda(b) if b.ordinal() == self.device.ordinal && b.len() >= numel(a.shape()) * a.dtype().size() => {
                if let Err(e) = capture::hold(b.block()) {
                    self.fail(e);
                }
                #[cfg(test)]
                self.record.iter_mut().for_each(|r| r.address(b.ptr()));
                Some(b.ptr())
            }
            _ => {
                let e = Error::Context { op: self.queued.name, left: Context::Gpu(self.device.ordinal), right: a.context() };
                self.fail(e);
                None
            }
        }
    }

    /// Where an array's elements are, for a table that the kernel reads; a graph holds them as it does an argument's.
    pub(crate) fn pointer(&mut self, a: &Array) -> u64 {
        self.address(a).unwrap_or(0)
    }

    /// A pointer to an array's elements.
    pub(crate) fn array(mut self, a: &Array) -> Self {
        if let Some(address) = self.address(a) {
            self.word(address);
        }
        self
    }

    /// An array as the copy engine sees it: the `TensorMap` of `kernels/ptx_hopper.cuh`.
    pub(crate) fn tensor(mut self, a: &Array, map: &TensorMap) -> Self {
        let Some(address) = self.address(a) else { return self };
        #[cfg(test)]
        if let Some(record) = &mut self.record {
            record.tensor_map(map);
            return self;
        }
        match map.encode(self.queued.name, &self.device, a, address) {
            Ok(words) => self.value(words),
            Err(e) => {
                self.fail(e);
                self
            }
        }
    }

    /// A draw of random numbers: the `Draw` of `kernels/philox.cuh`.
    pub(crate) fn draw(self, draw: Draw) -> Self {
        self.value(capture::draw_words(draw))
    }

    /// A pointer that may be null.
    pub(crate) fn optional(mut self, a: Option<&Array>) -> Self {
        match a {
            Some(a) => self.array(a),
            None => {
                self.word(0);
                self
            }
        }
    }

    /// Notes what is wrong with an argument; the first such error is the launch's.
    pub(super) fn fail(&mut self, e: Error) {
        self.wrong.get_or_insert(e);
    }

    /// A value: `i32`, `u32`, `i64`, `u64`, `f32`, `f64`, or a `repr(C)` struct such as [`Dims`].
    pub(crate) fn value<T: bytemuck::Pod>(mut self, v: T) -> Self {
        let bytes = bytemuck::bytes_of(&v);
        let Queued { words, places, .. } = &mut self.queued;
        let start = words.len();
        places.push((start, bytes.len()));
        words.resize(start + bytes.len().div_ceil(8), 0);
        bytemuck::cast_slice_mut(&mut words[start..])[..bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Queues the kernel over a grid-stride loop of `n` elements; nothing for `n` = 0.
    pub(crate) fn run_1d(self, n: usize) -> Result<()> {
        // Enough blocks to fill the card several times over; the loop does the rest.
        let blocks = n.div_ceil(256).min(self.device.multiprocessors as usize * 32);
        self.run([blocks as u32, 1, 1], [256, 1, 1], 0)
    }

    /// Queues the kernel over `n` elements that threads take in packs of 16 bytes of `dtype`, in a grid-stride loop.
    pub(crate) fn run_packed(self, n: usize, dtype: DType) -> Result<()> {
        self.run_in_turn((n * dtype.size()).div_ceil(256 * 16))
    }

    /// Queues the kernel over `blocks` pieces of work that its blocks of 256 threads take in turn; nothing for 0.
    pub(crate) fn run_in_turn(self, blocks: usize) -> Result<()> {
        // As many as are resident at once where a thread needs few registers.
        let most = self.device.multiprocessors as usize * 8;
        self.run([blocks.min(most) as u32, 1, 1], [256, 1, 1], 0)
    }

    /// Queues the kernel; an empty grid is no launch at all.
    pub(crate) fn run(mut self, grid: [u32; 3], block: [u32; 3], shared_bytes: u32) -> Result<()> {
        if let Some(e) = self.wrong.take() {
            return Err(e);
        }
        self.queued.takes()?;
        if grid.contains(&0) {
            return Ok(());
        }
        (self.queued.grid, self.queued.block, self.queued.shared_bytes) = (grid, block, shared_bytes);
        #[cfg(test)]
        if let Some(record) = self.record {
            record.launched(&self.queued.words, grid, block, shared_bytes);
            return Ok(());
        }
        self.device.submit(Work::Launch(self.queued), &[])
    }
}

impl Queued {
    /// Errs unless the arguments are what the kernel takes, as far as that is known by now.
    fn takes(&self) -> Result<()> {
        let Target::Ready(f) = &self.target else { return Ok(()) };
        f.takes(self.name, self.places.iter().map(|&(_, bytes)| bytes))
    }

    pub(super) fn is_ready(&self) -> bool {
        if let Target::Pending(program) = &self.target { program.is_done() } else { true }
    }

    /// Queues the kernel on the stream, whose context is current.
    pub(super) fn run(mut self, device: &Device, stream: CUstream) -> Result<()> {
        if let Target::Pending(program) = &self.target {
            self.target = Target::Ready(program.function(device, self.name)?);
            self.takes()?;
        }
        let Target::Ready(function) = &self.target else { return Ok(()) };
        let fail = |e: Failure| device.failed(self.name, e);
        function.allow_shared(device, self.shared_bytes).map_err(fail)?;
        let words = self.words.as_mut_ptr();
        // SAFETY: each argument begins inside `words`.
        let mut params: Vec<*mut c_void> = self.places.iter().map(|&(i, _)| unsafe { words.add(i) }.cast()).collect();
        let ([gx, gy, gz], [x, y, z], shared) = (self.grid, self.block, self.shared_bytes);
        let (params, none) = (params.as_mut_ptr(), std::ptr::null_mut());
        // SAFETY: the function is loaded on the current context; the driver copies the arguments during the call.
        // Their number and sizes are the kernel's (checked above where the driver tells); that their meaning is too is the
        // op's contract, which the parity test of each op checks. The arrays stay valid since blocks are handed on in stream order only.
        checked(unsafe { (device.api.cuLaunchKernel)(function.handle(), gx, gy, gz, x, y, z, shared, stream, params, none) })
            .map_err(fail)?;
        if *SYNC && !capture::active() {
            device.synchronize().map_err(|e| match e {
                Error::Cuda { context, reason, .. } => Error::Cuda { context, call: self.name.to_owned(), reason },
                other => other,
            })?;
        }
        Ok(())
    }
}
