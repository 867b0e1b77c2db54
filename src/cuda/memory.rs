//! Device memory: a caching, stream-ordered pool with counters.
//!
//! All work of a device is ordered on one stream, so a block that one array gave back can be handed to the next
//! at once: the kernels that still read it were queued before the kernels that will write it.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use once_cell::sync::Lazy;

use cudarc::driver::sys::CUdeviceptr;

use super::{
    backlog::Work,
    capture::{self, Arena},
    device::Device,
    driver::{Failure, checked},
};
use crate::{Context, Error, Result, context::MemoryStats, gemm::bn_stats::BufferStats, settings};

/// Free blocks by size, and counters in bytes.
#[derive(Default)]
pub(super) struct Pool {
    free: BTreeMap<usize, Vec<CUdeviceptr>>,
    pub(super) stats: MemoryStats,
}

/// `HADAL_POOL=off` gives every array memory of its own, of the exact size, so that a memory checker sees each overrun.
pub(super) static EXACT: Lazy<bool> = Lazy::new(|| !settings::flag("HADAL_POOL", true).unwrap_or(true));

/// `HADAL_POISON=1` fills each array's memory with 0xFF (NaN in every float type) before it is written.
static POISON: Lazy<bool> = Lazy::new(|| settings::flag("HADAL_POISON", false).unwrap_or(false));

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

/// A piece of device memory; goes back to where it came from when the last handle is dropped.
///
/// A [`DeviceBuffer`] holds one handle. CUDA graphs hold more, of all the memory whose addresses they contain: that keeps
/// the memory alive without making its array look shared.
pub(super) struct Block {
    pub(super) device: Arc<Device>,
    pub(super) ptr: CUdeviceptr,
    pub(super) size: usize,
    /// The capture that the block was taken in, which owns it.
    pub(super) arena: Option<Arc<Arena>>,
}

impl Drop for Block {
    fn drop(&mut self) {
        match &self.arena {
            Some(arena) => arena.give(&self.device, self.ptr, self.size),
            None => self.device.give(self.ptr, self.size),
        }
    }
}

/// A block of device memory that returns to its device's pool when dropped.
pub struct DeviceBuffer {
    block: Arc<Block>,
    /// Bytes asked for.
    len: usize,
    /// What is known of the elements, until they are written.
    note: Mutex<Option<BufferStats>>,
}

impl std::fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes on gpu({})", self.len, self.ordinal())
    }
}

impl Device {
    /// `bytes` of device memory with unspecified contents.
    pub(crate) fn alloc(self: &Arc<Self>, bytes: usize) -> Result<DeviceBuffer> {
        let size = rounded(bytes);
        let arena = capture::arena(self)?;
        let ptr = match arena.as_ref().and_then(|a| a.take(size)) {
            Some(ptr) => ptr,
            None => self.take(size)?,
        };
        let buffer = DeviceBuffer::around(Arc::new(Block { device: self.clone(), ptr, size, arena }), bytes);
        if *POISON || POISONED.get() {
            buffer.fill(0xFF)?;
        }
        Ok(buffer)
    }

