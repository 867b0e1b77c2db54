//! First layers, images of few channels, on tensor cores: launches of `kernels/conv2d_stem.cu` and `conv2d_stem_weight.cu`. Such a layer
//! is bound by the memory traffic of its output; the other kernels load each of its pixels once for every tap, one element at a time.

use super::{
    ConvCall, ConvOutputs,
    first_layer_plan::{BandPlan, FirstLayerPass, FirstLayerWork, WARPS},
    problem::ConvPass,
};
use crate::{
    Array, DType, Layout, Result,
    cuda::Launch,
    gemm::{
        bn_stats::BnPartials,
        select::{Algorithm, Rank},
    },
};

#[derive(Clone, Copy, Debug)]
pub(super) struct FirstLayer;

/// The call, where the kernels compute it.
fn work<'a>(call: &ConvCall<'a>) -> Option<FirstLayerWork<'a>> {
    let conv = call.single()?;
    let pass = match call.pass {
        ConvPass::Fprop => FirstLayerPass::Fprop(conv.a.layout()),
        ConvPass::Wgrad => FirstLayerPass::Wgrad(conv.a.layout(), call.wants_bias_grad),
        ConvPass::Dgrad => return None,
    };
    FirstLayerWork::new(conv.problem, pass, call.dtype(), call.precision, call.arch)
}

impl Algorithm for FirstLayer {
    type Call<'a> = ConvCall<'a>;
    type Output = ConvOutputs;
    type Plan = BandPlan;
    const NAME: &'static str = "first_layer";

    fn supports(call: &ConvCall) -> Result<Option<Rank>> {
        Ok(work(call).map(|_| Rank::Specialised))
    }

    fn plans(call: &ConvCall, offer: &mut dyn FnMut(f64, BandPlan)) -> Result<()> {
        if let Some(work) = work(call).filter(FirstLayerWork::is_large) {
            work.plans().for_each(|plan| offer(plan.time, plan));
        }
        Ok(())
    }

    fn numbers(plan: &BandPlan) -> [u32; 4] {
        [plan.rows as u32, plan.groups as u32, 0, 0]
    }

    #[cfg(test)]
    fn forced(call: &ConvCall, force: &crate::testing::Force) -> Result<Option<BandPlan>> {
        Ok(work(call).and_then(|work| work.forced(force.tile[0], force.tile[1], force.splits)))
    }

    fn launch(call: &ConvCall, plan: &BandPlan) -> Result<ConvOutputs> {
        let Some(work) = work(call) else { return Err(call.unsupported()) };
        if call.pass == ConvPass::Fprop { fprop(call, &work, plan) } else { wgrad(call, &work, plan) }
    }
}

fn fprop(call: &ConvCall, work: &FirstLayerWork, plan: &BandPlan) -> Result<ConvOutputs> {
    let conv = &call.convs[0];
    let y = call.uninit(conv, call.layout())?;
    let stats = BnPartials::uninit(&y, plan.blocks)?;
    let launch = Launch::new(&y, "conv2d_stem.cu", "conv2d_stem", &work.defines(y.dtype()))?
        .array(&y)
        .array(conv.a)
        .array(conv.b)
        .optional(conv.bias)
        .value(work.sizes(conv.a, &conv.b.strides(), plan));
    let grid = [plan.blocks as u32, plan.splits as u32, 1];
    let smem = work.shared(plan.rows, plan.groups) as u32;
    BnPartials::argument(stats.as_ref(), launch).run(grid, [WARPS as u32 * 32, 1, 1], smem)?;
    stats.map_or(Ok(()), |s| s.attach(&y))?;
    Ok(ConvOutputs::new(vec![y]))
}

/// dw in x's layout, and where it is asked for dbias.
fn wgrad(call: &ConvCall, work: &FirstLayerWork, plan: &BandPlan) -> Result<ConvOutputs> {
    const FILE: &str = "conv2d_stem_weight.cu";
    let (conv, dtype) = (&call.convs[0], call.dtype());
    let (dy, x, s) = (conv.a, conv.b, conv.problem);
    let row_major = |shape: &[usize], dtype| Array::uninit(shape, dtype, Layout::RowMajor, &dy.context());
    let dw = call.uninit(conv, call.layout())?;
    let db = call.wants_bias_grad.then(|| row_major(&[s.o], dtype)).transpose()?;
    let (params, all) = (work.sizes(x, &dw.strides(), plan), s.o * work.taps());
    let splits = (params.all as usize).div_ceil(params.chunk as usize);
    let partials = row_major(&[splits, all], DType::F32)?;
    let define = work.defines(dtype);
    let threads = (plan.groups * FirstLayerWork::shares(plan.groups) * 32) as u32;
    Launch::new(&dw, FILE, "conv2d_stem_weight", &define)?.array(&partials).array(dy).array(x).value(params).run(
        [splits as u32, plan.splits as u32, 1],
        [threads, 1, 1],
        work.shared(plan.rows, plan.groups) as u32,
    )?;
    Launch::new(&dw, FILE, "stem_sum", &define)?
        .array(&dw)
        .optional(db.as_ref())
        .array(&partials)
        .value(all as i32)
        .value((s.w_len() / s.o) as i32)
        .value((s.kernel[0] * s.kernel[1]) as i32)
        .value(dw.strides()[3] as i32)
        .value(dw.strides()[1] as i32)
        .value(splits as i32)
        .run([all.div_ceil(32) as u32, 1, 1], [256, 1, 1], 0)?;
    Ok(ConvOutputs { bias_grad: db, ..ConvOutputs::new(vec![dw]) })
}
