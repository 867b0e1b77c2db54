//! What waits behind a kernel that is still being compiled.
//!
//! A launch of a program that is not there yet returns at once: it goes into the device's backlog, and so does everything that
//! the stream would do after it, in order. The host runs on through the step and so meets the next programs, which are
//! compiled side by side meanwhile. Whoever needs a result waits: reading back, `synchronize`, a graph's replay.
//!
//! The order of the work is that of the calls, so results are the same bits. What an array gave back to the pool may be handed on
//! before the work that used it is queued, since its next user stands behind it. Only an error is told later. What stood behind
//! the failed launch is not done, so what it was to compute has no values: every call of each thread that used the device before says so,
//! until one that waits (`synchronize`, reading back, a replay) has said it to that thread. Then the device works on, unless the context is
//! lost, which the driver itself says at every call.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use cudarc::driver::sys::{CUdeviceptr, CUstream};

use super::{
    capture,
    device::Device,
    driver::checked,
    launch::{Queued, SYNC},
    memory::{Block, EXACT},
};
use crate::{Context, Error, Result};

/// Something that the stream does.
pub(super) enum Work<'a> {
    Launch(Queued),
    Fill {
        to: CUdeviceptr,
        byte: u8,
        len: usize,
    },
    Copy {
        to: CUdeviceptr,
        from: CUdeviceptr,
        len: usize,
    },
    /// From the host's memory, which is kept when the copy has to wait.
    Upload {
        to: CUdeviceptr,
        bytes: std::borrow::Cow<'a, [u8]>,
    },
}

impl Work<'_> {
    fn is_ready(&self) -> bool {
        if let Work::Launch(l) = self { l.is_ready() } else { true }
    }

    /// Bytes of the host's memory that it keeps while it waits.
    fn bytes(&self) -> usize {
        if let Work::Upload { bytes, .. } = self { bytes.len() } else { 0 }
    }

    fn kept(self) -> Work<'static> {
        match self {
            Work::Launch(l) => Work::Launch(l),
            Work::Fill { to, byte, len } => Work::Fill { to, byte, len },
            Work::Copy { to, from, len } => Work::Copy { to, from, len },
            Work::Upload { to, bytes } => Work::Upload { to, bytes: bytes.into_owned().into() },
        }
    }

    /// Queues it on the stream; the device's context is current.
    fn run(self, device: &Device, stream: CUstream) -> Result<()> {
        let api = device.api;
        match self {
            Work::Launch(l) => l.run(device, stream),
            Work::Fill { to, byte, len } => {
                // SAFETY: the block holds `len` bytes, and the stream orders the writes.
                checked(unsafe { (api.cuMemsetD8Async)(to, byte, len, stream) }).map_err(|e| device.failed("cuMemsetD8Async", e))
            }
            Work::Copy { to, from, len } => {
                // SAFETY: as above, of both blocks.
                checked(unsafe { (api.cuMemcpyDtoDAsync)(to, from, len, stream) })
                    .map_err(|e| device.failed("cuMemcpyDtoDAsync", e))
            }
            Work::Upload { to, bytes } => device.staging.upload(device, to, &bytes, stream),
        }
    }
}

/// A device's work that waits, mostly none.
#[derive(Default)]
pub(super) struct Backlog {
    /// False when there is none: then nobody takes the lock.
    some: AtomicBool,
    /// The number of the last failure that was met in the list, or 0.
    failure: AtomicU64,
    list: Mutex<List>,
}

/// Failures of all devices are counted, so that a thread knows which came before it.
static FAILURES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Failures before this thread's first use of a device are none of its business.
    static BORN: Cell<Option<u64>> = const { Cell::new(None) };
    /// Devices, by address, and the last failure of each that a call which waits has told this thread.
    static TOLD: RefCell<Vec<(usize, u64)>> = const { RefCell::new(Vec::new()) };
}

#[derive(Default)]
struct List {
    work: VecDeque<Work<'static>>,
    bytes: usize,
    /// The last failure.
    failed: Option<Error>,
}

