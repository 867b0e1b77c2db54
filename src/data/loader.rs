//! Batches as tensors: prepared by threads for the CPU, gathered from bytes on the device for a GPU.

use std::{
    ops::Range,
    sync::{Arc, Once, OnceLock},
};

use super::{Batches, ImageSet, LastBatch, Position, Prefetch, ResizePlan, Sampler};
use crate::{
    Array, Context, DType, Element, Error, Layout, Result, Tensor,
    cpu::{buffers::Buffer, memory},
    cuda::Launch,
    dtype::element_type,
};

/// Images (N, 1, H, W) in [0, 1], f32 unless asked otherwise, and labels (N,) of type i64.
pub type Batch = (Tensor, Tensor);

/// Hands out an [`ImageSet`] in batches on a context.
///
/// As in the book, images are resized as bytes, then divided by 255; the last batch may be smaller. On a GPU the bytes
/// are uploaded once, and kernels gather, resize and scale; on the CPU threads prepare batches ahead.
///
/// ```
/// use hadal::{cpu, data::{DataLoader, FashionMnist}};
/// let train = FashionMnist::sample("an example")?.train;
/// let loader = DataLoader::new(&train.take(100), 32, &cpu())?.resize(14, 14)?.shuffle(1);
/// let sizes: Vec<usize> = loader.epoch(0)?.map(|b| Ok(b?.0.len())).collect::<hadal::Result<_>>()?;
/// assert_eq!(sizes, [32, 32, 32, 4]);
/// # Ok::<(), hadal::Error>(())
/// ```
#[derive(Clone)]
pub struct DataLoader {
    shared: Arc<Shared>,
    sampler: Sampler,
    workers: usize,
}

/// The `Images` of `kernels/data.cu`: h, w, oh, ow and whether rows are staged.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Images {
    count: i64,
    sizes: [i32; 6],
}

/// What worker threads need.
struct Shared {
    set: ImageSet,
    plan: ResizePlan,
    dtype: DType,
    context: Context,
    /// Images and labels as bytes, and the resize table, on the device; uploaded at the first batch.
    device: OnceLock<[Array; 3]>,
}

impl DataLoader {
    /// Batches of `batch_size` in the set's order, at its own size.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a batch size of 0.
    pub fn new(set: &ImageSet, batch_size: usize, ctx: &Context) -> Result<Self> {
        let plan = ResizePlan::new(set.rows(), set.cols(), set.rows(), set.cols())?;
        let shared = Shared { set: set.clone(), plan, dtype: DType::F32, context: *ctx, device: OnceLock::new() };
        Ok(DataLoader { shared: Arc::new(shared), sampler: Sampler::new(set.len(), batch_size)?, workers: 2 })
    }

    /// Resizes every image to `h` × `w`, bilinear on bytes.
    pub fn resize(mut self, h: usize, w: usize) -> Result<Self> {
        let Shared { set, dtype, context, .. } = &*self.shared;
        let plan = ResizePlan::new(set.rows(), set.cols(), h, w)?;
        let shared = Shared { set: set.clone(), plan, dtype: *dtype, context: *context, device: OnceLock::new() };
        self.shared = Arc::new(shared);
        Ok(self)
    }

    /// Gives images in this dtype (f32 by default), each pixel rounded once, so that a net of 16-bit parameters needs no cast.
    ///
    /// ```
    /// use hadal::{DType, cpu, data::{DataLoader, FashionMnist}};
    /// let set = FashionMnist::sample("an example")?.test.take(8);
    /// let (x, _) = DataLoader::new(&set, 8, &cpu())?.dtype(DType::BF16)?.epoch(0)?.next().unwrap()?;
    /// assert_eq!(x.dtype(), DType::BF16);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::DType`] for an integer type, in which 0 to 1 has no place.
    pub fn dtype(mut self, dtype: DType) -> Result<Self> {
        if !dtype.is_float() {
            return Err(Error::DType { op: "data", dtype, hint: "images in [0, 1] need a float type" });
        }
        let Shared { set, plan, context, .. } = &*self.shared;
        let shared = Shared { set: set.clone(), plan: plan.clone(), dtype, context: *context, device: OnceLock::new() };
        self.shared = Arc::new(shared);
        Ok(self)
    }

    /// Another order in every epoch, decided by the seed.
    pub fn shuffle(mut self, seed: u64) -> Self {
        self.sampler = self.sampler.shuffle(seed);
        self
    }

    /// What happens to a last batch that is not full.
    pub fn last_batch(mut self, last: LastBatch) -> Self {
        self.sampler = self.sampler.last_batch(last);
        self
    }

    /// How many threads prepare batches for the CPU; 0 prepares them when asked for.
    pub fn workers(mut self, n: usize) -> Self {
        self.workers = n;
        self
    }

    /// Images in an epoch.
    pub fn samples(&self) -> usize {
        self.sampler.samples()
    }

    /// Batches in an epoch.
    pub fn batches(&self) -> usize {
        self.sampler.batches()
    }

    /// The nominal batch size.
    pub fn batch_size(&self) -> usize {
        self.sampler.batch_size()
    }

    /// Where batches are made.
    pub fn context(&self) -> Context {
        self.shared.context
    }

    /// The batches of an epoch; its number decides the order when shuffled.
    pub fn epoch(&self, epoch: u64) -> Result<Epoch> {
        self.start(self.sampler.epoch(epoch)?)
    }

    /// The rest of an epoch from a saved position.
    pub fn resume(&self, at: Position) -> Result<Epoch> {
        self.start(self.sampler.resume(at)?)
    }

