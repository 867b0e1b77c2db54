//! The one place that asks the system for host memory whose size follows from data.
//!
//! `vec!`, `with_capacity` and `collect` end the process when there is no memory. These functions give [`Error::OutOfMemory`];
//! a test below keeps the others out of the code that computes. Linux promises memory that it does not have, and ends
//! the process when it is written: so what the machine (or the container) cannot hold is refused before it is asked for.

use std::{fs, sync::OnceLock};

use super::buffers;
use crate::{Context, Error, Result};

/// Requests from this size on are compared with what the machine has.
const LARGE: usize = 64 << 20;

/// An empty vector with room for `len` elements.
pub(crate) fn reserved<T>(len: usize) -> Result<Vec<T>> {
    let bytes = len.checked_mul(size_of::<T>()).filter(|&b| b <= isize::MAX as usize).ok_or_else(|| exhausted(usize::MAX))?;
    if bytes >= LARGE && bytes > capacity().saturating_sub(buffers::stats().in_use) {
        return Err(exhausted(bytes));
    }
    let mut vec = Vec::new();
    if vec.try_reserve_exact(len).is_err() {
        // Once more after the pools have given back what they keep.
        buffers::release();
        vec.try_reserve_exact(len).map_err(|_| exhausted(bytes))?;
    }
    Ok(vec)
}

/// `len` times `value`.
pub(crate) fn filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>> {
    let mut vec = reserved(len)?;
    vec.resize(len, value);
    Ok(vec)
}

/// What the iterator gives.
pub(crate) fn collected<T>(items: impl ExactSizeIterator<Item = T>) -> Result<Vec<T>> {
    let mut vec = reserved(items.len())?;
    vec.extend(items);
    Ok(vec)
}

/// A copy of a slice.
pub(crate) fn copied<T: Copy>(slice: &[T]) -> Result<Vec<T>> {
    let mut vec = reserved(slice.len())?;
    vec.extend_from_slice(slice);
    Ok(vec)
}

/// The error of a request that cannot be met.
pub(crate) fn exhausted(bytes: usize) -> Error {
    let m = buffers::stats();
    Error::OutOfMemory { context: Context::Cpu, requested: bytes, in_use: m.in_use, cached: m.cached, free: 0 }
}

/// Bytes that this process can hold at most: memory and swap, or the control group's limit. Without bound where the system
/// does not say it (then its allocator's word is all there is).
fn capacity() -> usize {
    static CAPACITY: OnceLock<usize> = OnceLock::new();
    *CAPACITY.get_or_init(|| {
        let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| machine(&text));
        let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        let group = limits.iter().filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).min();
        machine.unwrap_or(usize::MAX).min(group.unwrap_or(usize::MAX))
    })
}

/// Memory and swap by `/proc/meminfo`, in bytes.
fn machine(meminfo: &str) -> Option<usize> {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
    };
    kib("MemTotal:")?.checked_add(kib("SwapTotal:").unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_had_is_an_error() {
        for len in [usize::MAX, usize::MAX / 8, 1 << 60, 1 << 46] {
            for e in [reserved::<f64>(len).err(), filled(len, 1.5).err()] {
                assert!(matches!(e, Some(Error::OutOfMemory { .. })), "{len}: {e:?}");
            }
        }
        assert!(collected((0..usize::MAX / 2).map(|i| i as u8)).is_err());
        assert_eq!(filled(3, 1.5).unwrap(), [1.5; 3]);
        assert_eq!(collected((0..3).rev()).unwrap(), [2, 1, 0]);
    }

    #[test]
    fn the_machines_memory_is_read() {
        assert_eq!(machine("MemTotal:  100 kB\nMemFree: 1 kB\nSwapTotal:       24 kB\n"), Some(124 << 10));
        assert_eq!(machine("MemTotal:  100 kB\n"), Some(100 << 10));
        assert_eq!(machine("nothing"), None);
    }

    /// Lines outside of tests that ask for memory with no way to fail, by file. Each counts something small: axes, inputs, parameters,
    /// a buffer of a fixed size.
    const COUNTED: &[(&str, usize)] = &[
        ("autograd.rs", 2),
        ("check.rs", 2),
        ("cpu/buffers.rs", 1),
        ("cpu/conv/tiles.rs", 3),
        ("cpu/conv/winograd.rs", 1),
        ("cpu/parallel.rs", 1),
        ("data/download.rs", 3),
        ("data/download/http.rs", 1),
        ("data/idx.rs", 3),
        ("data/resize.rs", 2),
        ("files.rs", 1),
        ("hybrid/run.rs", 3),
        ("hybrid/trace.rs", 1),
        ("nn/store.rs", 3),
        ("ops/broadcast.rs", 1),
        ("ops/conv2d_pair.rs", 1),
        ("ops/layout.rs", 1),
        ("ops/matmul.rs", 1),
        ("ops/shape_ops.rs", 2),
        ("ops/stem_block/composed.rs", 1),
        ("optim/state.rs", 2),
        ("optim/together.rs", 3),
        ("shape.rs", 1),
        ("tensor.rs", 1),
        ("trainer.rs", 2),
    ];

    fn sources(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            match path.is_dir() {
                // The tools, and the device's memory, which has a pool of its own.
                true if name == "bin" || name == "cuda" => {}
                true => sources(&path, found),
                false if name.ends_with("tests.rs") || name == "testing.rs" || name == "memory.rs" => {}
                false => found.push(path),
            }
        }
    }

    #[test]
    fn nothing_else_asks_for_memory_in_proportion_to_data() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        // A packed test program has no sources beside it.
        if !root.is_dir() {
            return;
        }
        let mut files = Vec::new();
        sources(&root, &mut files);
        assert!(files.len() > 80, "the sources are found");
        for file in files {
            let name = file.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap().lines().filter(|l| !l.trim_start().starts_with("//"));
            let repeated = |l: &str| l.split("vec![").skip(1).any(|rest| rest.split(']').next().is_some_and(|v| v.contains(';')));
            let asks = |l: &&str| repeated(l) || l.contains("with_capacity(") || resized(l);
            let lines: Vec<&str> = code.filter(asks).map(str::trim).collect();
            let allowed = COUNTED.iter().find(|(f, _)| *f == name).map_or(0, |&(_, n)| n);
            assert!(
                lines.len() <= allowed,
                "{name}: {allowed} lines may take memory without a way to fail; what grows with data asks cpu::memory: {lines:#?}"
            );
        }
    }

    /// A vector's `resize`, not a loader's (which takes two numbers in parentheses without a value's point or call).
    fn resized(line: &str) -> bool {
        line.contains(".resize(") && !line.contains("loader.resize(")
    }
}