    /// A block from the pool, or from the driver. A thread that captures may call this too: its blocks have to be free in
    /// the order of the device's stream, since that is where the graph will run, and the driver is asked on that stream,
    /// not on the one that is being captured.
    fn take(&self, size: usize) -> Result<CUdeviceptr> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = pool.free.get_mut(&size).and_then(Vec::pop);
        let ptr = match cached {
            Some(ptr) => {
                pool.stats.cached -= size;
                ptr
            }
            None => {
                pool.stats.system_allocations += 1;
                self.driver_alloc(&mut pool, size)?
            }
        };
        pool.stats.in_use += size;
        pool.stats.peak = pool.stats.peak.max(pool.stats.in_use);
        Ok(ptr)
    }

    /// Takes a block back.
    pub(super) fn give(&self, ptr: CUdeviceptr, size: usize) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.stats.in_use -= size;
        if *EXACT {
            // A failure here has been, or will be, reported by the next call that can report it.
            if self.bind().is_ok() {
                let _ = self.driver_free(ptr);
            }
            return;
        }
        pool.stats.cached += size;
        pool.free.entry(size).or_default().push(ptr);
    }

    /// Asks the driver; when it has no room, gives back what is cached and asks once more.
    fn driver_alloc(&self, pool: &mut Pool, block: usize) -> Result<CUdeviceptr> {
        self.bind()?;
        let ask = || {
            let mut ptr = 0;
            // SAFETY: the context is current and the stream belongs to it; the pointer is to a live local.
            let answer = unsafe {
                match self.pools {
                    true => (self.api.cuMemAllocAsync)(&mut ptr, block, self.stream()),
                    false => (self.api.cuMemAlloc)(&mut ptr, block),
                }
            };
            checked(answer).map(|()| ptr)
        };
        let name = if self.pools { "cuMemAllocAsync" } else { "cuMemAlloc" };
        match ask() {
            Err(Failure::OUT_OF_MEMORY) => {
                self.release(pool)?;
                ask().map_err(|e| {
                    if e != Failure::OUT_OF_MEMORY {
                        return self.failed(name, e);
                    }
                    let (mut free, mut total) = (0, 0);
                    // SAFETY: the pointers are to live locals. Where the driver does not tell, nothing is said to be free.
                    unsafe { (self.api.cuMemGetInfo)(&mut free, &mut total) };
                    Error::OutOfMemory {
                        context: Context::Gpu(self.ordinal),
                        requested: block,
                        in_use: pool.stats.in_use,
                        cached: pool.stats.cached,
                        free,
                    }
                })
            }
            Err(e) => Err(self.failed(name, e)),
            Ok(ptr) => Ok(ptr),
        }
    }

    /// Gives a block back that nobody holds any more; work queued before is done with it first. The context is current.
    fn driver_free(&self, ptr: CUdeviceptr) -> Result<()> {
        if self.pools {
            // SAFETY: the block came from cuMemAllocAsync on this stream.
            return checked(unsafe { (self.api.cuMemFreeAsync)(ptr, self.stream()) })
                .map_err(|e| self.failed("cuMemFreeAsync", e));
        }
        // SAFETY: the stream is the device's; the block came from cuMemAlloc, and nothing uses it once the stream is done, whether or
        // not cuMemFree would wait for that.
        checked(unsafe { (self.api.cuStreamSynchronize)(self.stream()) })
            .and_then(|()| checked(unsafe { (self.api.cuMemFree)(ptr) }))
            .map_err(|e| self.failed("cuMemFree", e))
    }

    /// Returns all cached blocks to the driver.
    fn release(&self, pool: &mut Pool) -> Result<()> {
        // What waits may use blocks that are free by now.
        self.flush()?;
        for (_, list) in std::mem::take(&mut pool.free) {
            for ptr in list {
                self.driver_free(ptr)?;
            }
        }
        pool.stats.cached = 0;
        self.wait()
    }

    /// `bytes` zeros that all who need so many share, since nobody writes them; made once.
    pub(crate) fn zeros(self: &Arc<Self>, bytes: usize) -> Result<Arc<DeviceBuffer>> {
        let mut all = self.zeros.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(zeros) = all.get(&bytes) {
            return Ok(zeros.clone());
        }
        // Filled now, and not a capture's: every graph may read them.
        let zeros = capture::outside(|| {
            let zeros = self.alloc(bytes)?;
            zeros.zero().map(|()| Arc::new(zeros))
        })?;
        all.insert(bytes, zeros.clone());
        Ok(zeros)
    }

    /// Copies host bytes into fresh device memory.
    pub(crate) fn upload(self: &Arc<Self>, bytes: &[u8]) -> Result<DeviceBuffer> {
        capture::refuse(NO_UPLOAD)?;
        let buffer = self.alloc(bytes.len())?;
        buffer.write(bytes)?;
        Ok(buffer)
    }
}

const NO_UPLOAD: &str = "host memory cannot be copied to the device, since each replay would read it again: make the tensor \
                         before the capture and fill it with copy_from before each replay (parameters and an optimizer's state \
                         come to be in a first step, outside)";
