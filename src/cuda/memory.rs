//! Device memory: a caching, stream-ordered pool with counters.
//!
//! All work of a device is ordered on one stream, so a block that one array gave back can be handed to the next
//! at once: the kernels that still read it were queued before the kernels that will write it.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Arc, PoisonError},
};

use cudarc::driver::{result, sys};
use once_cell::sync::Lazy;

use super::device::Device;
use crate::{Context, Error, Result, context::MemoryStats};

/// Free blocks by size, and counters in bytes.
#[derive(Default)]
pub(super) struct Pool {
    free: BTreeMap<usize, Vec<sys::CUdeviceptr>>,
    pub(super) stats: MemoryStats,
}

/// `HADAL_POOL=off` gives every array memory of its own, of the exact size, so that a memory checker sees each overrun.
static EXACT: Lazy<bool> = Lazy::new(|| std::env::var("HADAL_POOL").is_ok_and(|v| v == "off" || v == "0"));

/// `HADAL_POISON=1` fills each array's memory with 0xFF (NaN in every float type) before it is written.
static POISON: Lazy<bool> = Lazy::new(|| std::env::var("HADAL_POISON").is_ok_and(|v| v == "1"));

thread_local! {
    static POISONED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with `HADAL_POISON` on for what this thread allocates: an element that no kernel writes is then NaN rather than
/// what an earlier array left there, which may well be the right answer.
pub(crate) fn poisoned<T>(f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            POISONED.set(self.0);
        }
    }
    let _restore = Restore(POISONED.replace(true));
    f()
}

/// Block sizes: multiples of 512 bytes, above 1 MiB steps of about 6 %, so that slightly different shapes share blocks.
fn rounded(bytes: usize) -> usize {
    if *EXACT {
        return bytes.max(1);
    }
    let step = if bytes <= 1 << 20 { 512 } else { bytes.next_power_of_two() / 32 };
    bytes.max(1).next_multiple_of(step)
}

/// A block of device memory that returns to its device's pool when dropped.
pub struct DeviceBuffer {
    device: Arc<Device>,
    ptr: sys::CUdeviceptr,
    /// Bytes asked for.
    len: usize,
    /// Bytes of the block.
    block: usize,
}

impl std::fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes on gpu({})", self.len, self.device.ordinal)
    }
}

impl Device {
    /// `bytes` of device memory with unspecified contents.
    pub(crate) fn alloc(self: &Arc<Self>, bytes: usize) -> Result<DeviceBuffer> {
        let block = rounded(bytes);
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = pool.free.get_mut(&block).and_then(Vec::pop);
        let ptr = match cached {
            Some(ptr) => {
                pool.stats.cached -= block;
                ptr
            }
            None => {
                pool.stats.system_allocations += 1;
                self.driver_alloc(&mut pool, block)?
            }
        };
        pool.stats.in_use += block;
        pool.stats.peak = pool.stats.peak.max(pool.stats.in_use);
        drop(pool);
        let buffer = DeviceBuffer { device: self.clone(), ptr, len: bytes, block };
        if *POISON || POISONED.get() {
            buffer.fill(0xFF)?;
        }
        Ok(buffer)
    }

    /// Asks the driver; when it has no room, gives back what is cached and asks once more.
    fn driver_alloc(&self, pool: &mut Pool, block: usize) -> Result<sys::CUdeviceptr> {
        self.bind()?;
        // SAFETY: the context is current and the stream belongs to it.
        let ask = || unsafe { result::malloc_async(self.stream.cu_stream(), block) };
        let out_of_memory = |e: &cudarc::driver::DriverError| e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        match ask() {
            Err(e) if out_of_memory(&e) => {
                self.release(pool)?;
                ask().map_err(|e| {
                    if !out_of_memory(&e) {
                        return self.failed("cuMemAllocAsync", &e);
                    }
                    Error::OutOfMemory {
                        context: Context::Gpu(self.ordinal),
                        requested: block,
                        in_use: pool.stats.in_use,
                        cached: pool.stats.cached,
                        free: result::mem_get_info().map_or(0, |(free, _)| free),
                    }
                })
            }
            Err(e) => Err(self.failed("cuMemAllocAsync", &e)),
            Ok(ptr) => Ok(ptr),
        }
    }

