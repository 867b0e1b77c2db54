//! What a thread knows while it captures a CUDA graph: the stream that records, the memory that the graph will own,
//! the memory from outside whose addresses go into the graph, and the arrays that it writes in place.
//!
//! A capture has a stream of its own, and it is this thread's only: other threads go on using the device's stream, and
//! nothing that goes wrong in a capture can leave that stream in a bad state. The graph itself is launched on the
//! device's stream, so that it is ordered with all other work.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU8, Ordering},
    },
};

use cudarc::driver::sys::{CUdeviceptr, CUstream};

use super::{
    device::Device,
    memory::{Block, DeviceBuffer, EXACT},
};
use crate::{Context, Error, Result, random, random::Draw};

/// The memory of one graph. Blocks that are dropped during the capture may be used again in it, since a graph's work keeps
/// the order of the capture; to the device's pool they go back when the graph is gone.
#[derive(Default)]
pub(super) struct Arena {
    phase: AtomicU8,
    /// `None` when the graph is gone.
    free: Mutex<Option<BTreeMap<usize, Vec<CUdeviceptr>>>>,
}

/// How far a graph is, and with it whether its arrays have values.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Phase {
    /// Being captured.
    Open,
    /// Captured, not yet replayed.
    Captured,
    /// Replayed at least once: the arrays have values.
    Replayed,
    /// The capture failed, or the graph was dropped before a replay: they will never have any.
    Void,
}

impl Arena {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Arena { phase: AtomicU8::new(Phase::Open as u8), free: Mutex::new(Some(BTreeMap::new())) })
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Open,
            1 => Phase::Captured,
            2 => Phase::Replayed,
            _ => Phase::Void,
        }
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// A block that was dropped in this capture.
    pub(super) fn take(&self, size: usize) -> Option<CUdeviceptr> {
        if *EXACT {
            return None;
        }
        self.free.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.get_mut(&size)?.pop()
    }

    /// Takes a block back.
    pub(super) fn give(&self, device: &Device, ptr: CUdeviceptr, size: usize) {
        match self.free.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(free) => free.entry(size).or_default().push(ptr),
            None => device.give(ptr, size),
        }
    }

    /// Hands all free blocks to the device, and from now on each one when its array is dropped. Replays that are still
    /// running are no obstacle: whoever gets a block uses it later on the same stream.
    pub(super) fn close(&self, device: &Device) {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).take();
        for (size, list) in free.into_iter().flatten() {
            list.into_iter().for_each(|ptr| device.give(ptr, size));
        }
        if self.phase() != Phase::Replayed {
            self.set_phase(Phase::Void);
        }
    }
}

/// An array from outside that the graph writes in place.
pub(super) struct Write {
    pub(super) buffer: Weak<DeviceBuffer>,
    pub(super) name: String,
}

/// What a graph does on the host before each replay.
pub(crate) type Before = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// This thread's capture.
pub(super) struct Capture {
    pub(super) device: Arc<Device>,
    pub(super) stream: CUstream,
    pub(super) arena: Arc<Arena>,
    /// Blocks from outside by address.
    pub(super) held: HashMap<CUdeviceptr, Arc<Block>>,
    pub(super) writes: HashMap<CUdeviceptr, Write>,
    /// The thread's random state and its resets when the capture began.
    pub(super) start: ((u64, u64), u64),
    /// Where replays find the random state of their beginning.
    pub(super) base: CUdeviceptr,
    pub(super) before: Vec<Before>,
    /// What is being written in place, when its name is known.
    name: Option<String>,
}

impl Capture {
    pub(super) fn new(device: Arc<Device>, stream: CUstream, base: CUdeviceptr) -> Self {
        let start = (random::state(), random::resets());
        let (held, writes) = (HashMap::new(), HashMap::new());
        Capture { device, stream, arena: Arena::new(), held, writes, start, base, before: Vec::new(), name: None }
    }

    fn owns(&self, block: &Block) -> bool {
        block.arena.as_ref().is_some_and(|a| Arc::ptr_eq(a, &self.arena))
    }

    fn error(&self, reason: impl std::fmt::Display) -> Error {
        Error::Graph { context: Context::Gpu(self.device.ordinal), reason: format!("inside Graph::capture {reason}") }
    }
}

thread_local! {
    static CAPTURE: RefCell<Option<Capture>> = const { RefCell::new(None) };
}

/// Begins, or with `None` ends, this thread's capture; gives the one before.
pub(super) fn exchange(capture: Option<Capture>) -> Option<Capture> {
    CAPTURE.with(|c| c.replace(capture))
}

/// `f` of this thread's capture, if there is one.
fn current<T>(f: impl FnOnce(&mut Capture) -> T) -> Option<T> {
    CAPTURE.with(|c| c.borrow_mut().as_mut().map(f))
}

/// True while this thread captures.
pub(crate) fn active() -> bool {
    CAPTURE.with(|c| c.borrow().is_some())
}

/// An error with this reason while this thread captures.
pub(crate) fn refuse(reason: &str) -> Result<()> {
    current(|c| c.error(reason)).map_or(Ok(()), Err)
}

/// The memory of this thread's capture on that device.
pub(super) fn arena(device: &Device) -> Result<Option<Arc<Arena>>> {
    let arena = |c: &mut Capture| {
        if c.device.ordinal == device.ordinal {
            return Ok(c.arena.clone());
        }
        Err(c.error(format_args!("gpu({}) cannot be used: a graph is of one device", device.ordinal)))
    };
    current(arena).transpose()
}

