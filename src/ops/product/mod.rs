//! The matrix product behind `matmul`, `dense` and their gradients: strided operands, a batch, and a batch that is summed.
//!
//! y[o] = f(Σᵣ a[o, r] b[o, r] (+ bias)), f maybe an activation, with a (m, k), b (k, n), y (m, n). A transpose swaps strides, a broadcast axis has
//! stride 0, and the gradient of a broadcast operand is a sum over r.

mod mma;
mod six;
mod wgmma;

use crate::{
    Array, Context, DType, Error, Layout, Result,
    cpu::{
        buffers::Buffer,
        gemm::{Mat, MatMut, Threads, gemm},
        memory, parallel,
    },
    cuda::{Define, Dims, Launch},
    dtype::{Element, Real, real_type},
    ops::UnaryKind,
    shape::{checked_numel, numel},
};

/// One operand: element strides of each batch axis (0 where it is stretched), of a row and of a column.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub batch: Vec<usize>,
    pub rows: usize,
    pub cols: usize,
}

impl View {
    /// A single matrix.
    pub(crate) fn matrix(rows: usize, cols: usize) -> Self {
        View { batch: Vec::new(), rows, cols }
    }

    /// The transpose of each matrix.
    pub(crate) fn t(&self) -> Self {
        View { batch: self.batch.clone(), rows: self.cols, cols: self.rows }
    }
}

/// A batch of products; see the module.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: View,
    pub b: View,
    /// Extents of the batch axes that stand side by side; 1 on those that are summed.
    pub outer: Vec<usize>,
    /// Extents of the batch axes that are summed; 1 on the others.
    pub inner: Vec<usize>,
    /// What becomes of each sum before it is stored: ReLU, sigmoid or tanh.
    pub activation: Option<UnaryKind>,
}

/// The offset of the `i`-th index of `extents` under `strides`.
fn offset(mut i: usize, extents: &[usize], strides: &[usize]) -> usize {
    let mut sum = 0;
    for (&e, &s) in extents.iter().zip(strides).rev() {
        sum += i % e * s;
        i /= e;
    }
    sum
}

impl Product {
    /// Computes the product of row-major arrays; `shape` is that of the result, of outer·m·n elements.
    pub(crate) fn run(&self, op: &'static str, a: &Array, b: &Array, bias: Option<&Array>, shape: &[usize]) -> Result<Array> {
        debug_assert!(a.layout() == Layout::RowMajor && b.layout() == Layout::RowMajor);
        let dtype = a.dtype();
        if let Context::Gpu(_) = a.context() {
            let y = Array::uninit(shape, dtype, Layout::RowMajor, &a.context())?;
            if y.is_empty() {
                return Ok(y);
            }
            let product = self.clone().merged();
            if !product.on_warpgroups(op, &y, a, b, bias)?
                && !product.on_six(op, &y, a, b, bias)?
                && !product.on_tensor_cores(op, &y, a, b, bias)?
            {
                product.launch(op, &y, a, b, bias)?;
            }
            return Ok(y);
        }
        real_type!(op, dtype, F => {
            let (a, b) = (a.real::<F>(op)?, b.real::<F>(op)?);
            let bias = bias.map(|b| b.real::<F>(op)).transpose()?;
            let mut y = Buffer::<F>::stale(checked_numel(op, shape)?)?;
            if y.is_empty() {
                return Array::from_real(y, shape, dtype);
            }
            if F::DTYPE == DType::F32 {
                let bias: Option<&[f32]> = bias.as_deref().map(bytemuck::cast_slice);
                self.fast(bytemuck::cast_slice(&a), bytemuck::cast_slice(&b), bias, bytemuck::cast_slice_mut(&mut y));
            } else {
                self.reference(&a, &b, bias.as_deref(), &mut y);
            }
            if let Some(kind) = self.activation {
                kind.assign(&mut y);
            }
            Array::from_real(y, shape, dtype)
        })
    }

