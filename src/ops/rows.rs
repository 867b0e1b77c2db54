//! Arrays seen as (outer, len, inner) around one axis: what softmax and the losses share. Counterpart of `kernels/rows.cuh`.

use crate::{Array, Layout, Result, cpu::parallel, cuda::Launch};

/// Rows of `len` elements that lie `inner` apart; `count` = outer·inner of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Rows {
    count: i64,
    len: i64,
    inner: i64,
    /// The threads that share a row on the device: 1, 32 or 256.
    team: i64,
}

impl Rows {
    /// The rows of `a` along `axis`, in its memory order.
    pub(crate) fn of(a: &Array, axis: usize) -> Self {
        let (extents, place) = match (a.layout(), a.shape()) {
            (Layout::ChannelsLast, &[n, c, h, w]) => (vec![n, h, w, c], [0, 3, 1, 2].get(axis).copied().unwrap_or(axis)),
            (_, shape) => (shape.to_vec(), axis),
        };
        let product = |s: &[usize]| s.iter().product::<usize>();
        let (before, rest) = extents.split_at(place.min(extents.len()));
        match rest.split_first() {
            Some((&len, after)) => Self::new(product(before), len, product(after)),
            None => Self::new(1, 1, 1),
        }
    }

    pub(crate) fn new(outer: usize, len: usize, inner: usize) -> Self {
        let count = outer * inner;
        // Neighbouring threads read neighbouring rows where there are enough of them; else a team reads one row together.
        let team = match len {
            0..=4 => 1,
            _ if inner > 1 && count >= 4096 => 1,
            5..=1024 => 32,
            _ => 256,
        };
        Rows { count: count as i64, len: len as i64, inner: inner as i64, team }
    }

    /// The same rows with `team` threads for each.
    pub(crate) fn shared_by(self, team: usize) -> Self {
        Rows { team: team as i64, ..self }
    }

    pub(crate) fn count(&self) -> usize {
        self.count as usize
    }

    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    pub(crate) fn inner(&self) -> usize {
        self.inner as usize
    }

    /// Where row `row` begins in memory.
    pub(crate) fn base(&self, row: usize) -> usize {
        let inner = self.inner();
        row / inner * self.len() * inner + row % inner
    }

    /// Memory indices of row `row`'s elements.
    pub(crate) fn indices(&self, row: usize) -> impl Iterator<Item = usize> + use<> {
        let (base, inner) = (self.base(row), self.inner());
        (0..self.len()).map(move |c| base + c * inner)
    }

    /// Queues a kernel that loops by `FOR_ROWS`.
    pub(crate) fn run(&self, launch: Launch) -> Result<()> {
        let blocks = (self.count() as u128 * self.team as u128).div_ceil(256).min(1 << 20);
        launch.run([blocks as u32, 1, 1], [256, 1, 1], 0)
    }

    /// `f(first row, rows' values)` on all cores over `y`, which has one value for each row.
    pub(crate) fn for_each<Y: Send>(&self, y: &mut [Y], f: impl Fn(usize, &mut [Y]) + Sync) {
        let group = self.group();
        if y.len() <= group {
            return f(0, y);
        }
        parallel::pieces(y, group, &|i, y| f(i * group, y));
    }

    /// Rows that are worth a task.
    pub(crate) fn group(&self) -> usize {
        ((8 << 10) / self.len().max(1)).max(1)
    }
}
