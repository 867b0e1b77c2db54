//! Elements chosen by integers: take (rows of a table), one_hot, pick.

use super::shape_ops::one;
use crate::{
    Array, Context, DType, Error, Layout, Result, Tensor,
    autograd::{Op, Saved, apply1},
    cpu::{buffers::Buffer, memory, parallel},
    cuda::Launch,
    dtype::{Element, element_type, real_type},
    shape::{self, checked_numel, numel},
};

/// Row-major integers, as the CPU's loops want them.
fn integers(op: &'static str, index: &Array) -> Result<Vec<i64>> {
    match index.dtype() {
        DType::I64 => index.to_vec::<i64>(),
        DType::U8 => memory::collected(index.as_slice::<u8>()?.iter().map(|&i| i64::from(i))),
        dtype => Err(not_integers(op, dtype)),
    }
}

fn not_integers(op: &'static str, dtype: DType) -> Error {
    Error::DType { op, dtype, hint: "indices are i64 or u8; use `cast`" }
}

/// The indices as positions below `bound`, or the first one that is not.
fn positions(op: &'static str, index: &Array, bound: usize) -> Result<Vec<usize>> {
    let inside = |(j, &i): (usize, &i64)| match usize::try_from(i) {
        Ok(i) if i < bound => Ok(i),
        _ => Err(Error::invalid(op, format!("index {i} at position {j} is outside of 0..{bound}"))),
    };
    let index = integers(op, index)?;
    let mut places = memory::reserved(index.len())?;
    for i in index.iter().enumerate() {
        places.push(inside(i)?);
    }
    Ok(places)
}

/// Both inputs of an op that reads its first one at the places of its second one, in row-major order.
fn table_and_index(op: &'static str, x: &[&Array]) -> Result<(Array, Array)> {
    let [x, index] = x else { return Err(Error::invalid(op, "two inputs are needed")) };
    if index.dtype().is_float() {
        return Err(not_integers(op, index.dtype()));
    }
    Ok((x.to_layout(Layout::RowMajor)?, index.to_layout(Layout::RowMajor)?))
}

/// A launch of `kernels/index.cu` with its three pointers.
fn launch(name: &'static str, out: &Array, input: Option<&Array>, index: &Array) -> Result<Launch> {
    let launch = Launch::new(out, "index.cu", name, &[("scalar_t", out.dtype().into()), ("index_t", index.dtype().into())])?;
    let launch = launch.array(out);
    Ok(input.into_iter().fold(launch, Launch::array).array(index))
}

/// The places of the indices in the order of their rows, and where each row's begin (and the last one's end), on the GPU.
fn sorted(like: &Array, index: &Array, rows: usize) -> Result<(Array, Array)> {
    // `ORDER_THREADS` of the kernel.
    const THREADS: u32 = 512;
    let count = index.len();
    if count > u32::MAX as usize {
        return Err(Error::shape("take", "at most 2^32 - 1 indices have a gradient", &[index.shape()]));
    }
    let numbers = |n: usize| Array::uninit(&[n.max(1)], DType::I64, Layout::RowMajor, &like.context());
    let (order, spare, starts) = (numbers(count)?, numbers(count)?, numbers(rows + 1)?);
    let defines = [("scalar_t", like.dtype().into()), ("index_t", index.dtype().into())];
    let launch = Launch::new(like, "index.cu", "take_order", &defines)?.array(&order).array(&spare).array(index);
    launch.value(rows as i64).value(count as i64).run([1; 3], [THREADS, 1, 1], 0)?;
    let launch = Launch::new(like, "index.cu", "take_starts", &defines)?.array(&starts).array(&order).array(index);
    launch.value(rows as i64).value(count as i64).run_1d(rows + 1)?;
    Ok((order, starts))
}

/// y\[o, j, i\] = x\[o, index\[j\], i\] along one axis; dx adds up dy over equal indices, in their order.
#[derive(Clone, Copy, Debug)]
pub struct Take {
    /// The axis of x that the indices choose from.
    pub axis: usize,
}

impl Take {
    /// Extents before, of, and after the axis.
    fn split(&self, shape: &[usize]) -> Result<(usize, usize, usize)> {
        match shape.get(self.axis) {
            Some(&rows) => Ok((numel(&shape[..self.axis]), rows, numel(&shape[self.axis + 1..]))),
            None => Err(Error::shape(self.name(), format!("there is no axis {}", self.axis), &[shape])),
        }
    }
}