    /// The `-D` of the activation, behind `define`.
    pub(super) fn with_activation(&self, mut define: Vec<(&'static str, Define)>) -> Vec<(&'static str, Define)> {
        define.extend(self.activation.and_then(UnaryKind::epilogue).map(|f| ("ACTIVATION", f)));
        define
    }

    /// The definition in plain loops.
    fn reference<F: Real>(&self, a: &[F], b: &[F], bias: Option<&[F]>, y: &mut [F]) {
        for (o, y) in y.chunks_mut(self.m * self.n).enumerate() {
            for (i, y) in y.chunks_mut(self.n).enumerate() {
                for (j, y) in y.iter_mut().enumerate() {
                    let mut sum = bias.map_or(F::ZERO, |b| b[j]);
                    for (from_a, from_b) in self.terms(o) {
                        for k in 0..self.k {
                            sum += a[from_a + i * self.a.rows + k * self.a.cols] * b[from_b + k * self.b.rows + j * self.b.cols];
                        }
                    }
                    *y = sum;
                }
            }
        }
    }

    /// Where the matrices of each summed product of `y[o]` start.
    fn terms(&self, o: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let start = |v: &View| offset(o, &self.outer, &v.batch);
        let (a, b) = (start(&self.a), start(&self.b));
        (0..numel(&self.inner))
            .map(move |r| (a + offset(r, &self.inner, &self.a.batch), b + offset(r, &self.inner, &self.b.batch)))
    }

    /// The same by the gemm crate. Products are spread over the threads, or split inside where there are few; the sums
    /// along k are the same either way.
    fn fast(&self, a: &[f32], b: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
        let (m, n, k) = (self.m, self.n, self.k);
        let nothing = k == 0 || self.inner.contains(&0);
        let one = |o: usize, y: &mut [f32], threads: Threads| {
            match bias {
                Some(bias) => y.chunks_mut(n).for_each(|row| row.copy_from_slice(bias)),
                None if nothing => y.fill(0.0),
                None => {}
            }
            if nothing {
                return;
            }
            let mut beta = if bias.is_some() { 1.0 } else { 0.0 };
            for (from_a, from_b) in self.terms(o) {
                let a = Mat::new(&a[from_a..], self.a.rows, self.a.cols);
                let b = Mat::new(&b[from_b..], self.b.rows, self.b.cols);
                gemm(m, n, k, 1.0, a, b, beta, MatMut::row_major(y, n), threads);
                beta = 1.0;
            }
        };
        let (count, work) = (numel(&self.outer), (m * n).saturating_mul(k).saturating_mul(numel(&self.inner)));
        if count < 4 && work > 1 << 19 {
            y.chunks_mut(m * n).enumerate().for_each(|(o, y)| one(o, y, Threads::Pool));
        } else if count.saturating_mul(work) < 1 << 17 {
            y.chunks_mut(m * n).enumerate().for_each(|(o, y)| one(o, y, Threads::One));
        } else {
            parallel::pieces(y, m * n, &|o, y| one(o, y, Threads::One));
        }
    }

    fn launch(&self, op: &'static str, y: &Array, a: &Array, b: &Array, bias: Option<&Array>) -> Result<()> {
        const TILE: usize = 64;
        let (outer, inner) = (numel(&self.outer), numel(&self.inner));
        let tiles = self.m.div_ceil(TILE).saturating_mul(self.n.div_ceil(TILE));
        let too_large = || Error::shape(op, "too many tiles for one launch", &[a.shape(), b.shape()]);
        let grid_x = u32::try_from(tiles).ok().filter(|&t| t <= i32::MAX as u32).ok_or_else(too_large)?;
        let (parts, chunk) = split(self.k, tiles.saturating_mul(outer));
        let define = self.with_activation(vec![("scalar_t", y.dtype().into())]);
        let sums = match parts {
            1 => None,
            _ => Some(Array::uninit(&[parts, y.len()], computed_in(y.dtype()), Layout::RowMajor, &y.context())?),
        };
        Launch::new(y, "matmul.cu", "matmul", &define)?
            .array(y)
            .optional(sums.as_ref())
            .array(a)
            .array(b)
            .optional(bias)
            .value(
                [self.m, self.n, self.k, self.a.rows, self.a.cols, self.b.rows, self.b.cols, outer, inner, chunk]
                    .map(|v| v as i64),
            )
            .value(Dims::new(op, &self.outer, &self.a.batch)?)
            .value(Dims::new(op, &self.outer, &self.b.batch)?)
            .value(Dims::new(op, &self.inner, &self.a.batch)?)
            .value(Dims::new(op, &self.inner, &self.b.batch)?)
            .run([grid_x, parts as u32, outer.min(65535) as u32], [256, 1, 1], 0)?;
        match sums {
            Some(sums) => sum_parts(y, &sums, bias, parts, self.n, "matmul.cu", &define),
            None => Ok(()),
        }
    }
}

/// The dtype that kernels sum `dtype` in.
pub(crate) fn computed_in(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Into how many parts of which length a sum of `k` terms is cut when `tiles` tiles are computed at once: by the shape alone,
/// so that the result is the same on every device. Long sums with few tiles would leave most of a device idle; and parts of
/// a few thousand terms keep the rounding of f32 small.
pub(crate) fn split(k: usize, tiles: usize) -> (usize, usize) {
    const SHORT: usize = 512;
    const LONG: usize = 8192;
    const ENOUGH: usize = 512;
    let parts = (ENOUGH / tiles.max(1)).min(k / SHORT).max(k.div_ceil(LONG)).clamp(1, 65535);
    let chunk = k.div_ceil(parts).next_multiple_of(16).max(16);
    (k.div_ceil(chunk).max(1), chunk)
}

/// y = the sum of `parts` (parts, len of y) in order, + `bias` of `cols` elements; `file` is one that includes `parts.cuh`.
pub(crate) fn sum_parts(
    y: &Array,
    sums: &Array,
    bias: Option<&Array>,
    parts: usize,
    cols: usize,
    file: &'static str,
    define: &[(&'static str, crate::cuda::Define)],
) -> Result<()> {
    Launch::new(y, file, "sum_parts", define)?
        .array(y)
        .array(sums)
        .optional(bias)
        .value(y.len() as i64)
        .value(parts as i64)
        .value(cols as i64)
        .run_1d(y.len())
}

/// The column sums of row-major `x` seen as (rows, cols): the gradient of a bias.
pub(crate) fn column_sums(op: &'static str, x: &Array, rows: usize, cols: usize) -> Result<Array> {
    if let Context::Cpu = x.context() {
        return real_type!(op, x.dtype(), F => {
            // In double precision, row after row: exact enough for any number of rows.
            let mut sums = memory::filled(cols, 0.0)?;
            if cols > 0 {
                for row in x.real::<F>(op)?.chunks_exact(cols) {
                    sums.iter_mut().zip(row).for_each(|(s, v)| *s += v.to_f64());
                }
            }
            let mut y = Buffer::<F>::stale(cols)?;
            y.iter_mut().zip(&sums).for_each(|(y, &s)| *y = F::from_f64(s));
            Array::from_real(y, &[cols], x.dtype())
        });
    }
    let pack = 16 / x.dtype().size();
    let packed = cols.is_multiple_of(pack);
    let groups = if packed { cols / pack } else { cols };
    let lanes = groups.next_power_of_two().min(32);
    let blocks = groups.div_ceil(lanes);
    let kernel = if packed { "column_sums_packed" } else { "column_sums" };
    in_parts(kernel, x, cols, split(rows, blocks), |launch, chunk, parts| {
        let launch = launch.value(rows as i64).value(cols as i64).value(chunk as i64).value(lanes as i32);
        launch.run([blocks as u32, parts, 1], [256, 1, 1], 0)
    })
}

/// The sums over all axes but the second of row-major `x`, on a GPU, seen as (images, channels, plane).
pub(crate) fn plane_sums(x: &Array, images: usize, channels: usize, plane: usize) -> Result<Array> {
    // A chunk is a multiple of 16 elements.
    let kernel = if plane.is_multiple_of(16 / x.dtype().size()) { "plane_sums_packed" } else { "plane_sums" };
    in_parts(kernel, x, channels, split(images * plane, channels), |launch, chunk, parts| {
        let launch = launch.value(channels as i64).value(plane as i64).value((images * plane) as i64).value(chunk as i64);
        launch.run([channels as u32, parts, 1], [256, 1, 1], 0)
    })
}

/// `n` sums by a kernel of `column_sums.cu` that leaves parts of them, which are added in order.
fn in_parts(
    kernel: &'static str,
    x: &Array,
    n: usize,
    (parts, chunk): (usize, usize),
    run: impl FnOnce(Launch, usize, u32) -> Result<()>,
) -> Result<Array> {
    const FILE: &str = "column_sums.cu";
    let define = [("scalar_t", x.dtype().into())];
    let y = Array::uninit(&[n], x.dtype(), Layout::RowMajor, &x.context())?;
    let sums = Array::uninit(&[parts, n], computed_in(x.dtype()), Layout::RowMajor, &x.context())?;
    run(Launch::new(&y, FILE, kernel, &define)?.array(&sums).array(x), chunk, parts as u32)?;
    sum_parts(&y, &sums, None, parts, n.max(1), FILE, &define)?;
    Ok(y)
}