/// The stream for this thread's next work with these blocks, its context current: the device's, or the one that records.
/// The graph then holds the blocks.
pub(super) fn stream(device: &Device, blocks: &[&Arc<Block>]) -> Result<CUstream> {
    blocks.iter().try_for_each(|b| hold(b))?;
    device.bind()?;
    Ok(arena(device)?.and_then(|_| current(|c| c.stream)).unwrap_or(device.stream()))
}

/// Whether this thread captures, and the block is not the capture's own.
pub(super) fn is_outside(block: &Block) -> bool {
    current(|c| !c.owns(block)).unwrap_or(false)
}

/// Errs when the block has no values yet, or never will; while capturing, the graph holds it from now on.
pub(super) fn hold(block: &Arc<Block>) -> Result<()> {
    let inside = current(|c| {
        if c.owns(block) {
            return true;
        }
        c.held.entry(block.ptr).or_insert_with(|| block.clone());
        false
    });
    let (Some(arena), false) = (&block.arena, inside == Some(true)) else { return Ok(()) };
    let reason = match arena.phase() {
        Phase::Replayed => return Ok(()),
        Phase::Open => "an array of a Graph::capture that is going on in another thread",
        Phase::Captured => "an array of a captured graph has no values before the first Graph::replay",
        Phase::Void => "an array of a failed Graph::capture, or of a graph that was never replayed, has no values",
    };
    Err(Error::Graph { context: Context::Gpu(block.device.ordinal), reason: reason.into() })
}

/// A draw as kernels know it. One that was taken from the thread's stream during the capture is counted from where each
/// replay begins; any other one stays what it is.
pub(super) fn draw_words(draw: Draw) -> [u64; 3] {
    let relative = |c: &mut Capture| {
        let ((seed, first), _) = c.start;
        let (number, taken) = (draw.number.wrapping_sub(first), random::state().1.wrapping_sub(first));
        (draw.seed == seed && number < taken).then_some([0, number, c.base])
    };
    current(relative).flatten().unwrap_or([draw.seed, draw.number, 0])
}

/// Lets each replay of the graph begin with `f`: it brings device memory up to date that the graph reads.
pub(crate) fn before_replay(f: Before) {
    current(|c| c.before.push(f));
}

/// Gives the thread its capture back, also when what ran meanwhile panics.
#[must_use]
pub(crate) struct Aside(Option<Capture>);

impl Aside {
    /// Puts this thread's capture aside: what runs until the guard is dropped is no part of the graph.
    pub(crate) fn new() -> Self {
        Aside(exchange(None))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        exchange(self.0.take());
    }
}

/// Runs `f` as if this thread did not capture: its work is done now, and its memory is not the graph's to use again.
pub(crate) fn outside<T>(f: impl FnOnce() -> T) -> T {
    let _aside = Aside::new();
    f()
}

/// Runs `f`, whose writes in place are to the parameter `name`.
pub(crate) fn naming<T>(name: impl FnOnce() -> String, f: impl FnOnce() -> T) -> T {
    if !active() {
        return f();
    }
    current(|c| c.name = Some(name()));
    let out = f();
    current(|c| c.name = None);
    out
}

/// Notes that the only owner of `buffer` writes it in place.
pub(crate) fn written(buffer: &Arc<DeviceBuffer>) {
    current(|c| {
        if !c.owns(buffer.block()) {
            let known = c.writes.remove(&buffer.block().ptr).map(|w| w.name);
            let name = c.name.clone().or(known).unwrap_or_else(|| format!("an array of {} bytes", buffer.len()));
            c.writes.insert(buffer.block().ptr, Write { buffer: Arc::downgrade(buffer), name });
        }
    });
}

/// The memory of something that is written in place from step to step (a parameter, a momentum, running statistics): every
/// replay writes the same address, so that address has to stay its memory.
pub(crate) struct Place {
    block: Arc<Block>,
}

impl Place {
    /// While capturing, the memory of `buffer`; `None` otherwise, or when it is the capture's own.
    ///
    /// # Errors
    /// When the memory is shared, so that a write would go to a copy.
    pub(crate) fn of(buffer: &Arc<DeviceBuffer>) -> Result<Option<Place>> {
        let place = |c: &mut Capture| {
            if c.owns(buffer.block()) {
                return Ok(None);
            }
            if Arc::strong_count(buffer) > 1 {
                let name = c.name.clone().unwrap_or_else(|| format!("an array of {} bytes", buffer.len()));
                return Err(c.error(format_args!(
                    "{name} is written in place while something else shares its memory (a clone of its array, a detached \
                     tensor, a tape that was kept): drop that first, or make it a `copy()`"
                )));
            }
            Ok(Some(Place { block: buffer.block().clone() }))
        };
        current(place).unwrap_or(Ok(None))
    }

    /// After the write: `None` if the memory is still `now`, else the old memory with the values of `now`.
    pub(crate) fn keep(self, now: &Arc<DeviceBuffer>) -> Result<Option<Arc<DeviceBuffer>>> {
        if Arc::ptr_eq(now.block(), &self.block) {
            return Ok(None);
        }
        let old = Arc::new(DeviceBuffer::around(self.block, now.len()));
        old.copy_from(now)?;
        written(&old);
        Ok(Some(old))
    }
}