impl Op for Take {
    fn name(&self) -> &'static str {
        "take"
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let (x, index) = table_and_index(self.name(), inputs)?;
        let (outer, rows, inner) = self.split(x.shape())?;
        let count = index.len();
        let shape = [&x.shape()[..self.axis], index.shape(), &x.shape()[self.axis + 1..]].concat();
        let at = if x.context().is_gpu() { Vec::new() } else { positions(self.name(), &index, rows)? };
        let mut y = Array::uninit(&shape, x.dtype(), Layout::RowMajor, &x.context())?;
        match x.context() {
            Context::Cpu => {
                element_type!(x.dtype(), T => {
                    let x = x.as_slice::<T>()?;
                    parallel::rows(y.as_mut_slice::<T>()?, inner, |row, y| {
                        let source = (row / count * rows + at[row % count]) * inner;
                        y.copy_from_slice(&x[source..source + inner]);
                    });
                });
            }
            Context::Gpu(_) => {
                let n = y.len();
                let launch = launch("take_fwd", &y, Some(&x), &index)?;
                launch.value(rows as i64).value(count as i64).value(inner as i64).value(n as i64).run_1d(n)?;
            }
        }
        debug_assert_eq!(y.len(), outer * count * inner);
        if saved.wanted() {
            saved.keep(&index);
        }
        saved.outputs(self.name(), inputs, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        let (dy, index) = (dy.to_layout(Layout::RowMajor)?, saved.get(0)?);
        let shape = saved.shape(0);
        let (_, rows, inner) = self.split(shape)?;
        let count = index.len();
        let dx = match dy.context() {
            Context::Cpu => real_type!(self.name(), dy.dtype(), F => {
                let at = positions(self.name(), index, rows)?;
                // The positions sorted by row: the table's rows are then independent, each sum in index order.
                let mut hits = memory::collected(0..count)?;
                hits.sort_unstable_by_key(|&j| (at[j], j));
                let hits_of = |row: usize| {
                    let first = hits.partition_point(|&j| at[j] < row);
                    let n = hits[first..].partition_point(|&j| at[j] == row);
                    &hits[first..first + n]
                };
                let dy_ = dy.real::<F>(self.name())?;
                let mut dx = Buffer::<F>::zeros(numel(shape))?;
                parallel::rows(&mut dx, inner, |row, dx| {
                    let outer = row / rows;
                    for j in hits_of(row % rows) {
                        let source = (outer * count + j) * inner;
                        dx.iter_mut().zip(&dy_[source..source + inner]).for_each(|(dx, &dy)| *dx += dy);
                    }
                });
                Array::from_real(dx, shape, dy.dtype())
            })?,
            Context::Gpu(_) => {
                let dx = Array::uninit(shape, dy.dtype(), Layout::RowMajor, &dy.context())?;
                let n = dx.len();
                if n > 0 {
                    let (order, starts) = sorted(&dx, index, rows)?;
                    let defines = [("scalar_t", dx.dtype().into()), ("index_t", index.dtype().into())];
                    Launch::new(&dx, "index.cu", "take_bwd", &defines)?
                        .array(&dx)
                        .array(&dy)
                        .array(&order)
                        .array(&starts)
                        .value(rows as i64)
                        .value(count as i64)
                        .value(inner as i64)
                        .value(n as i64)
                        .run_1d(n)?;
                }
                dx
            }
        };
        Ok(vec![Some(dx), None])
    }
}

/// y\[j, c\] = 1 where c = index\[j\], else 0; integers carry no gradient.
#[derive(Clone, Copy, Debug)]
pub struct OneHot {
    /// The extent of the new last axis.
    pub classes: usize,
    /// The type of y.
    pub dtype: DType,
}

impl Op for OneHot {
    fn name(&self) -> &'static str {
        "one_hot"
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let index = one(self.name(), x)?.to_layout(Layout::RowMajor)?;
        if index.dtype().is_float() {
            return Err(not_integers(self.name(), index.dtype()));
        }
        let shape = [index.shape(), &[self.classes]].concat();
        let y = match index.context() {
            Context::Cpu => {
                let at = integers(self.name(), &index)?;
                let mut y = Array::zeros(&shape, self.dtype, &Context::Cpu)?;
                element_type!(self.dtype, T => {
                    for (row, &i) in y.as_mut_slice::<T>()?.chunks_mut(self.classes.max(1)).zip(&at) {
                        if let Some(place) = usize::try_from(i).ok().and_then(|i| row.get_mut(i)) {
                            *place = T::from_f64(1.0);
                        }
                    }
                });
                y
            }
            Context::Gpu(_) => {
                let y = Array::uninit(&shape, self.dtype, Layout::RowMajor, &index.context())?;
                let n = y.len();
                launch("one_hot", &y, None, &index)?.value(self.classes as i64).value(n as i64).run_1d(n)?;
                y
            }
        };
        saved.outputs(self.name(), x, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        saved.check(self.name(), dy)?;
        Ok(vec![None])
    }
}

/// y\[j\] = x\[j, index\[j\]\] along the last axis; dx is dy at the chosen places, else 0.
#[derive(Clone, Copy, Debug)]
pub struct Pick;

