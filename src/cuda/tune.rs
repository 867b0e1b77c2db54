//! The tuner: candidates for a layer are timed once on the real device and arrays, and the winner is kept.
//!
//! `HADAL_TUNE` is `off` (the default: the cost model decides, and nothing is read), `on` (what the disk has is used, the rest is
//! timed at its first launch) or `force` (timed anew in this process). Winners lie in the cache folder, a file for each device,
//! driver, NVRTC and state of the kernels: `tuned/<digest>.tsv`, a line each, with a sum at the end. A file that does not add up
//! counts as empty. Of two processes that time the same layer the first to write wins, and both use what it wrote, so that
//! one cache means one choice and with it the same bits.
//!
//! Nothing of the user's changes: candidates write scratch memory, and draw no random numbers. While a graph is captured nothing
//! is timed: what is known is used, else the model's plan.
//!
//! A family of kernels takes part by one call of [`choose`] where it has decided by its model.

use std::{
    cell::Cell,
    fs::{self, File},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

pub(crate) use super::kept::Choice;
use super::{
    KERNELS, cache, capture,
    device::Device,
    driver,
    kept::{self, Table},
    nvrtc,
};
use crate::{Result, files, settings};

/// A file of choices that is longer than this is none of ours.
const MOST_BYTES: u64 = 16 << 20;

/// What is to be computed: a family of kernels, and all that its time depends on.
pub(crate) struct Problem<'a> {
    pub device: &'a Arc<Device>,
    pub family: &'static str,
    pub shape: &'a [usize],
}

/// When candidates are timed.
pub(super) use crate::settings::Tune as Mode;