const NO_DOWNLOAD: &str = "nothing has been computed yet that could be read (item, to_vec, printing): read after Graph::replay";

impl DeviceBuffer {
    /// Around a block that is held elsewhere too.
    pub(super) fn around(block: Arc<Block>, len: usize) -> Self {
        DeviceBuffer { block, len, note: Mutex::new(None) }
    }

    /// Notes what the kernel that writes the elements tells of them.
    pub(crate) fn note(&self, note: BufferStats) {
        *self.note.lock().unwrap_or_else(PoisonError::into_inner) = Some(note);
    }

    /// What is known of the elements. Nothing for a capture that has not computed them: its graph may be replayed with others.
    pub(crate) fn noted(&self) -> Option<BufferStats> {
        if capture::is_outside(&self.block) {
            return None;
        }
        self.note.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The elements are going to be written.
    pub(crate) fn forget(&self) {
        *self.note.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The device's ordinal.
    pub fn ordinal(&self) -> usize {
        self.block.device.ordinal
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn ptr(&self) -> CUdeviceptr {
        self.block.ptr
    }

    pub(super) fn block(&self) -> &Arc<Block> {
        &self.block
    }

    pub(crate) fn owner(&self) -> &Arc<Device> {
        &self.block.device
    }

    /// True when a CUDA graph contains this memory's address.
    pub(crate) fn in_graph(&self) -> bool {
        Arc::strong_count(&self.block) > 1
    }

    /// Fills with zero bytes.
    pub(crate) fn zero(&self) -> Result<()> {
        self.fill(0)
    }

    fn fill(&self, byte: u8) -> Result<()> {
        self.forget();
        if self.len == 0 {
            return Ok(());
        }
        self.owner().submit(Work::Fill { to: self.ptr(), byte, len: self.len }, &[&self.block])
    }

    /// Copies from host memory of the same length.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<()> {
        capture::refuse(NO_UPLOAD)?;
        self.forget();
        if bytes.len() != self.len {
            return Err(Error::invalid("upload", format!("{} bytes for {} on the device", bytes.len(), self.len)));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.owner().submit(Work::Upload { to: self.ptr(), bytes: bytes.into() }, &[&self.block])
    }

    /// Copies to the host; waits.
    pub(crate) fn download(&self, bytes: &mut [u8]) -> Result<()> {
        capture::refuse(NO_DOWNLOAD)?;
        if bytes.len() != self.len {
            return Err(Error::invalid("download", format!("{} bytes on the device, room for {}", self.len, bytes.len())));
        }
        if !bytes.is_empty() {
            self.owner().flush()?;
            let stream = capture::stream(self.owner(), &[&self.block])?;
            let (to, api) = (bytes.as_mut_ptr().cast(), self.owner().api);
            // SAFETY: both sides hold `len` bytes, and `bytes` outlives the copy since the stream is waited for, if not below then here.
            checked(unsafe { (api.cuMemcpyDtoHAsync)(to, self.ptr(), self.len, stream) })
                .map_err(|e| self.owner().failed("cuMemcpyDtoHAsync", e))?;
        }
        self.owner().synchronize()
    }

    /// Copies from another buffer of the same length on the same device.
    pub(crate) fn copy_from(&self, from: &DeviceBuffer) -> Result<()> {
        if from.len != self.len || from.ordinal() != self.ordinal() {
            return Err(Error::invalid("copy", format!("{from:?} do not fit into {self:?}")));
        }
        if self.len == 0 || self.ptr() == from.ptr() {
            return Ok(());
        }
        self.forget();
        let work = Work::Copy { to: self.ptr(), from: from.ptr(), len: self.len };
        self.owner().submit(work, &[&self.block, &from.block])
    }

    /// The same bytes in a block of their own.
    pub(crate) fn duplicate(&self) -> Result<DeviceBuffer> {
        let copy = self.owner().alloc(self.len)?;
        copy.copy_from(self)?;
        Ok(copy)
    }
}
