//! Convolution without tensor cores, for every dtype, layout and geometry: launches of `kernels/conv2d.cu`.

use super::{
    ConvCall, ConvOutputs,
    problem::{ConvPass, ConvProblem},
};
use crate::{
    Array, Error, Layout, Result,
    cuda::{Define, Launch},
    gemm::{
        select::{Algorithm, Rank},
        split_k::{split_k_reduce, splits, workspace},
    },
    shape::strides,
};

const FILE: &str = "conv2d.cu";
/// Rows and columns of a tile.
const TILE: usize = 64;

/// The `Conv` of `conv2d.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SimtConvParams {
    n: i32,
    c: i32,
    h: i32,
    w: i32,
    o: i32,
    oh: i32,
    ow: i32,
    kernel: [i32; 2],
    stride: [i32; 2],
    /// Top and left.
    padding: [i32; 2],
    dilation: [i32; 2],
    groups: i32,
    x_strides: [i64; 4],
    y_strides: [i64; 4],
    filter_strides: [i64; 4],
}

impl SimtConvParams {
    /// For x and y in `layout`, and filters with their own strides.
    fn new(op: &'static str, s: &ConvProblem, layout: Layout, filter: &[usize]) -> Result<Self> {
        let (x, y) = (s.x_shape(), s.y_shape());
        let too_large = |_| Error::shape(op, "an extent is too large for the GPU", &[&x, &y]);
        let int = |v: usize| i32::try_from(v).map_err(too_large);
        let two = |[a, b]: [usize; 2]| Ok([int(a)?, int(b)?]) as Result<[i32; 2]>;
        // Taps are counted in 32 bits.
        int(s.kernel[0].saturating_mul(s.kernel[1]).saturating_mul(s.c.max(s.o)))?;
        let four = |strides: &[usize]| match *strides {
            [a, b, c, d] => Ok([a as i64, b as i64, c as i64, d as i64]),
            _ => Err(Error::shape(op, "4 dimensions are needed", &[&x])),
        };
        Ok(SimtConvParams {
            n: int(s.n)?,
            c: int(s.c)?,
            h: int(s.h)?,
            w: int(s.w)?,
            o: int(s.o)?,
            oh: int(y[2])?,
            ow: int(y[3])?,
            kernel: two(s.kernel)?,
            stride: two(s.stride)?,
            padding: two([s.padding[0], s.padding[1]])?,
            dilation: two(s.dilation)?,
            groups: int(s.groups)?,
            x_strides: four(&strides(&x, layout))?,
            y_strides: four(&strides(&y, layout))?,
            filter_strides: four(filter)?,
        })
    }
}

fn defines(y: &Array, layout: Layout) -> [(&'static str, Define); 2] {
    [("scalar_t", y.dtype().into()), ("CHANNELS_LAST", Define::Int(i64::from(layout == Layout::ChannelsLast)))]
}

/// The grid for `rows` x `cols` elements in each of `groups`.
fn grid(op: &'static str, rows: usize, cols: usize, depth: usize, groups: usize) -> Result<[u32; 3]> {
    let tiles = rows.div_ceil(TILE).checked_mul(cols.div_ceil(TILE)).filter(|&t| t <= i32::MAX as usize);
    let tiles = tiles.ok_or_else(|| Error::invalid(op, format!("too many tiles for one launch: {rows} by {cols} elements")))?;
    // More groups than the grid takes are looped over.
    Ok([tiles as u32, depth as u32, groups.min(65535) as u32])
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Simt;

impl Algorithm for Simt {
    type Call<'a> = ConvCall<'a>;
    type Output = ConvOutputs;
    type Plan = ();
    const NAME: &'static str = "simt";

    fn supports(call: &ConvCall) -> Result<Option<Rank>> {
        Ok(call.single().map(|_| Rank::Simt))
    }

    /// Without a model: it is taken where nothing else can be.
    fn plans(_call: &ConvCall, offer: &mut dyn FnMut(f64, ())) -> Result<()> {
        offer(f64::INFINITY, ());
        Ok(())
    }

    fn numbers((): &()) -> [u32; 4] {
        [0; 4]
    }

    #[cfg(test)]
    fn forced(_call: &ConvCall, _force: &crate::testing::Force) -> Result<Option<()>> {
        Ok(Some(()))
    }

    fn launch(call: &ConvCall, (): &()) -> Result<ConvOutputs> {
        let to = match call.pass {
            ConvPass::Fprop => fprop(call),
            ConvPass::Dgrad => dgrad(call),
            ConvPass::Wgrad => wgrad(call),
        };
        Ok(ConvOutputs::new(vec![to?]))
    }
}

fn fprop(call: &ConvCall) -> Result<Array> {
    let (conv, s, layout) = (&call.convs[0], call.convs[0].problem, call.layout());
    let y = call.uninit(conv, layout)?;
    let launch = Launch::new(&y, FILE, "conv2d_fwd", &defines(&y, layout))?;
    let launch = launch.array(&y).array(conv.a).array(conv.b).optional(conv.bias);
    let launch = launch.value(SimtConvParams::new(call.op, s, layout, &conv.b.strides())?);
    launch.run(grid(call.op, s.n * s.out_h() * s.out_w(), s.o / s.groups, 1, s.groups)?, [256, 1, 1], 0)?;
    Ok(y)
}

fn dgrad(call: &ConvCall) -> Result<Array> {
    let (conv, s, layout) = (&call.convs[0], call.convs[0].problem, call.layout());
    let dx = call.uninit(conv, layout)?;
    let launch = Launch::new(&dx, FILE, "conv2d_bwd_data", &defines(&dx, layout))?;
    let launch = launch.array(&dx).array(conv.a).array(conv.b);
    let launch = launch.value(SimtConvParams::new(call.op, s, layout, &conv.b.strides())?);
    // With strides, the pixels fall into phases that meet different taps; the first one is the largest.
    let [down, across] = [s.stride[0].min(s.h), s.stride[1].min(s.w)];
    let pixels = s.n * s.h.div_ceil(s.stride[0]) * s.w.div_ceil(s.stride[1]);
    let phases = down.saturating_mul(across).min(65535);
    launch.run(grid(call.op, pixels, s.c / s.groups, phases, s.groups)?, [256, 1, 1], 0)?;
    Ok(dx)
}

fn wgrad(call: &ConvCall) -> Result<Array> {
    let (conv, s, layout) = (&call.convs[0], call.convs[0].problem, call.layout());
    let dy = conv.a.to_layout(layout)?;
    let dw = call.uninit(conv, layout)?;
    let (og, taps) = (s.o / s.groups, s.w_len() / s.o.max(1));
    let tiles = og.div_ceil(TILE).saturating_mul(taps.div_ceil(TILE)).saturating_mul(s.groups);
    let (splits, k_per_split) = splits(s.n * s.out_h() * s.out_w(), tiles);
    let partials = workspace(&dw, splits)?;
    let define = defines(&dw, layout);
    let launch = Launch::new(&dw, FILE, "conv2d_bwd_weight", &define)?;
    let launch = launch.array(&dw).optional(partials.as_ref()).array(&dy).array(conv.b);
    let launch = launch.value(SimtConvParams::new(call.op, s, layout, &dw.strides())?).value(k_per_split as i64);
    launch.run(grid(call.op, og, taps, splits, s.groups)?, [256, 1, 1], 0)?;
    if let Some(partials) = partials {
        split_k_reduce(&dw, &partials, None, splits, 1, FILE, &define)?;
    }
    Ok(dw)
}