thread_local! {
    /// True while this thread times: what runs then takes the model's plan.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

#[cfg(test)]
type Clock = fn(&Choice) -> u64;

#[cfg(test)]
thread_local! {
    /// In the place of `HADAL_TUNE`, and of the clock: nanoseconds of a candidate.
    pub(crate) static TEST: Cell<Option<(Mode, Clock)>> = const { Cell::new(None) };
}

fn mode() -> Result<Mode> {
    static MODE: OnceLock<Mode> = OnceLock::new();
    #[cfg(test)]
    if let Some((mode, _)) = TEST.get() {
        return Ok(mode);
    }
    match MODE.get() {
        Some(mode) => Ok(*mode),
        None => settings::tune().map(|mode| *MODE.get_or_init(|| mode)),
    }
}

/// True when the model decides: then nothing needs to be prepared for [`choose`].
pub(crate) fn is_off() -> Result<bool> {
    Ok(mode()? == Mode::Off || BUSY.get())
}

/// What the process knows of a device.
#[derive(Default)]
pub(super) struct Tuner {
    known: Mutex<Table>,
    /// Held while something is timed: two at a time would disturb each other.
    timing: Mutex<()>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The candidate to compute the problem with. `model` is the cost model's choice and one of `candidates`; `run` computes the
/// problem with a candidate, into memory of its own.
///
/// # Errors
/// Those of `run`; a wrong `HADAL_TUNE`.
pub(crate) fn choose(
    problem: &Problem<'_>,
    model: Choice,
    candidates: &dyn Fn() -> Vec<Choice>,
    run: &dyn Fn(&Choice) -> Result<()>,
) -> Result<Choice> {
    if is_off()? {
        return Ok(model);
    }
    let mode = mode()?;
    let tuner = &problem.device.tuner;
    let known = || lock(&tuner.known).get(problem.family).and_then(|t| t.get(problem.shape)).copied();
    if let Some(c) = known() {
        return Ok(c);
    }
    let candidates = candidates();
    let stored = || if mode == Mode::On { problem.stored(&candidates) } else { None };
    let winner = if capture::active() {
        let Some(c) = stored() else { return Ok(model) };
        c
    } else {
        let _timing = lock(&tuner.timing);
        match known().or_else(stored) {
            Some(c) => c,
            None => problem.keep(mode, &candidates, problem.time_all(model, &candidates, run)?),
        }
    };
    lock(&tuner.known).entry(problem.family.to_owned()).or_default().insert(problem.shape.to_vec(), winner);
    Ok(winner)
}

/// Less than this share is noise: then the model's choice stays.
const NOISE: f64 = 0.02;

impl Problem<'_> {
    /// The fastest candidate; the model's, or else the first, of those that are equally fast.
    fn time_all(&self, model: Choice, candidates: &[Choice], run: &dyn Fn(&Choice) -> Result<()>) -> Result<Choice> {
        struct Restore;
        impl Drop for Restore {
            fn drop(&mut self) {
                BUSY.set(false);
            }
        }
        BUSY.set(true);
        let _restore = Restore;
        // Once each, so that all are compiled, side by side.
        candidates.iter().try_for_each(run)?;
        self.device.synchronize()?;
        let mut best = (self.time(&model, run)?, model);
        best.0 = (best.0 as f64 * (1.0 - NOISE)) as u64;
        for c in candidates.iter().filter(|c| **c != model) {
            let t = self.time(c, run)?;
            if t < best.0 {
                best = (t, *c);
            }
        }
        Ok(best.1)
    }

    /// Nanoseconds of one candidate, the least of a few rounds of about a millisecond.
    fn time(&self, c: &Choice, run: &dyn Fn(&Choice) -> Result<()>) -> Result<u64> {
        #[cfg(test)]
        if let Some((_, clock)) = TEST.get() {
            return Ok(clock(c));
        }
        let round = |n: u64| -> Result<u64> {
            let start = Instant::now();
            (0..n).try_for_each(|_| run(c))?;
            self.device.synchronize()?;
            Ok(start.elapsed().as_nanos() as u64 / n)
        };
        let once = round(1)?;
        let (n, rounds) = ((1_000_000 / once.max(1)).clamp(1, 64), if once > 50_000_000 { 1 } else { 5 });
        (0..rounds).try_fold(once, |least, _| Ok(least.min(round(n)?)))
    }

    /// The file for this device, and what its first line says.
    fn file(&self) -> Option<(PathBuf, String)> {
        static KERNELS_DIGEST: OnceLock<String> = OnceLock::new();
        let kernels = KERNELS_DIGEST.get_or_init(|| {
            let parts: Vec<&str> = KERNELS.iter().flat_map(|(name, text)| [*name, *text]).collect();
            kept::key(&parts)[..16].to_owned()
        });
        let d = self.device;
        let nvrtc = nvrtc::compiler().map_or((0, 0), |c| c.version);
        let driver = driver::version().map_or(0, |(major, minor)| major * 1000 + minor * 10);
        let title = format!(
            "# hadal {} kernels {kernels}, {} with {} multiprocessors, driver {driver}, NVRTC {}.{}",
            env!("CARGO_PKG_VERSION"),
            d.name,
            d.multiprocessors,
            nvrtc.0,
            nvrtc.1
        );
        Some((cache::folder("tuned")?.join(format!("{}.tsv", &kept::key(&[&title])[..16])), title))
    }

    /// What the file holds; nothing when there is none, or it is damaged.
    fn read(&self) -> Table {
        let bytes = self.file().and_then(|(path, _)| files::read(&path, MOST_BYTES).ok());
        bytes.and_then(|b| kept::parse(std::str::from_utf8(&b).ok()?)).unwrap_or_default()
    }

    /// What the file says now, if it is one of the candidates.
    fn stored(&self, candidates: &[Choice]) -> Option<Choice> {
        self.read().get(self.family)?.get(self.shape).copied().filter(|c| candidates.contains(c))
    }

    /// Writes the winner down, unless another process was first: then gives that one's. A cache that cannot be written is no error.
    fn keep(&self, mode: Mode, candidates: &[Choice], winner: Choice) -> Choice {
        let Some((path, title)) = self.file() else { return winner };
        let Some(folder) = path.parent() else { return winner };
        if fs::create_dir_all(folder).is_err() {
            return winner;
        }
        // The lock is the system's: it ends with the process, however that ends. Without one, the last to write wins.
        let _held = File::create(path.with_extension("lock")).and_then(|f| f.lock().map(|()| f));
        let mut table = self.read();
        let found = table.get(self.family).and_then(|t| t.get(self.shape)).copied();
        if let Some(c) = found.filter(|c| mode == Mode::On && candidates.contains(c)) {
            return c;
        }
        table.entry(self.family.to_owned()).or_default().insert(self.shape.to_vec(), winner);
        let _ = files::write(&path, kept::print(&title, &table).as_bytes());
        winner
    }
}
