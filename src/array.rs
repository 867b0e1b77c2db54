//! [`Array`]: shape, dtype, layout, and memory on one device. No gradients here; see [`crate::Tensor`].

use std::{borrow::Cow, sync::Arc};

use crate::{
    Context, CpuStorage, DType, Element, Error, Layout, Result,
    cpu::{buffers::Buffer, memory},
    cuda::{self, DeviceBuffer, capture::Place},
    dtype::{Real, element_type},
    hybrid::trace,
    ops::number::Number,
    shape::{Display, checked_numel, numel, strides},
};

/// Where the elements of an array are.
#[derive(Clone, Debug)]
pub enum Storage {
    /// Host memory.
    Cpu(CpuStorage),
    /// Device memory.
    Cuda(Arc<DeviceBuffer>),
}

/// A dense n-dimensional array on one device, with value semantics: clones share memory until one is written.
///
/// ```
/// use hadal::{Array, cpu};
/// let a = Array::from_vec(vec![1f32, 2., 3., 4., 5., 6.], &[2, 3], &cpu())?;
/// assert_eq!(a.shape(), [2, 3]);
/// assert_eq!(a.to_vec::<f32>()?, [1., 2., 3., 4., 5., 6.]);
/// # Ok::<(), hadal::Error>(())
/// ```
#[derive(Clone)]
pub struct Array {
    shape: Vec<usize>,
    dtype: DType,
    layout: Layout,
    storage: Storage,
    /// Read from a tensor on the tape while recording: in another tensor the tape would not find it.
    recorded: bool,
}

/// What an array was before a write in place.
pub(crate) struct Kept {
    place: Place,
    shape: Vec<usize>,
    dtype: DType,
    layout: Layout,
    context: Context,
}

impl Array {
    /// An array of `shape` with the elements of `data` in row-major order.
    ///
    /// # Errors
    /// [`Error::Shape`] when the count of elements differs from the shape's.
    pub fn from_vec<T: Element>(data: Vec<T>, shape: &[usize], ctx: &Context) -> Result<Self> {
        if data.len() != checked_numel("array", shape)? {
            return Err(Error::shape("array", format!("{} elements given", data.len()), &[shape]));
        }
        match ctx {
            Context::Cpu => Ok(Self::host(T::wrap(Buffer::from_vec(data)), shape, T::DTYPE)),
            Context::Gpu(i) => {
                let buffer = cuda::device(*i)?.upload(bytemuck::cast_slice(&data))?;
                Ok(Self::device(buffer, shape, T::DTYPE))
            }
        }
    }

    /// All zeros.
    pub fn zeros(shape: &[usize], dtype: DType, ctx: &Context) -> Result<Self> {
        let n = checked_numel("zeros", shape)?;
        match ctx {
            Context::Cpu => Ok(element_type!(dtype, T => Self::host(T::wrap(Buffer::zeros(n)?), shape, dtype))),
            Context::Gpu(i) => {
                let buffer = cuda::device(*i)?.alloc(n * dtype.size())?;
                buffer.zero()?;
                Ok(Self::device(buffer, shape, dtype))
            }
        }
    }

    /// [`Array::zeros`] for what is only read: on a GPU small ones share their memory, so that nothing is filled.
    pub(crate) fn shared_zeros(shape: &[usize], dtype: DType, ctx: &Context) -> Result<Self> {
        const MOST: usize = 64 << 10;
        let bytes = checked_numel("zeros", shape)? * dtype.size();
        match ctx {
            Context::Gpu(i) if bytes <= MOST => {
                let storage = Storage::Cuda(cuda::device(*i)?.zeros(bytes)?);
                Ok(Array { shape: shape.to_vec(), dtype, layout: Layout::RowMajor, storage, recorded: false })
            }
            _ => Self::zeros(shape, dtype, ctx),
        }
    }

