//! dw: a tile of filters by taps and channels, summed over pixels in parts.

use super::{
    super::{
        device,
        mma::{self, Pass},
        output,
    },
    Phase, Sizes,
    axis::{Axis, plane, taps},
    each_last, ends,
    halo_weight::HaloWeight,
    im2col, is_plain_3x3, last, takes,
    way::{Problem, Way, is_final},
};
use crate::{
    Array, DType, Layout, Result,
    cpu::conv::ConvShape,
    cuda::{Launch, Swizzle, TensorMap},
    ops::{
        six,
        wgmma::{self, Plan, Span, Tile, Work},
    },
};

/// dw of one convolution or two, from each one's dy and sizes.
pub(in crate::ops::conv2d) fn backward_weight(x: &Array, convs: &[(&Array, &ConvShape)]) -> Result<Option<Vec<Array>>> {
    let (mut axes, mut plain) = (Vec::new(), None);
    for conv @ (dy, s) in convs {
        let own = [Axis::forward(s, 0), Axis::forward(s, 1)];
        if s.groups != convs[0].1.groups || !takes(dy, s)? || !own[0].fits(s.h) || !own[1].fits(s.w) {
            return Ok(None);
        }
        plain = plain.or(Some(conv).filter(|_| is_plain_3x3(s)));
        axes.push(own);
    }
    let (dtype, groups, mut multiplications) = (x.dtype(), convs[0].1.groups, 0usize);
    let span = |(&(_, s), axes): (&(&Array, &ConvShape), &[Axis; 2])| {
        let pixels = s.n * plane(axes);
        multiplications = multiplications.saturating_add(pixels.saturating_mul(s.w_len()));
        Span { m: s.o / groups, n: taps(axes) * (s.c / groups).next_multiple_of(64), steps: wgmma::steps(dtype, pixels) }
    };
    let spans: Vec<Span> = convs.iter().zip(&axes).map(span).collect();
    if six::takes(x)? {
        return super::six::backward_weight(x, convs, &axes, &spans, multiplications);
    }
    let halo = plain.map_or(Ok(None), |(dy, s)| HaloWeight::new(dy, s.c))?;
    let work = Work { spans: &spans, batch: groups, multiplications, split: true, products: wgmma::products(dtype) };
    let (plan, alone) = (wgmma::plan(x, Tile::WEIGHT, &work)?, convs.len() == 1);
    let model = match (halo, plan) {
        (Some(_), _) if !alone => Way::Otherwise,
        _ if !worth_splitting(convs, [halo.map(|h| h.time), plan.map(|p| p.time)])? => Way::Otherwise,
        _ => Way::fastest(halo, plan),
    };
    if (halo.is_none() || !alone) && plan.is_none() || is_final()? {
        return run(x, convs, &axes, &model);
    }
    let plans = plan.map_or(Vec::new(), |plan| wgmma::all(&plan, x, Tile::WEIGHT, &work));
    let halos = plain.filter(|_| alone).map_or(Ok(Vec::new()), |(dy, s)| HaloWeight::all(dy, s.c))?;
    let arrays: Vec<&Array> = [x].into_iter().chain(convs.iter().map(|(dy, _)| *dy)).collect();
    let sides: Vec<&ConvShape> = convs.iter().map(|(_, s)| *s).collect();
    let problem = Problem { pass: Pass::Weight, store: 0, arrays: &arrays, sides: &sides, like: x };
    let way = problem.tuned(model, (plans, halos), &|way| match way {
        Way::Otherwise => device::backward_weight_otherwise("conv2d", x, convs).map(|_| ()),
        way => run(x, convs, &axes, way).map(|_| ()),
    })?;
    run(x, convs, &axes, &way)
}

/// The same in one way.
fn run(x: &Array, convs: &[(&Array, &ConvShape)], axes: &[[Axis; 2]], way: &Way<HaloWeight>) -> Result<Option<Vec<Array>>> {
    let (sums, parts) = match way {
        Way::Halo(halo) => {
            let (sums, parts) = halo.run(&last(convs[0].0)?, &last(x)?)?;
            (vec![sums], parts)
        }
        Way::Im2col(plan) => (weight_parts(&last(x)?, convs, axes, plan)?, plan.parts),
        Way::Otherwise => return Ok(None),
    };
    add_up(x, convs, &sums, parts).map(Some)
}