/// More work than this is waited for: a hundred steps, and as much of the host's memory as a large net's parameters.
const MOST_WORK: usize = 1 << 16;
const MOST_BYTES: usize = 1 << 29;

impl Device {
    /// True where a launch may wait for its program. Not for what finds errors: a kernel is to be named when it fails, and
    /// memory of an array's own goes back to the driver, whose order is the stream's.
    pub(super) fn defers(&self) -> bool {
        !*SYNC && !*EXACT && !capture::active()
    }

    /// Does the work: now, or after what waits. These are the blocks that it uses.
    pub(super) fn submit(&self, work: Work<'_>, blocks: &[&Arc<Block>]) -> Result<()> {
        let stream = capture::stream(self, blocks)?;
        self.tell(false)?;
        if capture::active() || (!self.backlog.some.load(Ordering::Acquire) && work.is_ready()) {
            return work.run(self, stream);
        }
        let mut list = self.backlog.list.lock().unwrap_or_else(PoisonError::into_inner);
        self.backlog.some.store(true, Ordering::Release);
        list.bytes += work.bytes();
        list.work.push_back(work.kept());
        let wait = list.work.len() > MOST_WORK || list.bytes > MOST_BYTES;
        self.drain(&mut list, wait)
    }

    /// Queues all that waits on the stream, and waits for the programs that it needs.
    pub(super) fn flush(&self) -> Result<()> {
        self.tell(true)?;
        if !self.backlog.some.load(Ordering::Acquire) {
            return Ok(());
        }
        self.bind()?;
        let done = {
            let mut list = self.backlog.list.lock().unwrap_or_else(PoisonError::into_inner);
            self.drain(&mut list, true)
        };
        // The failure that was met here, if one was, is told by this.
        self.tell(true).and(done)
    }

    /// The last failure, unless this thread was told by a call that waits, as this one is with `waits`.
    fn tell(&self, waits: bool) -> Result<()> {
        let born = BORN.get().unwrap_or_else(|| {
            let now = FAILURES.load(Ordering::Acquire);
            BORN.set(Some(now));
            now
        });
        let last = self.backlog.failure.load(Ordering::Acquire);
        if last <= born {
            return Ok(());
        }
        TOLD.with_borrow_mut(|told| {
            let own = std::ptr::from_ref(self) as usize;
            let i = told.iter().position(|(device, _)| *device == own).unwrap_or_else(|| {
                told.push((own, 0));
                told.len() - 1
            });
            if told[i].1 >= last {
                return Ok(());
            }
            if waits {
                told[i].1 = last;
            }
            let list = self.backlog.list.lock().unwrap_or_else(PoisonError::into_inner);
            list.failed.as_ref().map_or(Ok(()), |e| Err(self.again(e)))
        })
    }

    /// Queues what waits, up to the first launch whose program is not there yet, or with `wait` all.
    fn drain(&self, list: &mut List, wait: bool) -> Result<()> {
        while list.work.front().is_some_and(|w| wait || w.is_ready()) {
            let Some(work) = list.work.pop_front() else { break };
            list.bytes -= work.bytes();
            if let Err(e) = work.run(self, self.stream()) {
                // What stands behind may need what was not computed.
                (list.work, list.bytes) = (VecDeque::new(), 0);
                let told = self.again(&e);
                list.failed = Some(e);
                self.backlog.some.store(false, Ordering::Release);
                self.backlog.failure.store(FAILURES.fetch_add(1, Ordering::AcqRel) + 1, Ordering::Release);
                return Err(told);
            }
        }
        if list.work.is_empty() {
            self.backlog.some.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// The error once more.
    fn again(&self, e: &Error) -> Error {
        match e {
            Error::Compile { file, arch, log } => Error::Compile { file: file.clone(), arch: arch.clone(), log: log.clone() },
            Error::Cuda { context, call, reason } => {
                Error::Cuda { context: *context, call: call.clone(), reason: reason.clone() }
            }
            other => Error::Cuda { context: Context::Gpu(self.ordinal), call: "kernel".into(), reason: other.to_string() },
        }
    }

    /// Pieces of work that wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.backlog.list.lock().unwrap_or_else(PoisonError::into_inner).work.len()
    }
}
