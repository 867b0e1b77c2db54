//! CUDA graphs: a training step captured once, then replayed with one call.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUdeviceptr, CUgraphExec, CUstream, CUstream_flags_enum, CUstreamCaptureMode_enum};

use super::{
    capture::{self, Arena, Before, Capture, Phase, Write},
    device::{Device, device},
    driver::checked,
    launch::{Launch, SYNC},
    memory::Block,
};
use crate::{Array, Context, DType, Error, Layout, Result, random};

/// The work that a closure queued on a GPU, to be done again as a whole: no launch by launch, no host code in between.
///
/// [`Graph::capture`] runs the closure once and writes down its kernels and copies instead of running them;
/// [`Graph::replay`] runs them, each with the very addresses and numbers that it was captured with:
///
/// - **Inputs** made before the capture are read where they are: write the next batch into them with
///   [`Tensor::copy_from`](crate::Tensor::copy_from). The graph keeps their memory alive.
/// - **Outputs** and gradients made in the closure have no values before the first replay, and are overwritten by the next
///   one, clones included; `copy()` what has to last. They stay readable when the graph is gone.
/// - **What goes from step to step** (parameters, momenta, running statistics) has to exist before: run one step as usual,
///   then capture. It is written in place by each replay, and nothing else may share its memory then.
/// - **Random numbers** (dropout) come from the replaying thread's stream as if the closure ran: each replay takes as many
///   draws, and the same seed gives the same numbers with a graph and without. [`random::seed`] and [`random::set_state`]
///   may be called between replays, not in the closure.
/// - **The host's decisions and numbers** are those of the capture: branches, the batch size. Capture again to change them.
/// - **The learning rate and the count of updates**, which Adam's factors depend on, are the optimizer's own at each replay: a
///   schedule that sets the rate between replays works, and a replay counts as an update.
/// - **Not in the closure**: reading back (`item`, `to_vec`, printing), waiting, tensors from host memory, another device,
///   another capture or replay. What runs on the CPU, or on another thread, is not captured.
///
/// A replay equals the closure's own run bit for bit.
///
/// ```
/// use hadal::{Tensor, cuda::Graph, try_gpu};
/// let ctx = try_gpu(0);
/// if ctx.is_gpu() {
///     let x = Tensor::arange(0.0, 3.0, 1.0, &ctx)?;
///     let (graph, y) = Graph::capture(&ctx, || x.square())?;
///     graph.replay()?;
///     assert_eq!(y.to_vec()?, [0., 1., 4.]);
///     x.copy_from(&Tensor::full(&[3], 5.0, &ctx)?)?;
///     graph.replay()?;
///     assert_eq!(y.to_vec()?, [25., 25., 25.]);
/// }
/// # Ok::<(), hadal::Error>(())
/// ```
///
/// Memory: what the closure allocates belongs to the graph, which gives it back to the device's pool when dropped (what an
/// array still holds then, when that is dropped). A replay allocates nothing.
///
/// Threads: a capture concerns the thread that it runs on alone; others may use the device meanwhile, and capture too. A
/// graph may be replayed from any thread, with that thread's random numbers.
#[doc(alias = "CUDAGraph")]
pub struct Graph {
    device: Arc<Device>,
    /// An address, since a driver's handle is a pointer. The lock makes a replay's calls follow one another.
    exec: Mutex<usize>,
    arena: Arc<Arena>,
    /// Memory from outside whose addresses the graph contains.
    held: Vec<Arc<Block>>,
    writes: Vec<Write>,
    /// Done on the host before each replay.
    before: Vec<Before>,
    /// Two words: the seed and the number of draws that the next replay begins with.
    base: Array,
    /// Draws of one replay.
    draws: u64,
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Graph on gpu({}), {} arrays from outside, {} of them written",
            self.device.ordinal,
            self.held.len(),
            self.writes.len()
        )
    }
}