/// Each dw from its parts, (part, o, taps, c / groups).
pub(super) fn add_up(x: &Array, convs: &[(&Array, &ConvShape)], sums: &[Array], parts: usize) -> Result<Vec<Array>> {
    let (dtype, groups) = (x.dtype(), convs[0].1.groups);
    let add_up = |((_, s), sums): (&(&Array, &ConvShape), &Array)| {
        let dw = Array::uninit(&[s.o, s.c / groups, s.kernel[0], s.kernel[1]], dtype, x.layout(), &x.context())?;
        // The parts are channels-last already: a tap of as many channels as there are numbers.
        let (taps, channels) = (s.kernel[0] * s.kernel[1], s.c / groups);
        let [taps, channels] = if x.layout() == Layout::RowMajor { [taps, channels] } else { [1, taps * channels] };
        Launch::new(&dw, "sum_filter_parts.cu", "sum_filter_parts", &[("scalar_t", dtype.into())])?
            .array(&dw)
            .array(sums)
            .value(dw.len() as i64)
            .value(parts as i32)
            .value(taps as i32)
            .value(channels as i32)
            .run_1d(dw.len())?;
        Ok(dw)
    };
    convs.iter().zip(sums).map(add_up).collect()
}

/// Whether the gradients of the filters, split into bf16 where they are f32, take less than by tf32 on mma.sync.
fn worth_splitting(convs: &[(&Array, &ConvShape)], times: [Option<f64>; 2]) -> Result<bool> {
    #[cfg(test)]
    if wgmma::forced().is_some() {
        return Ok(true);
    }
    let least = times.into_iter().flatten().fold(f64::INFINITY, f64::min);
    let mut other = 0.0;
    for (dy, s) in convs.iter().filter(|(dy, _)| dy.dtype() == DType::F32) {
        other += mma::time(Pass::Weight, dy, s)?.unwrap_or(f64::INFINITY);
    }
    Ok(other == 0.0 || least < other)
}

/// The parts of each dw, (part, o, taps, c / groups), from channels-last x.
fn weight_parts(x: &Array, convs: &[(&Array, &ConvShape)], axes: &[[Axis; 2]], plan: &Plan) -> Result<Vec<Array>> {
    let dtype = x.dtype();
    let depth = 128 / dtype.size();
    let dys = each_last(convs.iter().map(|(dy, _)| *dy))?;
    let (sums, tiles, sizes) = layout(x, convs, axes, (plan.tile, plan.parts, plan.chunk))?;
    let map = |dy: &Array| {
        let [n, o, oh, ow] = [0, 1, 2, 3].map(|i| dy.shape()[i]);
        TensorMap::tiled(&[o, n * oh * ow], &[o], &[depth, depth]).swizzle(Swizzle::Span128)
    };
    let ((dy0, dy1), (axes0, axes1), (sums0, sums1)) = (ends(&dys), ends(axes), ends(&sums));
    Launch::new(x, "conv2d_wgmma.cu", "conv2d_wgmma", &plan.defines(dtype, &[("PASS", 2)]))?
        .tensor(dy0, &map(dy0))
        .tensor(dy1, &map(dy1))
        .tensor(x, &im2col(x, *axes0, depth).swizzle(Swizzle::Span128))
        .tensor(x, &im2col(x, *axes1, depth).swizzle(Swizzle::Span128))
        .array(sums0)
        .array(sums1)
        .value(sizes)
        .run(plan.grid(tiles), plan.threads(), plan.shared())?;
    Ok(sums)
}

/// Memory for the parts of each dw, how many tiles a launch has, and its sizes.
pub(super) fn layout(
    x: &Array,
    convs: &[(&Array, &ConvShape)],
    axes: &[[Axis; 2]],
    (tile, parts, chunk): (Tile, usize, usize),
) -> Result<(Vec<Array>, usize, Sizes)> {
    let groups = convs[0].1.groups;
    let (mut tiles, mut phases, mut sums) = (0, Vec::new(), Vec::new());
    for (of, (&(_, s), &axes)) in convs.iter().zip(axes).enumerate() {
        phases.push(Phase { axes, begin: tiles as i32, of: of as i32 });
        let columns = taps(&axes) * (s.c / groups).next_multiple_of(64);
        tiles += (s.o / groups).div_ceil(tile.rows()) * columns.div_ceil(tile.columns()) * parts * groups;
        sums.push(Array::uninit(&[parts, s.w_len()], DType::F32, Layout::RowMajor, &x.context())?);
    }
    let (first, second) = ends(convs);
    let channels = |s: &ConvShape| [s.o / groups, s.c / groups, s.kernel[1]];
    let [n, _, oh, ow] = output(first.1);
    let sizes = Sizes::new(&phases, tiles, [channels(first.1), channels(second.1)], [n, oh, ow], groups);
    Ok((sums, tiles, Sizes { chunk: chunk as i32, parts: parts as i32, ..sizes }))
}