    fn start(&self, batches: Batches) -> Result<Epoch> {
        let remaining = batches.remaining();
        if self.shared.context.is_gpu() {
            return Ok(Epoch(Source::Device { shared: self.shared.clone(), batches, next: remaining }));
        }
        let shared = self.shared.clone();
        let make = move |i: usize| match batches.get(i) {
            Some(numbers) => shared.on_host(numbers),
            None => Err(Error::invalid("data", format!("there is no batch {i}"))),
        };
        // Two batches ahead for each worker keep the device busy without holding much memory.
        Prefetch::without_draws(remaining, self.workers, self.workers.max(1).saturating_mul(2), make)
            .map(|p| Epoch(Source::Host(p)))
    }
}

impl Shared {
    fn on_host(&self, numbers: &[u32]) -> Result<Batch> {
        let (pixels, labels) = self.set.gather(numbers, Some(&self.plan))?;
        let (h, w) = self.plan.target();
        let x = element_type!(self.dtype, T => {
            // Divided in f32 at least, as a kernel does.
            let units: Vec<T> = (0..=255u8).map(|byte| match self.dtype {
                DType::F64 => T::from_f64(f64::from(byte) / 255.0),
                _ => T::from_f64(f64::from(f32::from(byte) / 255.0)),
            }).collect();
            let mut x = Buffer::<T>::stale(pixels.len())?;
            x.iter_mut().zip(&pixels).for_each(|(x, &byte)| *x = units[usize::from(byte)]);
            Array::host(T::wrap(x), &[numbers.len(), 1, h, w], self.dtype)
        });
        let y = memory::collected(labels.into_iter().map(i64::from))?;
        Ok((Tensor::new(x), Tensor::from_vec(y, &[numbers.len()], &Context::Cpu)?))
    }

    fn uploaded(&self) -> Result<&[Array; 3]> {
        if let Some(d) = self.device.get() {
            return Ok(d);
        }
        let ctx = &self.context;
        let (images, labels) = (self.set.images(), self.set.labels());
        // Taps are four 32-bit numbers; they travel as bytes.
        let table: Vec<u8> = bytemuck::cast_slice(&self.plan.table()).to_vec();
        let device = [
            Array::from_vec(memory::copied(images)?, &[images.len()], ctx)?,
            Array::from_vec(memory::copied(labels)?, &[labels.len()], ctx)?,
            Array::from_vec(table.clone(), &[table.len()], ctx)?,
        ];
        Ok(self.device.get_or_init(|| device))
    }

    fn on_device(&self, numbers: &[u32]) -> Result<Batch> {
        let [images, labels, taps] = self.uploaded()?;
        let n = numbers.len();
        let ((h, w), (oh, ow)) = (self.plan.source(), self.plan.target());
        let small = |v: usize| i32::try_from(v).map_err(|_| Error::invalid("data", format!("an extent of {v} is too large")));
        let index = Array::from_vec(memory::collected(numbers.iter().map(|&i| i64::from(i)))?, &[n], &self.context)?;
        // The order that tensor cores read; with one channel the bytes are the same.
        let x = Array::uninit(&[n, 1, oh, ow], self.dtype, Layout::ChannelsLast, &self.context)?;
        let y = Array::uninit(&[n], DType::I64, Layout::RowMajor, &self.context)?;
        // Source rows of the output's width, in 16 bits, where a block may have as much without asking.
        let rows = h * ow * 2;
        let staged = rows <= 48 << 10;
        let sizes = [small(h)?, small(w)?, small(oh)?, small(ow)?, i32::from(staged), 0];
        // Small batches leave room for several blocks to an image.
        let parts = (1024 / n.max(1)).clamp(1, 4).min(oh) as u32;
        Launch::new(&x, "data.cu", "gather_resize_scale", &[("scalar_t", self.dtype.into())])?
            .array(&x)
            .array(&y)
            .array(images)
            .array(labels)
            .array(&index)
            .array(taps)
            .value(Images { count: self.set.len() as i64, sizes })
            .run([n as u32, parts, 1], [256, 1, 1], if staged { rows as u32 } else { 0 })?;
        Ok((Tensor::new(x), Tensor::new(y)))
    }
}

/// The batches of one epoch, in order.
pub struct Epoch(Source);

enum Source {
    Host(Prefetch<Batch>),
    Device { shared: Arc<Shared>, batches: Batches, next: Range<usize> },
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        match &mut self.0 {
            Source::Host(p) => p.next(),
            Source::Device { shared, batches, next } => batches.get(next.next()?).map(|numbers| shared.on_device(numbers)),
        }
    }
}

/// The book's `load_data_fashion_mnist`: training batches (shuffled by `seed`) and test batches, resized when asked.
///
/// Where the data set can neither be found nor downloaded, these are 2,000 training and 500 test images that ship with hadal; the
/// standard error output says so, once.
pub fn load_data_fashion_mnist(
    batch_size: usize,
    resize: Option<usize>,
    seed: u64,
    ctx: &Context,
) -> Result<(DataLoader, DataLoader)> {
    let data = super::fashion_mnist()?;
    if data.is_sample() {
        static SAID: Once = Once::new();
        SAID.call_once(|| eprintln!("{}", data.describe()));
    }
    data.loaders(batch_size, resize, seed, ctx)
}

impl super::FashionMnist {
    /// Training batches (shuffled by `seed`) and test batches on `ctx`, images resized to a square when asked.
    pub fn loaders(
        &self,
        batch_size: usize,
        resize: Option<usize>,
        seed: u64,
        ctx: &Context,
    ) -> Result<(DataLoader, DataLoader)> {
        let make = |set: &ImageSet| -> Result<DataLoader> {
            let loader = DataLoader::new(set, batch_size, ctx)?;
            resize.map_or(Ok(loader.clone()), |side| loader.resize(side, side))
        };
        Ok((make(&self.train)?.shuffle(seed), make(&self.test)?))
    }
}