impl Graph {
    /// Runs `f` once, its work on `ctx` written down instead of done; gives the graph and what `f` gave.
    ///
    /// The thread's random state is the same after as before: the draws are the replays'.
    ///
    /// # Errors
    /// The closure's own, [`Error::Graph`] for what a graph cannot hold, [`Error::Invalid`] on the CPU. Whatever went wrong,
    /// and if the closure panics, the capture is over, the device works, and no array from outside has other values.
    pub fn capture<T>(ctx: &Context, f: impl FnOnce() -> Result<T>) -> Result<(Graph, T)> {
        let &Context::Gpu(ordinal) = ctx else {
            return Err(Error::invalid("Graph::capture", format!("{ctx} has no CUDA graphs: capture on a GPU")));
        };
        capture::refuse("no other capture can begin")?;
        let device = device(ordinal)?;
        let base = Array::uninit(&[2], DType::I64, Layout::RowMajor, ctx)?;
        let recording = Recording::begin(device, base.cuda("Graph::capture")?.ptr())?;
        let out = f()?;
        Ok((recording.end(base)?, out))
    }

    /// Queues the captured work once more; like a kernel's launch it does not wait.
    ///
    /// # Errors
    /// [`Error::Graph`] when a parameter or another array that the graph writes was given other memory since the capture, or
    /// shares its memory; [`Error::Cuda`] when the launch fails.
    pub fn replay(&self) -> Result<()> {
        capture::refuse("no graph can be replayed")?;
        for w in &self.writes {
            let reason = match w.buffer.strong_count() {
                1 => continue,
                0 => {
                    "was given other memory since the capture (or is gone), so that the graph would change what nobody reads: \
                      capture again"
                }
                _ => {
                    "shares its memory with a clone of its array, a detached tensor or a kept tape, which the graph would \
                      change as well: drop that first, or make it a `copy()`"
                }
            };
            return Err(self.error(format!("Graph::replay: {} {reason}", w.name)));
        }
        let exec = self.exec.lock().unwrap_or_else(PoisonError::into_inner);
        let (seed, number) = random::state();
        if self.draws > 0 {
            Launch::new(&self.base, "random.cu", "set_draw", &[("scalar_t", DType::F32.into())])?
                .array(&self.base)
                .value(seed)
                .value(number)
                .run([1; 3], [1; 3], 0)?;
        }
        self.before.iter().try_for_each(|f| f())?;
        self.device.flush()?;
        self.device.bind()?;
        // SAFETY: the handle is valid until this graph is dropped; the memory that it reads and writes is alive, since
        // `held` and `arena` own it; the lock keeps other threads from the handle, which the driver does not.
        checked(unsafe { (self.device.api.cuGraphLaunch)(*exec as CUgraphExec, self.device.stream()) })
            .map_err(|e| self.device.failed("cuGraphLaunch", e))?;
        if self.draws > 0 {
            random::set_state((seed, number.wrapping_add(self.draws)));
        }
        self.arena.set_phase(Phase::Replayed);
        if *SYNC { self.device.synchronize() } else { Ok(()) }
    }

    fn error(&self, reason: String) -> Error {
        Error::Graph { context: Context::Gpu(self.device.ordinal), reason }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let exec = self.exec.get_mut().unwrap_or_else(PoisonError::into_inner);
        if self.device.bind().is_ok() {
            // SAFETY: instantiated once and destroyed once. The driver lets a launch that is still running finish; its
            // memory goes to the pool, whose next user is ordered behind it on the same stream.
            unsafe { (self.device.api.cuGraphExecDestroy)(*exec as CUgraphExec) };
        }
        self.arena.close(&self.device);
    }
}

/// A capture that has begun. Dropped before [`Recording::end`], by an error or a panic, it ends the capture and forgets it.
struct Recording {
    device: Arc<Device>,
    stream: CUstream,
    state: (u64, u64),
}

