//! What waits behind a kernel that is still being compiled.
//!
//! A launch of a program that is not there yet returns at once: it goes into the device's backlog, and so does everything that
//! the stream would do after it, in order. The host runs on through the step and so meets the next programs, which are
//! compiled side by side meanwhile. Whoever needs a result waits: reading back, `synchronize`, a graph's replay.
//!
//! The order of the work is that of the calls, so results are the same bits. What an array gave back to the pool may be handed on
//! before the work that used it is queued, since its next user stands behind it. Only an error is told later, and then
//! by every call, since what was to come after it has not been done.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use cudarc::driver::{result, sys};

use super::{
    capture,
    device::Device,
    launch::{Queued, SYNC},
    memory::{Block, EXACT},
};
use crate::{Context, Error, Result};

/// Something that the stream does.
pub(super) enum Work<'a> {
    Launch(Queued),
    Fill {
        to: sys::CUdeviceptr,
        byte: u8,
        len: usize,
    },
    Copy {
        to: sys::CUdeviceptr,
        from: sys::CUdeviceptr,
        len: usize,
    },
    /// From the host's memory, which is kept when the copy has to wait.
    Upload {
        to: sys::CUdeviceptr,
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
    fn run(self, device: &Device, stream: sys::CUstream) -> Result<()> {
        // SAFETY, of all three: the blocks hold `len` bytes and the stream orders the writes. Copies from pageable memory return
        // when the bytes have been read.
        match self {
            Work::Launch(l) => l.run(device, stream),
            Work::Fill { to, byte, len } => {
                // SAFETY: as above.
                unsafe { result::memset_d8_async(to, byte, len, stream) }.map_err(|e| device.failed("cuMemsetD8Async", &e))
            }
            Work::Copy { to, from, len } => {
                // SAFETY: as above.
                unsafe { result::memcpy_dtod_async(to, from, len, stream) }.map_err(|e| device.failed("cuMemcpyDtoDAsync", &e))
            }
            Work::Upload { to, bytes } => {
                // SAFETY: as above.
                unsafe { result::memcpy_htod_async(to, &bytes, stream) }.map_err(|e| device.failed("cuMemcpyHtoDAsync", &e))
            }
        }
    }
}

/// A device's work that waits, mostly none.
#[derive(Default)]
pub(super) struct Backlog {
    /// False when there is none: then nobody takes the lock.
    some: AtomicBool,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    work: VecDeque<Work<'static>>,
    bytes: usize,
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
        if !self.backlog.some.load(Ordering::Acquire) {
            return Ok(());
        }
        self.bind()?;
        let mut list = self.backlog.list.lock().unwrap_or_else(PoisonError::into_inner);
        self.drain(&mut list, true)
    }

    /// Queues what waits, up to the first launch whose program is not there yet, or with `wait` all.
    fn drain(&self, list: &mut List, wait: bool) -> Result<()> {
        while list.failed.is_none() && list.work.front().is_some_and(|w| wait || w.is_ready()) {
            let Some(work) = list.work.pop_front() else { break };
            list.bytes -= work.bytes();
            if let Err(e) = work.run(self, self.stream.cu_stream()) {
                list.failed = Some(e);
                list.work.clear();
            }
        }
        if let Some(e) = &list.failed {
            return Err(self.again(e));
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
