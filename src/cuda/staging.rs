//! The way of the host's bytes to the device: by page-locked memory of our own.
//!
//! A copy from pageable memory "might be synchronous with respect to host" (CUDA driver API, "API synchronization behavior"): where the
//! device reads the host's page tables (Grace, HMM) it need not be, and the source may be gone by then. So the bytes are taken into a
//! ring of page-locked memory, in pieces, and an event behind each piece says when its place may be used again. The host does not wait
//! unless it is a whole ring ahead of the device.

use std::{
    collections::VecDeque,
    ffi::{c_uint, c_void},
    ptr,
    sync::{Mutex, PoisonError},
};

use cudarc::driver::sys::{CUdeviceptr, CUevent, CUevent_flags_enum, CUstream};

use super::{
    device::Device,
    driver::{Api, Failure, checked},
};
use crate::Result;

/// Bytes of the ring, and the most of one piece.
const RING: usize = 8 << 20;
const PIECE: usize = 2 << 20;

/// `CU_EVENT_DISABLE_TIMING`.
const NO_TIMING: c_uint = CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as c_uint;

/// A device's ring, made at the first copy.
#[derive(Default)]
pub(super) struct Staging(Mutex<Option<Ring>>);

struct Ring {
    base: *mut u8,
    /// Where the next piece begins.
    head: usize,
    /// Pieces that the device may not have read yet, the oldest first: begin, end, and the event behind the copy.
    pieces: VecDeque<(usize, usize, CUevent)>,
    events: Vec<CUevent>,
}

// SAFETY: the memory is the ring's alone, and events may be used by any thread.
unsafe impl Send for Ring {}

impl Ring {
    fn new(api: &Api) -> Result<Ring, Failure> {
        let mut base = ptr::null_mut();
        // SAFETY: the pointer is to a live local.
        checked(unsafe { (api.cuMemHostAlloc)(&mut base, RING, 0) })?;
        Ok(Ring { base: base.cast(), head: 0, pieces: VecDeque::new(), events: Vec::new() })
    }

    /// The beginning of a place for `n` bytes that the device does not read any more.
    fn place(&mut self, api: &Api, n: usize) -> Result<usize, Failure> {
        let begin = if self.head + n > RING { 0 } else { self.head };
        let overlaps = |&(b, e, _): &(usize, usize, CUevent)| b < begin + n && begin < e;
        if let Some(last) = self.pieces.iter().rposition(overlaps) {
            // The stream's order: what was copied before that one has been read too.
            // SAFETY: the event was recorded behind the copy and is alive.
            checked(unsafe { (api.cuEventSynchronize)(self.pieces[last].2) })?;
            self.events.extend(self.pieces.drain(..=last).map(|(_, _, event)| event));
        }
        Ok(begin)
    }

    fn copy(&mut self, api: &Api, to: CUdeviceptr, bytes: &[u8], stream: CUstream) -> Result<(), Failure> {
        let begin = self.place(api, bytes.len())?;
        let event = match self.events.pop() {
            Some(event) => event,
            None => {
                let mut event = ptr::null_mut();
                // SAFETY: the pointer is to a live local.
                checked(unsafe { (api.cuEventCreate)(&mut event, NO_TIMING) })?;
                event
            }
        };
        // SAFETY: `begin..begin + bytes.len()` lies in the ring, and no copy reads it any more; the caller says that `to` has as many bytes
        // and that the stream's context is current.
        unsafe {
            let from = self.base.add(begin);
            ptr::copy_nonoverlapping(bytes.as_ptr(), from, bytes.len());
            checked((api.cuMemcpyHtoDAsync)(to, from.cast::<c_void>(), bytes.len(), stream))?;
            checked((api.cuEventRecord)(event, stream))?;
        }
        let end = begin + bytes.len();
        self.pieces.push_back((begin, end, event));
        self.head = end.next_multiple_of(64);
        Ok(())
    }
}

impl Staging {
    /// Queues the copy of `bytes` to `to`, which has room for them, on the stream, whose context is current. The bytes may be gone when this
    /// returns.
    pub(super) fn upload(&self, device: &Device, to: CUdeviceptr, bytes: &[u8], stream: CUstream) -> Result<()> {
        let (api, mut ring) = (device.api, self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let fail = |e: Failure| device.failed("cuMemcpyHtoDAsync", e);
        if ring.is_none() {
            *ring = match Ring::new(api) {
                Ok(made) => Some(made),
                // No page-locked memory to be had: a copy that is waited for.
                Err(_) => {
                    // SAFETY: `to` has room, and the bytes outlive the copy, which is waited for.
                    return unsafe {
                        checked((api.cuMemcpyHtoDAsync)(to, bytes.as_ptr().cast(), bytes.len(), stream))
                            .and_then(|()| checked((api.cuStreamSynchronize)(stream)))
                    }
                    .map_err(fail);
                }
            };
        }
        let Some(ring) = ring.as_mut() else { return Ok(()) };
        let mut done = 0;
        for piece in bytes.chunks(PIECE) {
            ring.copy(api, to + done as CUdeviceptr, piece, stream).map_err(fail)?;
            done += piece.len();
        }
        Ok(())
    }
}
