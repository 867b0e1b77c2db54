//! Host memory of arrays, recycled: a training step asks for the same sizes again and again, and fresh pages cost faults.
//!
//! All memory whose size follows from data is asked for through [`super::memory`], so that where there is none the caller gets an
//! error. A buffer goes back to the pool when the last array that shares it is dropped. Arrays and pool together never hold more
//! than 1.5 times what was in use at the peak; what has not been asked for longest is given back first.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard, PoisonError},
};

use half::{bf16, f16};

use super::memory;
use crate::{Result, context::MemoryStats};

/// Below this many bytes the system's allocator is as good.
const SMALL: usize = 32 << 10;

/// A `Vec` that returns to the pool when dropped.
pub struct Buffer<T: Pooled>(Vec<T>);

impl<T: Pooled> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer of {}", self.0.len())
    }
}

/// An element type with a pool of its own.
pub trait Pooled: Copy + Default + Send + Sync + 'static {
    #[doc(hidden)]
    fn pool() -> &'static Mutex<Pool<Self>>;
}

macro_rules! pooled {
    ($($t:ty),*) => {$(
        impl Pooled for $t {
            fn pool() -> &'static Mutex<Pool<Self>> {
                static POOL: Mutex<Pool<$t>> = Mutex::new(Pool::new());
                &POOL
            }
        }
    )*};
}
pooled!(f32, f64, f16, bf16, u8, i64);

/// Free vectors by capacity, with counters in bytes.
#[derive(Debug)]
pub struct Pool<T> {
    free: BTreeMap<usize, Class<T>>,
    stats: MemoryStats,
    clock: u64,
}

/// The free vectors of one capacity.
#[derive(Debug)]
struct Class<T> {
    vecs: Vec<Vec<T>>,
    /// The pool's clock when one was last taken or given back.
    used: u64,
}

impl<T: Pooled> Pool<T> {
    const fn new() -> Self {
        let stats = MemoryStats { in_use: 0, peak: 0, cached: 0, system_allocations: 0 };
        Pool { free: BTreeMap::new(), stats, clock: 0 }
    }

    /// A free vector whose capacity fits `len` without wasting more than a quarter.
    fn take(&mut self, len: usize) -> Option<Vec<T>> {
        self.clock += 1;
        let (&capacity, class) = self.free.range_mut(len..=len + len / 4).find(|(_, c)| !c.vecs.is_empty())?;
        class.used = self.clock;
        self.stats.cached -= capacity * size_of::<T>();
        class.vecs.pop()
    }

    /// Takes a vector back.
    fn give(&mut self, vec: Vec<T>) {
        let bytes = vec.capacity() * size_of::<T>();
        self.clock += 1;
        self.stats.in_use -= bytes;
        self.stats.cached += bytes;
        let class = self.free.entry(vec.capacity()).or_insert(Class { vecs: Vec::new(), used: 0 });
        class.used = self.clock;
        class.vecs.push(vec);
        self.trim();
    }

    /// Counts `bytes` as in use.
    fn account(&mut self, bytes: usize) {
        self.stats.in_use += bytes;
        self.stats.peak = self.stats.peak.max(self.stats.in_use);
        self.trim();
    }

    /// Frees what was not asked for longest until the footprint is within its bound. The half above the peak is there
    /// because a step holds its sizes at different times: with less, each would push out what the next one needs.
    fn trim(&mut self) {
        while self.stats.in_use + self.stats.cached > self.stats.peak + self.stats.peak / 2 {
            let oldest = self.free.iter_mut().filter(|(_, c)| !c.vecs.is_empty()).min_by_key(|(_, c)| c.used);
            let Some((&capacity, class)) = oldest else { break };
            class.vecs.pop();
            self.stats.cached -= capacity * size_of::<T>();
        }
        if self.free.len() > 256 {
            self.free.retain(|_, c| !c.vecs.is_empty());
        }
    }
}