    /// Unspecified contents, for an op's output: every element is to be written before it is read.
    ///
    /// On the CPU the memory holds numbers of earlier arrays or zeros; on a GPU what the kernel does not write stays
    /// as it was, which [`check::parity`](crate::check::parity) turns into NaN.
    ///
    /// ```
    /// use hadal::{Array, DType, cpu};
    /// let mut y = Array::empty(&[2], DType::F32, &cpu())?;
    /// y.as_mut_slice::<f32>()?.copy_from_slice(&[1., 2.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] on a GPU; [`Error::Shape`] when the shape has too many elements.
    pub fn empty(shape: &[usize], dtype: DType, ctx: &Context) -> Result<Self> {
        Self::uninit(shape, dtype, Layout::RowMajor, ctx)
    }

    /// [`Array::empty`] with this array's shape, dtype, layout and device.
    pub fn empty_like(&self) -> Result<Self> {
        self.uninit_like()
    }

    /// All equal to `value`, rounded to the dtype.
    pub fn full(shape: &[usize], value: f64, dtype: DType, ctx: &Context) -> Result<Self> {
        let n = checked_numel("full", shape)?;
        match ctx {
            Context::Cpu => Ok(
                element_type!(dtype, T => Self::host(T::wrap(Buffer::full(n, <T as Element>::from_f64(value))?), shape, dtype)),
            ),
            Context::Gpu(_) => {
                let out = Self::uninit(shape, dtype, Layout::RowMajor, ctx)?;
                crate::ops::create::fill(&out, value)?;
                Ok(out)
            }
        }
    }

    /// `start, start + step, …` below `stop`: ⌈(stop − start) / step⌉ elements.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `step` is 0 or not finite.
    pub fn arange(start: f64, stop: f64, step: f64, dtype: DType, ctx: &Context) -> Result<Self> {
        let n = ((stop - start) / step).ceil();
        if step == 0.0 || !n.is_finite() || n > 1e12 {
            return Err(Error::invalid("arange", format!("cannot go from {start} to {stop} by {step}")));
        }
        // Below 2⁵³, where every integer is a double.
        let n = n.max(0.0) as usize;
        let at = |i: i64| start + i as f64 * step;
        element_type!(dtype, T => {
            checked_numel("arange", &[n])?;
            let mut data = memory::reserved::<T>(n)?;
            data.extend((0..n as i64).map(|i| <T as Element>::from_f64(at(i))));
            Self::from_vec(data, &[n], ctx)
        })
    }

