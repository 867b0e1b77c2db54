//! Pooling on a GPU: which kernel of `max_pool.cu` and `avg_pool.cu` a shape takes, and the numbers that it needs.

use crate::{
    Array, DType, Error, Layout, Result,
    cpu::pooling::PoolShape,
    cuda::{Define, Launch},
};

/// The `Pool` of `pool.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Sizes([i32; 15]);

/// The `Divisor` of `pool.cuh`: n / d = (⌊n·magic / 2³²⌋ + n) >> shift for all n below 2³¹.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Divisor([u32; 2]);

impl Divisor {
    fn new(d: u32) -> Self {
        let d = u64::from(d.max(1));
        let shift = d.next_power_of_two().trailing_zeros();
        let magic = (((1 << shift) - d) << 32) / d + 1;
        Divisor([magic as u32, shift])
    }
}

/// The `Items` of `pool.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Items {
    count: u32,
    inner: u32,
    cols: u32,
    rows: u32,
    by: [Divisor; 3],
}

impl Items {
    /// Of extents inner, cols, rows and images, of which there are less than 2³¹ together.
    fn new(extents: [usize; 4]) -> Self {
        let [inner, cols, rows, images] = extents.map(|v| v as u32);
        Items { count: inner * cols * rows * images, inner, cols, rows, by: [inner, cols, rows].map(Divisor::new) }
    }
}

/// The names of a pass's kernels.
pub(super) struct Kernels {
    pub file: &'static str,
    /// Element by element.
    pub each: &'static str,
    /// 16 bytes of neighbouring channels at once, where there is such a kernel.
    pub packed: Option<&'static str>,
    /// Four neighbouring columns of row-major memory at once, where there is such a kernel.
    pub rows: Option<&'static str>,
}

/// The kernel for one pass, and what follows its arrays.
pub(super) struct Pass {
    launch: Launch,
    sizes: Sizes,
    /// None for the kernel that takes element by element.
    items: Option<Items>,
    len: usize,
}

impl Pass {
    /// For arrays in the layout of `to`, which the kernel writes: y, or x's gradient where `backward`. `y` is the output's shape.
    pub(super) fn new(
        op: &'static str,
        kernels: &Kernels,
        s: &PoolShape,
        y: &[usize; 4],
        to: &Array,
        backward: bool,
    ) -> Result<Self> {
        let [n, c, oh, ow] = *y;
        let channels_last = to.layout() == Layout::ChannelsLast;
        let flags = [usize::from(channels_last), usize::from(s.count_include_pad)];
        let all = [&[c, s.h, s.w, oh, ow][..], &s.kernel, &s.stride, &s.padding, &flags].concat();
        let mut sizes = [0; 15];
        for (to, v) in sizes.iter_mut().zip(all) {
            *to = i32::try_from(v).map_err(|_| Error::shape(op, "an extent is too large for the GPU", &[y]))?;
        }
        let ([rows, cols], pack) = (if backward { [s.h, s.w] } else { [oh, ow] }, 16 / to.dtype().size());
        let fast = match channels_last {
            true => kernels.packed.filter(|_| c % pack == 0).map(|name| (name, [c / pack, cols, rows, n])),
            false => kernels.rows.filter(|_| cols % 4 == 0).map(|name| (name, [1, cols / 4, rows, n * c])),
        };
        // Items are counted in 31 bits.
        let fast = fast.filter(|(_, extents)| extents.iter().product::<usize>() < 1 << 31);
        let (name, items) = match fast {
            Some((name, extents)) => (name, Some(Items::new(extents))),
            None => (kernels.each, None),
        };
        let define = [("scalar_t", to.dtype().into()), ("WINDOW", Define::Word(window(kernels.file, s, to.dtype())))];
        let launch = Launch::new(to, kernels.file, name, &define)?;
        Ok(Pass { launch, sizes: Sizes(sizes), items, len: to.len() })
    }

    /// Adds a pointer.
    pub(super) fn array(mut self, a: Option<&Array>) -> Self {
        self.launch = self.launch.optional(a);
        self
    }

    pub(super) fn run(self) -> Result<()> {
        let launch = self.launch.value(self.sizes);
        match self.items {
            Some(items) => {
                let blocks = items.count.div_ceil(256);
                launch.value(items).run([blocks, 1, 1], [256, 1, 1], 0)
            }
            None => launch.value(self.len as i64).run_1d(self.len),
        }
    }
}

/// Common windows are compiled for; see the variants that the kernels declare.
fn window(file: &str, s: &PoolShape, dtype: DType) -> &'static str {
    match (s.kernel, s.stride) {
        _ if dtype == DType::F64 => "0",
        ([2, 2], [2, 2]) => "22",
        ([3, 3], [1, 1]) if file == "max_pool.cu" => "31",
        ([3, 3], [2, 2]) if file == "max_pool.cu" => "32",
        _ => "0",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors_divide() {
        let over = |n: u32, Divisor([magic, shift]): Divisor| (((u64::from(n) * u64::from(magic)) >> 32) as u32 + n) >> shift;
        let all = (1..70).chain([
            255,
            256,
            257,
            641,
            6700417,
            65535,
            65536,
            65537,
            (1 << 30) - 1,
            1 << 30,
            (1 << 30) + 1,
            i32::MAX as u32,
        ]);
        for d in all {
            let near = (0..40u32).flat_map(|k| {
                [k, k.wrapping_mul(d), k.wrapping_mul(d).wrapping_sub(1), k.wrapping_mul(d).wrapping_add(1), i32::MAX as u32 - k]
            });
            for n in near.map(|n: u32| n & 0x7fff_ffff) {
                assert_eq!(over(n, Divisor::new(d)), n / d, "{n} / {d}");
            }
        }
    }
}