fn lock<T: Pooled>() -> MutexGuard<'static, Pool<T>> {
    // Counters and lists stay consistent between statements, so a panic elsewhere while locked is harmless.
    T::pool().lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Pooled> Buffer<T> {
    /// A buffer of `len` elements with **stale contents**: every element has to be written before it is read.
    pub(crate) fn stale(len: usize) -> Result<Self> {
        if len.saturating_mul(size_of::<T>()) < SMALL {
            return memory::filled(len, T::default()).map(Buffer);
        }
        let recycled = lock::<T>().take(len);
        let vec = match recycled {
            // Within its capacity.
            Some(mut vec) => {
                vec.resize(len, T::default());
                vec
            }
            None => {
                let vec = memory::filled(len, T::default())?;
                lock::<T>().stats.system_allocations += 1;
                vec
            }
        };
        lock::<T>().account(vec.capacity() * size_of::<T>());
        Ok(Buffer(vec))
    }

    /// A buffer of `len` zeros.
    pub(crate) fn zeros(len: usize) -> Result<Self> {
        Self::full(len, T::default())
    }

    /// A buffer of `len` copies of `value`.
    pub(crate) fn full(len: usize, value: T) -> Result<Self> {
        let mut b = Self::stale(len)?;
        b.fill(value);
        Ok(b)
    }

    /// The same elements in memory of their own.
    pub(crate) fn copy(&self) -> Result<Self> {
        let mut b = Self::stale(self.len())?;
        b.copy_from_slice(self);
        Ok(b)
    }

    /// Takes over a vector of the user's.
    pub(crate) fn from_vec(vec: Vec<T>) -> Self {
        let bytes = vec.capacity() * size_of::<T>();
        if bytes >= SMALL {
            lock::<T>().account(bytes);
        }
        Buffer(vec)
    }
}

impl<T: Pooled> Drop for Buffer<T> {
    fn drop(&mut self) {
        let vec = std::mem::take(&mut self.0);
        let bytes = vec.capacity() * size_of::<T>();
        if bytes >= SMALL {
            lock::<T>().give(vec);
        }
    }
}

impl<T: Pooled> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Pooled> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

/// The counters over all element types.
pub(crate) fn stats() -> MemoryStats {
    let all = [
        lock::<f32>().stats,
        lock::<f64>().stats,
        lock::<f16>().stats,
        lock::<bf16>().stats,
        lock::<u8>().stats,
        lock::<i64>().stats,
    ];
    all.iter().fold(MemoryStats::default(), |a, s| MemoryStats {
        in_use: a.in_use + s.in_use,
        peak: a.peak + s.peak,
        cached: a.cached + s.cached,
        system_allocations: a.system_allocations + s.system_allocations,
    })
}

/// Frees what all pools keep for later: when the system has no more memory.
pub(crate) fn release() {
    fn of<T: Pooled>() {
        let mut pool = lock::<T>();
        let free = std::mem::take(&mut pool.free);
        pool.stats.cached = 0;
        drop(pool);
        drop(free);
    }
    of::<f32>();
    of::<f64>();
    of::<f16>();
    of::<bf16>();
    of::<u8>();
    of::<i64>();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_used_again_and_the_footprint_stays() {
        // f16 is used by no other unit test, so the counters are ours alone.
        let len = 100_000;
        drop(Buffer::<f16>::stale(len).unwrap());
        let first = lock::<f16>().stats;
        for _ in 0..10 {
            drop(Buffer::<f16>::stale(len).unwrap());
        }
        let later = lock::<f16>().stats;
        assert_eq!(first.system_allocations, later.system_allocations);
        let (_a, _b) = (Buffer::<f16>::stale(len * 2).unwrap(), Buffer::<f16>::stale(len).unwrap());
        let s = lock::<f16>().stats;
        assert!(s.in_use + s.cached <= s.peak + s.peak / 2, "{s:?}");
    }
}