impl Op for Pick {
    fn name(&self) -> &'static str {
        "pick"
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let (x, index) = table_and_index(self.name(), inputs)?;
        let Some((&classes, lead)) = x.shape().split_last().filter(|(_, lead)| *lead == index.shape()) else {
            return Err(Error::shape(
                self.name(),
                "the indices need the input's shape without its last axis",
                &[x.shape(), index.shape()],
            ));
        };
        let mut y = Array::uninit(lead, x.dtype(), Layout::RowMajor, &x.context())?;
        match x.context() {
            Context::Cpu => {
                let at = positions(self.name(), &index, classes)?;
                element_type!(x.dtype(), T => {
                    let x = x.as_slice::<T>()?;
                    for (j, (y, &c)) in y.as_mut_slice::<T>()?.iter_mut().zip(&at).enumerate() {
                        *y = x[j * classes + c];
                    }
                });
            }
            Context::Gpu(_) => {
                let n = y.len();
                launch("pick_fwd", &y, Some(&x), &index)?.value(classes as i64).value(n as i64).run_1d(n)?;
            }
        }
        if saved.wanted() {
            saved.keep(&index);
        }
        saved.outputs(self.name(), inputs, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        let (dy, index) = (dy.to_layout(Layout::RowMajor)?, saved.get(0)?);
        let shape = saved.shape(0);
        let classes = shape.last().copied().unwrap_or(1);
        let dx = match dy.context() {
            Context::Cpu => real_type!(self.name(), dy.dtype(), F => {
                let at = positions(self.name(), index, classes)?;
                let dy_ = dy.real::<F>(self.name())?;
                let mut dx = Buffer::<F>::zeros(numel(shape))?;
                for (j, (&c, &dy)) in at.iter().zip(dy_.iter()).enumerate() {
                    dx[j * classes + c] = dy;
                }
                Array::from_real(dx, shape, dy.dtype())
            })?,
            Context::Gpu(_) => {
                let dx = Array::uninit(shape, dy.dtype(), Layout::RowMajor, &dy.context())?;
                let n = dx.len();
                launch("pick_bwd", &dx, Some(&dy), index)?.value(classes as i64).value(n as i64).run_1d(n)?;
                dx
            }
        };
        Ok(vec![Some(dx), None])
    }
}

impl Tensor {
    /// The slices of this tensor at `indices` (i64 or u8, of any shape) along `axis`: rows of a table, an embedding.
    ///
    /// For x of shape (a, rows, b), axis 1 and indices of shape s, the result has shape (a, s, b). The gradient adds up in
    /// the order of the indices, so that it is reproducible.
    ///
    /// # Errors
    /// [`Error::DType`] for indices of a float type. An index outside of `0..rows` is [`Error::Invalid`] on the CPU; on the
    /// GPU, where looking would mean waiting, its slice is NaN (0 in integer arrays) and nothing is read or written outside.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::arange(0.0, 6.0, 1.0, &cpu())?.reshape(&[3, 2])?;
    /// let rows = Tensor::from_vec(vec![2i64, 0, 2], &[3], &cpu())?;
    /// assert_eq!(x.take(&rows, 0)?.to_vec()?, [4., 5., 0., 1., 4., 5.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[doc(alias("embedding", "index_select"))]
    pub fn take(&self, indices: &Tensor, axis: isize) -> Result<Tensor> {
        apply1(Take { axis: shape::axis("take", axis, self.rank())? }, &[self, indices])
    }

    /// f32 vectors that are 1 at the place of each index (i64 or u8) and 0 elsewhere, along a new last axis.
    ///
    /// An index outside of `0..classes` gives a vector of zeros.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let label = Tensor::from_vec(vec![2u8, 0], &[2], &cpu())?;
    /// assert_eq!(label.one_hot(3)?.to_vec()?, [0., 0., 1., 1., 0., 0.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn one_hot(&self, classes: usize) -> Result<Tensor> {
        apply1(OneHot { classes, dtype: DType::F32 }, &[self])
    }

    /// One element of each vector along the last axis: x\[j, index\[j\]\], the book's `y_hat[[0, 1], y]`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless the indices have this tensor's shape without its last axis; indices out of range as in
    /// [`Tensor::take`].
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let y_hat = Tensor::from_vec(vec![0.1f32, 0.3, 0.6, 0.3, 0.2, 0.5], &[2, 3], &cpu())?;
    /// let y = Tensor::from_vec(vec![0i64, 2], &[2], &cpu())?;
    /// assert_eq!(y_hat.pick(&y)?.to_vec()?, [0.1, 0.5]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[doc(alias = "gather")]
    pub fn pick(&self, indices: &Tensor) -> Result<Tensor> {
        apply1(Pick, &[self, indices])
    }

    /// The n×n identity matrix in f32.
    pub fn eye(n: usize, ctx: &Context) -> Result<Tensor> {
        checked_numel("eye", &[n, n])?;
        let rows = Array::from_vec(memory::collected((0..n).map(|i| i as i64))?, &[n], ctx)?;
        Tensor::new(rows).one_hot(n)
    }
}
