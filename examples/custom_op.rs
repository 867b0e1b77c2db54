//! An operation of one's own: a formula, a CUDA kernel, a gradient, and the proof that the three agree.
//!
//!     cargo run --release --example custom_op

use hadal::{
    Array, DType, Layout, Result, Tensor, Trainer,
    autograd::{self, Op, Saved},
    check, cpu,
    cuda::Source,
    init,
    loss::L2,
    nn::{self, Block, Forward},
    optim::Sgd,
    println, try_gpu,
};

/// Compiled at the first launch for the device and dtype at hand; hadal's `common.cuh` is found without a path.
static SWISH: Source = Source::new("examples/swish.cu", include_str!("swish.cu"));

/// y = x·s(βx), s(z) = 1 / (1 + e⁻ᶻ) (Ramachandran et al. 2017). x and y of one shape.
#[derive(Debug)]
struct Swish {
    beta: f64,
}

impl Swish {
    /// `f` of each element and its partner in `others`, in x's shape, dtype and layout; on the CPU.
    fn map(x: &Array, others: &Array, f: impl Fn(f64, f64) -> f64) -> Result<Array> {
        let values = x.to_f64_vec()?.into_iter().zip(others.to_f64_vec()?).map(|(a, b)| f(a, b)).collect();
        check::cast(&Array::from_vec(values, x.shape(), &cpu())?, x.dtype())?.to_layout(x.layout())
    }

    fn sigmoid(&self, x: f64) -> f64 {
        1.0 / (1.0 + (-self.beta * x).exp())
    }
}

impl Op for Swish {
    fn name(&self) -> &'static str {
        "swish"
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let x = x[0];
        saved.keep(x);
        if !x.context().is_gpu() {
            return Ok(vec![Self::map(x, x, |x, _| x * self.sigmoid(x))?]);
        }
        let mut y = x.empty_like()?;
        let launch = SWISH.kernel("swish_fwd", x, &[("scalar_t", x.dtype().into())])?;
        let launch = launch.array_mut(&mut y).array(x).value(self.beta).value(x.len() as i64);
        // SAFETY: the arguments are those of swish_fwd, which touches n elements of y and x; both have as many.
        unsafe { launch.run_1d(x.len()) }?;
        Ok(vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let x = saved.get(0)?;
        if !x.context().is_gpu() {
            let slope = |x: f64| {
                let s = self.sigmoid(x);
                s + self.beta * x * s * (1.0 - s)
            };
            return Ok(vec![Some(Self::map(x, &dy[0], |x, dy| dy * slope(x))?)]);
        }
        let dy = dy[0].to_layout(x.layout())?;
        let mut dx = x.empty_like()?;
        let launch = SWISH.kernel("swish_bwd", x, &[("scalar_t", x.dtype().into())])?;
        let launch = launch.array_mut(&mut dx).array(x).array(&dy).value(self.beta).value(x.len() as i64);
        // SAFETY: the arguments are those of swish_bwd; x, dy and dx have n elements in one order.
        unsafe { launch.run_1d(x.len()) }?;
        Ok(vec![Some(dx)])
    }
}

hadal::block! {
    struct Net { hidden: nn::Dense, out: nn::Dense }
}

impl Forward for Net {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = autograd::apply1(Swish { beta: 1.5 }, &[&self.hidden.forward(x)?])?;
        self.out.forward(&h)
    }
}

fn main() -> Result<()> {
    let op = Swish { beta: 1.5 };
    let ctx = try_gpu(0);

    // The gradient is that of the formula: finite differences, in double precision on the CPU.
    check::gradients(&op, &[check::random(&[3, 17], 1)?])?;
    println!("gradient: agrees with finite differences");

    // The kernel computes what the CPU does, forward and backward, in each dtype and layout.
    if ctx.is_gpu() {
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let x = check::cast(&check::random(&[2, 3, 5, 7], 2)?, dtype)?;
            for layout in [Layout::RowMajor, Layout::ChannelsLast] {
                check::parity(&op, &[x.to_layout(layout)?], &cpu(), &ctx)?;
            }
            println!("parity:   {ctx} agrees with cpu(0) in {dtype}, both layouts (bound {:.1e})", check::bound(dtype));
        }
    } else {
        println!("parity:   not run, there is no GPU: {}", hadal::gpu(0).err().map_or(String::new(), |e| e.to_string()));
    }

    // And it learns: y = x² on [-1, 1].
    let net = Net { hidden: nn::Dense::new(16), out: nn::Dense::new(1) };
    net.initialize(init::Xavier::new(), &ctx)?;
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.5));
    let x = Tensor::arange(-1.0, 1.0, 0.05, &ctx)?.reshape(&[-1, 1])?;
    let y = x.square()?;
    let mut losses = Vec::new();
    for _ in 0..200 {
        let l = autograd::record(|| L2::new().forward(&net.forward(&x)?, &y))?;
        l.backward()?;
        trainer.step(x.len())?;
        losses.push(l.mean(&[])?.item()?);
    }
    println!("training: loss {:.5} -> {:.5} in {} steps on {ctx}", losses[0], losses[losses.len() - 1], losses.len());
    Ok(())
}