impl Recording {
    fn begin(device: Arc<Device>, base: CUdeviceptr) -> Result<Self> {
        device.bind()?;
        // A stream of the capture's own, on which nothing is ever run.
        let (api, mut stream) = (device.api, std::ptr::null_mut());
        // SAFETY: the pointer is to a live local; 1 is CU_STREAM_NON_BLOCKING.
        checked(unsafe { (api.cuStreamCreate)(&mut stream, CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32) })
            .map_err(|e| device.failed("cuStreamCreate", e))?;
        // Relaxed: in the other modes the driver forbids this thread (or all) to allocate and to load modules meanwhile,
        // which is safe here. Memory is asked for on the device's stream, so it is no node of the graph, and what must not
        // be in a capture is refused by hadal itself with a sentence.
        const RELAXED: std::ffi::c_int = CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED as std::ffi::c_int;
        // SAFETY: the stream was created above.
        if let Err(e) = checked(unsafe { (api.cuStreamBeginCapture)(stream, RELAXED) }) {
            // SAFETY: nothing was queued on it.
            unsafe { (api.cuStreamDestroy)(stream) };
            return Err(device.failed("cuStreamBeginCapture", e));
        }
        capture::exchange(Some(Capture::new(device.clone(), stream, base)));
        Ok(Recording { device, stream, state: random::state() })
    }

    /// Ends the capture and makes it a graph that can be launched.
    fn end(self, base: Array) -> Result<Graph> {
        let fail = |reason: &str| {
            Err(Error::Graph { context: Context::Gpu(self.device.ordinal), reason: format!("inside Graph::capture {reason}") })
        };
        // The closure may have made another device current.
        self.device.bind()?;
        let (api, mut graph, mut exec) = (self.device.api, std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the stream captures, and on this thread; the graph is destroyed below.
        checked(unsafe { (api.cuStreamEndCapture)(self.stream, &mut graph) })
            .map_err(|e| self.device.failed("cuStreamEndCapture", e))?;
        // SAFETY: the graph is valid; it has no memory nodes and needs no flags. What was instantiated does not need it any more, and
        // nobody else has it.
        let made = unsafe {
            let made = checked((api.cuGraphInstantiate)(&mut exec, graph, 0));
            (api.cuGraphDestroy)(graph);
            made
        };
        made.map_err(|e| self.device.failed("cuGraphInstantiate", e))?;
        let Some(capture) = capture::exchange(None) else { return fail("the thread's state was lost") };
        let Capture { device, arena, held, writes, before, start: ((_, first), resets), .. } = capture;
        let draws = random::state().1.wrapping_sub(first);
        arena.set_phase(Phase::Captured);
        let (held, writes) = (held.into_values().collect(), writes.into_values().collect());
        // From here on dropping the graph cleans up.
        let graph = Graph { device, exec: Mutex::new(exec as usize), arena, held, writes, before, base, draws };
        if random::resets() != resets {
            return fail("random::seed and set_state cannot be called: call them between replays");
        }
        Ok(graph)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // The draws are the replays'.
        random::set_state(self.state);
        let (api, unfinished) = (self.device.api, capture::exchange(None));
        if self.device.bind().is_ok() {
            if unfinished.is_some() {
                // An invalid capture has to be ended as well, and then gives no graph.
                let mut graph = std::ptr::null_mut();
                // SAFETY: the stream captures, unless `end` got past that, which this call then answers with an error.
                let ended = checked(unsafe { (api.cuStreamEndCapture)(self.stream, &mut graph) });
                if ended.is_ok() && !graph.is_null() {
                    // SAFETY: just made, and nobody else has it.
                    unsafe { (api.cuGraphDestroy)(graph) };
                }
            }
            // SAFETY: created by `begin`, captures no more, and nothing was ever run on it.
            unsafe { (api.cuStreamDestroy)(self.stream) };
        }
        if let Some(capture) = unfinished {
            capture.arena.close(&capture.device);
        }
    }
}
