//! The mean of whole planes.

use crate::{
    Array, Context, DType, Error, Layout, Result, Tensor,
    autograd::{Op, Saved, apply1},
    cpu::{buffers::Buffer, parallel},
    cuda::Launch,
    dtype::{Element, real_type},
    ops::operands::same_float,
};

/// y\[n, c, 0, 0\] = the mean of x\[n, c\]; (N, C, H, W) → (N, C, 1, 1). dx = dy / (H·W).
#[derive(Clone, Copy, Debug, Default)]
pub struct GlobalAvgPool2d;

impl GlobalAvgPool2d {
    /// Images, channels and the elements of a plane.
    fn extents(&self, x: &[usize]) -> Result<[usize; 3]> {
        match *x {
            [n, c, h, w] if h > 0 && w > 0 => Ok([n, c, h * w]),
            _ => Err(Error::shape(self.name(), "an input (N, C, H, W) with non-empty planes is needed", &[x])),
        }
    }
}

const FILE: &str = "global_pool.cu";

/// How channels-last kernels share images out: a block has some channels of one image.
struct Columns {
    images: usize,
    channels: usize,
    /// 16 bytes of channels for each thread.
    packed: bool,
    /// Threads side by side, each with its channels.
    lanes: usize,
    /// Blocks for the channels of an image.
    tiles: usize,
}

impl Columns {
    fn new(images: usize, channels: usize, dtype: DType) -> Self {
        let pack = 16 / dtype.size();
        let packed = channels.is_multiple_of(pack);
        let groups = if packed { channels / pack } else { channels };
        let lanes = groups.next_power_of_two().min(32);
        Columns { images, channels, packed, lanes, tiles: groups.div_ceil(lanes) }
    }

    /// Adds the last arguments and queues the kernel, with `parts` blocks for the pixels.
    fn run(&self, launch: Launch, size: usize, parts: usize) -> Result<()> {
        let launch = launch.value(size as i64).value(self.channels as i64).value(self.lanes as i32);
        launch.run([self.images as u32, self.tiles as u32, parts.min(65535) as u32], [256, 1, 1], 0)
    }
}

impl Op for GlobalAvgPool2d {
    fn name(&self) -> &'static str {
        "global_avg_pool2d"
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let dtype = same_float(self.name(), inputs)?;
        let [x] = inputs else { return Err(Error::invalid(self.name(), "one input is needed")) };
        let [n, c, size] = self.extents(x.shape())?;
        let shape = [n, c, 1, 1];
        if let Context::Gpu(_) = x.context() {
            // One element per plane: memory order is the same in both layouts.
            let y = Array::uninit(&shape, dtype, x.layout(), &x.context())?;
            let start = |kernel| Launch::new(&y, FILE, kernel, &[("scalar_t", dtype.into())]);
            if x.layout() == Layout::ChannelsLast {
                let grid = Columns::new(n, c, dtype);
                let launch = start(if grid.packed { "global_avg_columns_packed" } else { "global_avg_columns" })?;
                grid.run(launch.array(&y).array(x), size, 1)?;
            } else {
                // Short planes are shared by fewer threads than a warp has.
                let team = size.div_ceil(16 / dtype.size()).next_power_of_two().min(32);
                let launch = start("global_avg_rows")?.array(&y).array(x).value((n * c) as i64).value(size as i64);
                launch.value(team as i32).run_in_turn((n * c * team).div_ceil(256))?;
            }
            return saved.outputs(self.name(), inputs, vec![y]);
        }
        let rows = x.to_layout(Layout::RowMajor)?;
        let y = real_type!(self.name(), dtype, F => {
            let rows = rows.real::<F>(self.name())?;
            let mut y = Buffer::<F>::stale(n * c)?;
            // In double precision, which costs nothing beside the reading.
            let mean = |plane: &[F]| plane.iter().map(|v| v.to_f64()).sum::<f64>() / size as f64;
            let run = |i: usize, y: &mut [F]| y.iter_mut().for_each(|y| *y = F::from_f64(mean(&rows[i * size..][..size])));
            parallel::rows(&mut y, 1, run);
            Array::from_real(y, &shape, dtype)
        })?;
        saved.outputs(self.name(), inputs, vec![y.to_layout(x.layout())?])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [n, c, size] = self.extents(saved.shape(0))?;
        let [dy] = saved.gradients(self.name(), dy)?;
        let dtype = dy.dtype();
        if let Context::Gpu(_) = dy.context() {
            let dx = Array::uninit(saved.shape(0), dtype, dy.layout(), &dy.context())?;
            let start = |kernel| Launch::new(&dx, FILE, kernel, &[("scalar_t", dtype.into())]);
            if dy.layout() == Layout::ChannelsLast {
                let grid = Columns::new(n, c, dtype);
                let launch = start(if grid.packed { "global_avg_columns_packed_bwd" } else { "global_avg_columns_bwd" })?;
                grid.run(launch.array(&dx).array(dy), size, (size * grid.lanes).div_ceil(8 * 256))?;
            } else {
                let launch = start("global_avg_rows_bwd")?.array(&dx).array(dy).value(dx.len() as i64).value(size as i64);
                launch.run_packed(dx.len(), dtype)?;
            }
            return Ok(vec![Some(dx)]);
        }
        let dx = real_type!(self.name(), dtype, F => {
            // In either layout dy is (N, C) in memory.
            let dy = dy.real::<F>(self.name())?;
            let mut dx = Buffer::<F>::stale(n * c * size)?;
            parallel::rows(&mut dx, size, |i, dx| dx.fill(dy[i] / F::from_f64(size as f64)));
            Array::from_real(dx, saved.shape(0), dtype)
        })?;
        Ok(vec![Some(dx.to_layout(dy.layout())?)])
    }
}

impl Tensor {
    /// The mean of each plane; (N, C, H, W) → (N, C, 1, 1) (Lin et al. 2013, the end of NiN, GoogLeNet and ResNet).
    ///
    /// # Errors
    /// [`Error::Shape`] when the input is not 4-D or its planes are empty.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::arange(0.0, 8.0, 1.0, &cpu())?.array().reshape(&[1, 2, 2, 2])?;
    /// assert_eq!(Tensor::new(x).global_avg_pool2d()?.to_vec()?, [1.5, 5.5]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[doc(alias = "adaptive_avg_pool2d")]
    pub fn global_avg_pool2d(&self) -> Result<Tensor> {
        apply1(GlobalAvgPool2d, &[self])
    }
}