    /// The shape; N,C,H,W for images whatever the layout.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        numel(&self.shape)
    }

    /// True when some extent is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The physical order of the elements.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Element strides in memory.
    pub fn strides(&self) -> Vec<usize> {
        strides(&self.shape, self.layout)
    }

    /// The device it lives on.
    pub fn context(&self) -> Context {
        match &self.storage {
            Storage::Cpu(_) => Context::Cpu,
            Storage::Cuda(b) => Context::Gpu(b.ordinal()),
        }
    }

    /// The memory itself.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The elements in row-major order, copied to the host; waits for the device.
    ///
    /// # Errors
    /// [`Error::DType`] when `T` is not the array's own type.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        trace::refuse("it reads values, on which it may depend");
        if T::DTYPE != self.dtype {
            return Err(Error::DType { op: "to_vec", dtype: self.dtype, hint: "ask for the array's own type, or `cast` first" });
        }
        let host = self.to_layout(Layout::RowMajor)?.to_context(&Context::Cpu)?;
        host.as_slice::<T>().and_then(memory::copied)
    }

    /// The elements as doubles, whatever the dtype; for printing and tests.
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        let host = self.to_layout(Layout::RowMajor)?.to_context(&Context::Cpu)?;
        element_type!(self.dtype, T => memory::collected(host.as_slice::<T>()?.iter().map(|&x| Element::to_f64(x))))
    }

    /// The elements in row-major order, rounded to f32.
    pub(crate) fn to_f32_vec(&self) -> Result<Vec<f32>> {
        let host = self.to_layout(Layout::RowMajor)?.to_context(&Context::Cpu)?;
        element_type!(self.dtype, T => memory::collected(host.as_slice::<T>()?.iter().map(|&x| Element::to_f64(x) as f32)))
    }

    /// The only element of a one-element array, as a double; waits for the device.
    pub fn item(&self) -> Result<f64> {
        if self.len() != 1 {
            return Err(Error::shape("item", "one element is needed", &[&self.shape]));
        }
        Ok(self.to_f64_vec()?[0])
    }

    /// The elements in memory order; host arrays only.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        match &self.storage {
            Storage::Cpu(s) => {
                T::view(s).ok_or(Error::DType { op: "as_slice", dtype: self.dtype, hint: "ask for the array's own type" })
            }
            Storage::Cuda(_) => Err(self.not_on("as_slice", Context::Cpu)),
        }
    }

    /// The elements in memory order for writing (copied first when shared); host arrays only.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        let (dtype, err) = (self.dtype, self.not_on("as_mut_slice", Context::Cpu));
        match &mut self.storage {
            Storage::Cpu(s) => {
                T::view_mut(s)?.ok_or(Error::DType { op: "as_mut_slice", dtype, hint: "ask for the array's own type" })
            }
            Storage::Cuda(_) => Err(err),
        }
    }

    /// The same elements on `ctx`; shares memory when already there.
    #[doc(alias("to", "cuda", "as_in_context"))]
    pub fn to_context(&self, ctx: &Context) -> Result<Self> {
        if *ctx == self.context() {
            return Ok(self.clone());
        }
        let moved = match (&self.storage, ctx) {
            (Storage::Cpu(_), Context::Gpu(i)) => element_type!(self.dtype, T => {
                Storage::Cuda(Arc::new(cuda::device(*i)?.upload(bytemuck::cast_slice(self.as_slice::<T>()?))?))
            }),
            (Storage::Cuda(b), Context::Cpu) => element_type!(self.dtype, T => {
                let mut host = Buffer::<T>::stale(self.len())?;
                b.download(bytemuck::cast_slice_mut(&mut host))?;
                Storage::Cpu(T::wrap(host))
            }),
            // From one GPU to another by way of the host.
            _ => return self.to_context(&Context::Cpu)?.to_context(ctx),
        };
        Ok(Array { storage: moved, ..self.clone() })
    }

    /// The same elements in another physical order; shares memory when nothing has to move. Only 4-D arrays know [`Layout::ChannelsLast`].
    pub fn to_layout(&self, layout: Layout) -> Result<Self> {
        if layout == self.layout {
            return Ok(self.clone());
        }
        if layout == Layout::ChannelsLast && self.rank() != 4 {
            return Err(Error::shape("to_layout", "channels-last needs 4 dimensions (N, C, H, W)", &[&self.shape]));
        }
        crate::ops::layout::convert(self, layout)
    }

    /// The same elements in row-major order under another shape; no copy if the array is row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] when the counts of elements differ.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if checked_numel("reshape", shape)? != self.len() {
            return Err(Error::shape(
                "reshape",
                format!("{} does not hold the elements of the input", Display(shape)),
                &[&self.shape],
            ));
        }
        Ok(Array { shape: shape.to_vec(), ..self.to_layout(Layout::RowMajor)? })
    }

    /// Fresh memory whose contents are unspecified; every element has to be written.
    pub(crate) fn uninit(shape: &[usize], dtype: DType, layout: Layout, ctx: &Context) -> Result<Self> {
        let n = checked_numel("array", shape)?;
        let out = match ctx {
            Context::Cpu => {
                element_type!(dtype, T => Self::host(T::wrap(Buffer::stale(n)?), shape, dtype))
            }
            Context::Gpu(i) => Self::device(cuda::device(*i)?.alloc(n * dtype.size())?, shape, dtype),
        };
        Ok(out.with_layout(layout))
    }

    /// Like [`Array::uninit`] with this array's shape, dtype, layout and device.
    pub(crate) fn uninit_like(&self) -> Result<Self> {
        Self::uninit(&self.shape, self.dtype, self.layout, &self.context())
    }

    /// A host array around `storage`.
    pub(crate) fn host(storage: CpuStorage, shape: &[usize], dtype: DType) -> Self {
        Array { shape: shape.to_vec(), dtype, layout: Layout::RowMajor, storage: Storage::Cpu(storage), recorded: false }
    }

    /// A device array around `buffer`.
    pub(crate) fn device(buffer: DeviceBuffer, shape: &[usize], dtype: DType) -> Self {
        Array {
            shape: shape.to_vec(),
            dtype,
            layout: Layout::RowMajor,
            storage: Storage::Cuda(Arc::new(buffer)),
            recorded: false,
        }
    }

    /// The same array, marked as read from a tensor on the tape, or not.
    pub(crate) fn with_recorded(mut self, recorded: bool) -> Self {
        self.recorded = recorded;
        self
    }

    /// True when it was read from a tensor on the tape, in [`crate::autograd::record`].
    pub(crate) fn is_recorded(&self) -> bool {
        self.recorded
    }

    /// Declares the memory to be in `layout`; the caller has written it so.
    pub(crate) fn with_layout(mut self, layout: Layout) -> Self {
        self.layout = if self.rank() == 4 { layout } else { Layout::RowMajor };
        self
    }

    /// A host array of `shape` and float type `dtype` from elements computed in `F` (halves are rounded to nearest).
    pub(crate) fn from_real<F: Real>(data: Buffer<F>, shape: &[usize], dtype: DType) -> Result<Self> {
        if F::DTYPE == dtype {
            return Ok(Self::host(F::wrap(data), shape, dtype));
        }
        element_type!(dtype, T => {
            let mut out = Buffer::<T>::stale(data.len())?;
            for (o, x) in out.iter_mut().zip(data.iter()) {
                *o = <T as Element>::from_f64(x.to_f64());
            }
            Ok(Self::host(T::wrap(out), shape, dtype))
        })
    }

    /// The elements of a host array in memory order as `F`, the type that the CPU computes its dtype in.
    pub(crate) fn real<F: Real>(&self, op: &'static str) -> Result<Cow<'_, [F]>> {
        match &self.storage {
            Storage::Cpu(s) => {
                F::read(s)?.ok_or(Error::DType { op, dtype: self.dtype, hint: "all operands need the same float type" })
            }
            Storage::Cuda(_) => Err(self.not_on(op, Context::Cpu)),
        }
    }

    /// The device memory.
    pub(crate) fn cuda(&self, op: &'static str) -> Result<&DeviceBuffer> {
        self.shared_buffer(op).map(|b| &**b)
    }

    fn shared_buffer(&self, op: &'static str) -> Result<&Arc<DeviceBuffer>> {
        match &self.storage {
            Storage::Cuda(b) => Ok(b),
            Storage::Cpu(_) => Err(self.not_on(op, Context::Gpu(0))),
        }
    }

    /// Overwrites the elements with `other`'s, from any device, in this array's own memory; it keeps its layout.
    ///
    /// ```
    /// use hadal::{Array, DType, cpu};
    /// let mut a = Array::zeros(&[2], DType::F32, &cpu())?;
    /// a.copy_from(&Array::from_vec(vec![1f32, 2.], &[2], &cpu())?)?;
    /// assert_eq!(a.to_vec::<f32>()?, [1., 2.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes or dtypes differ; [`Error::Graph`] when a [`cuda::Graph`] uses the memory and a clone of
    /// this array shares it.
    pub fn copy_from(&mut self, other: &Array) -> Result<()> {
        if self.shape != other.shape || self.dtype != other.dtype {
            let reason = format!("{} from {}: shape and dtype must be the same", self.dtype, other.dtype);
            return Err(Error::shape("copy_from", reason, &[&self.shape, &other.shape]));
        }
        let ctx = self.context();
        let other = other.to_layout(self.layout)?;
        let Storage::Cuda(buffer) = &self.storage else {
            *self = other.to_context(&ctx)?;
            return Ok(());
        };
        if buffer.in_graph() && Arc::strong_count(buffer) > 1 {
            let reason = "copy_from: a CUDA graph uses this memory, and a clone of the array shares it: drop that first, or \
                          make it a `copy()`";
            return Err(Error::Graph { context: ctx, reason: reason.into() });
        }
        self.make_unique()?;
        let to = self.cuda("copy_from")?;
        match &other.storage {
            Storage::Cuda(from) if from.ordinal() == to.ordinal() => to.copy_from(from),
            _ => {
                let host = other.to_context(&Context::Cpu)?;
                element_type!(host.dtype, T => to.write(bytemuck::cast_slice(host.as_slice::<T>()?)))
            }
        }
    }

    /// Writes in place by `f` to something that lasts from step to step: inside a [`cuda::Graph`]'s capture the memory stays
    /// the same one, also when `f` puts another array in this one's place.
    ///
    /// # Errors
    /// Of `f`; [`Error::Graph`] when the memory is shared while a graph is captured.
    pub(crate) fn in_place(&mut self, f: impl FnOnce(&mut Array) -> Result<()>) -> Result<()> {
        let before = self.place()?;
        f(self)?;
        self.keep_place(before)
    }

    /// What has to stay as it is when this is written in place: while capturing, the memory and what it holds.
    pub(crate) fn place(&self) -> Result<Option<Kept>> {
        let place = match &self.storage {
            Storage::Cuda(b) if cuda::capture::active() => Place::of(b)?,
            _ => None,
        };
        let kept =
            |place| Kept { place, shape: self.shape.clone(), dtype: self.dtype, layout: self.layout, context: self.context() };
        Ok(place.map(kept))
    }

    /// After the write: the values in the memory of before.
    pub(crate) fn keep_place(&mut self, before: Option<Kept>) -> Result<()> {
        let Some(before) = before else { return Ok(()) };
        if self.shape != before.shape || self.dtype != before.dtype || self.context() != before.context {
            let reason = "inside Graph::capture an array cannot be replaced by one of another shape, dtype or device";
            return Err(Error::Graph { context: before.context, reason: reason.into() });
        }
        let now = self.to_layout(before.layout)?;
        if let Some(buffer) = before.place.keep(now.shared_buffer("in_place")?)? {
            *self = Array { storage: Storage::Cuda(buffer), ..now };
        }
        Ok(())
    }

    /// Makes this the only owner of its memory, copying when it is shared; before a write in place.
    pub(crate) fn make_unique(&mut self) -> Result<()> {
        match &mut self.storage {
            Storage::Cpu(_) => element_type!(self.dtype, T => self.as_mut_slice::<T>().map(|_| ())),
            Storage::Cuda(b) => {
                // Weak handles, of CUDA graphs, only count the owners.
                if Arc::strong_count(b) > 1 {
                    *b = Arc::new(b.duplicate()?);
                } else {
                    b.forget();
                    cuda::capture::written(b);
                }
                Ok(())
            }
        }
    }

    /// `self += other`, same shape and dtype, in this array's layout and memory.
    pub fn add_assign(&mut self, other: &Array) -> Result<()> {
        if self.shape != other.shape || self.dtype != other.dtype {
            return Err(Error::shape("add_assign", format!("{} and {}", self.dtype, other.dtype), &[&self.shape, &other.shape]));
        }
        self.context().same("add_assign", &other.context())?;
        let other = other.to_layout(self.layout)?;
        if self.context().is_gpu() {
            self.make_unique()?;
            return crate::ops::create::accumulate(self, &other);
        }
        // In place where the type computes in itself; halves are widened and rounded.
        match self.dtype {
            DType::F32 => add_slices::<f32>(self, &other),
            DType::F64 => add_slices::<f64>(self, &other),
            DType::U8 => add_slices::<u8>(self, &other),
            DType::I64 => add_slices::<i64>(self, &other),
            DType::F16 | DType::BF16 => {
                *self = crate::ops::binary::binary(crate::ops::BinaryKind::Add, self, &other)?;
                Ok(())
            }
        }
    }

    fn not_on(&self, op: &'static str, wanted: Context) -> Error {
        Error::Context { op, left: self.context(), right: wanted }
    }
}

fn add_slices<T: Number>(a: &mut Array, b: &Array) -> Result<()> {
    crate::cpu::parallel::zip_assign(a.as_mut_slice::<T>()?, b.as_slice::<T>()?, |a, b| *a = a.plus(b));
    Ok(())
}