    /// Returns all cached blocks to the driver.
    fn release(&self, pool: &mut Pool) -> Result<()> {
        for (_, list) in std::mem::take(&mut pool.free) {
            for ptr in list {
                // SAFETY: the block came from malloc_async on this stream and no array holds it.
                unsafe { result::free_async(ptr, self.stream.cu_stream()) }.map_err(|e| self.failed("cuMemFreeAsync", &e))?;
            }
        }
        pool.stats.cached = 0;
        self.synchronize()
    }

    /// Copies host bytes into fresh device memory.
    pub(crate) fn upload(self: &Arc<Self>, bytes: &[u8]) -> Result<DeviceBuffer> {
        let buffer = self.alloc(bytes.len())?;
        if !bytes.is_empty() {
            self.bind()?;
            // SAFETY: the block has room for `bytes`; from pageable memory the call returns when the bytes have been read.
            unsafe { result::memcpy_htod_async(buffer.ptr, bytes, self.stream.cu_stream()) }
                .map_err(|e| self.failed("cuMemcpyHtoDAsync", &e))?;
        }
        Ok(buffer)
    }
}

impl DeviceBuffer {
    /// The device's ordinal.
    pub fn ordinal(&self) -> usize {
        self.device.ordinal
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn ptr(&self) -> sys::CUdeviceptr {
        self.ptr
    }

    pub(crate) fn owner(&self) -> &Arc<Device> {
        &self.device
    }

    /// Fills with zero bytes.
    pub(crate) fn zero(&self) -> Result<()> {
        self.fill(0)
    }

    fn fill(&self, byte: u8) -> Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        self.device.bind()?;
        // SAFETY: the block holds `len` bytes and the stream orders the write.
        unsafe { result::memset_d8_async(self.ptr, byte, self.len, self.device.stream.cu_stream()) }
            .map_err(|e| self.device.failed("cuMemsetD8Async", &e))
    }

    /// Copies to the host; waits.
    pub(crate) fn download(&self, bytes: &mut [u8]) -> Result<()> {
        if bytes.len() != self.len {
            return Err(Error::invalid("download", format!("{} bytes on the device, room for {}", self.len, bytes.len())));
        }
        if !bytes.is_empty() {
            self.device.bind()?;
            // SAFETY: both sides hold `len` bytes, and `bytes` outlives the copy since the stream is waited for below.
            unsafe { result::memcpy_dtoh_async(bytes, self.ptr, self.device.stream.cu_stream()) }
                .map_err(|e| self.device.failed("cuMemcpyDtoHAsync", &e))?;
        }
        self.device.synchronize()
    }

    /// The same bytes in a block of their own.
    pub(crate) fn duplicate(&self) -> Result<DeviceBuffer> {
        let copy = self.device.alloc(self.len)?;
        if self.len > 0 {
            self.device.bind()?;
            // SAFETY: two different blocks of at least `len` bytes on one device.
            unsafe { result::memcpy_dtod_async(copy.ptr, self.ptr, self.len, self.device.stream.cu_stream()) }
                .map_err(|e| self.device.failed("cuMemcpyDtoDAsync", &e))?;
        }
        Ok(copy)
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        let mut pool = self.device.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.stats.in_use -= self.block;
        if *EXACT {
            // A failure here has been, or will be, reported by the next call that can report it.
            if self.device.bind().is_ok() {
                // SAFETY: this buffer owned the block; work queued before on the stream is done with it first.
                let _ = unsafe { result::free_async(self.ptr, self.device.stream.cu_stream()) };
            }
            return;
        }
        pool.stats.cached += self.block;
        pool.free.entry(self.block).or_default().push(self.ptr);
    }
}
