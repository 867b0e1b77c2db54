//! Convolution on the GPU: channel by channel by [`depthwise`], on tensor cores where [`stem`], [`wgmma`] or [`mma`] takes it, else by
//! `kernels/conv2d.cu`, for either layout of x and y.

use super::{Filters, Gradient, depthwise, mma, output, stem, wgmma};
use crate::{
    Array, Error, Layout, Result,
    cpu::conv::ConvShape,
    cuda::{Define, Launch},
    ops::moments::Sums,
    ops::product::{column_sums, computed_in, plane_sums, split, sum_parts},
    shape::strides,
};

const FILE: &str = "conv2d.cu";
/// Rows and columns of a tile.
const TILE: usize = 64;

/// The `Conv` of `conv2d.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Sizes {
    extents: [i32; 7],
    window: [i32; 9],
    x: [i64; 4],
    y: [i64; 4],
    filter: [i64; 4],
}

impl Sizes {
    /// For x and y in `layout` and `w` with its own strides.
    fn new(op: &'static str, s: &ConvShape, layout: Layout, w: &[usize]) -> Result<Self> {
        let [n, o, oh, ow] = output(s);
        let (shape_x, shape_y) = ([n, s.c, s.h, s.w], [n, o, oh, ow]);
        let too_large = |_| Error::shape(op, "an extent is too large for the GPU", &[&shape_x, &shape_y]);
        let int = |v: usize| i32::try_from(v).map_err(too_large);
        // Taps are counted in 32 bits.
        int(s.kernel[0].saturating_mul(s.kernel[1]).saturating_mul(s.c.max(o)))?;
        let mut window = [0; 9];
        let attributes = [s.kernel, s.stride, [s.padding[0], s.padding[1]], s.dilation].concat();
        for (to, v) in window.iter_mut().zip(attributes.into_iter().chain([s.groups])) {
            *to = int(v)?;
        }
        let mut extents = [0; 7];
        for (to, v) in extents.iter_mut().zip([n, s.c, s.h, s.w, o, oh, ow]) {
            *to = int(v)?;
        }
        let four = |shape: &[usize], strides: Vec<usize>| match strides[..] {
            [a, b, c, d] => Ok([a as i64, b as i64, c as i64, d as i64]),
            _ => Err(Error::shape(op, "4 dimensions are needed", &[shape])),
        };
        Ok(Sizes {
            extents,
            window,
            x: four(&shape_x, strides(&shape_x, layout))?,
            y: four(&shape_y, strides(&shape_y, layout))?,
            filter: four(&shape_x, w.to_vec())?,
        })
    }
}

/// Both convolutions of a pair, in one launch where the kernels for Hopper take it.
pub(super) fn forward_pair(op: &'static str, x: &Array, convs: &[Filters; 2]) -> Result<Vec<Array>> {
    wgmma::forward(x, convs)?.map_or_else(|| forward_otherwise(op, x, convs), Ok)
}

/// What [`wgmma`] leaves to others: a pair one by one.
pub(super) fn forward_otherwise(op: &'static str, x: &Array, convs: &[Filters]) -> Result<Vec<Array>> {
    let &[(w, b, s)] = convs else {
        return convs.iter().map(|&(w, b, s)| forward(op, x, w, b, s)).collect();
    };
    let y = mma::forward(x, w, b, s)?;
    Ok(vec![y.map_or_else(|| general_forward(op, x, w, b, s), Ok)?])
}

/// The sum of the gradients of an x that one or two convolutions have, and of what has `arrived` for it, which may be written.
pub(super) fn backward_data(op: &'static str, convs: &[Gradient], arrived: Option<&Array>) -> Result<Array> {
    wgmma::backward_data(convs, arrived)?.map_or_else(|| backward_data_otherwise(op, convs, arrived), Ok)
}

/// What [`wgmma`] leaves to others; `arrived` is not written.
pub(super) fn backward_data_otherwise(op: &'static str, convs: &[Gradient], arrived: Option<&Array>) -> Result<Array> {
    let mut dx = match convs {
        [one] => alone(op, one)?,
        _ => backward_data(op, &convs[..1], None)?,
    };
    for conv in &convs[1..] {
        dx.add_assign(&backward_data(op, &[*conv], None)?)?;
    }
    if let Some(arrived) = arrived {
        dx.add_assign(arrived)?;
    }
    Ok(dx)
}

pub(super) fn backward_weight_pair(op: &'static str, x: &Array, convs: &[(&Array, &ConvShape); 2]) -> Result<Vec<Array>> {
    wgmma::backward_weight(x, convs)?.map_or_else(|| backward_weight_otherwise(op, x, convs), Ok)
}

/// What [`wgmma`] leaves to others: a pair one by one.
pub(super) fn backward_weight_otherwise(op: &'static str, x: &Array, convs: &[(&Array, &ConvShape)]) -> Result<Vec<Array>> {
    let &[(dy, s)] = convs else {
        return convs.iter().map(|&(dy, s)| backward_weight(op, dy, x, s)).collect();
    };
    let dw = mma::backward_weight(dy, x, s)?;
    Ok(vec![dw.map_or_else(|| general_backward_weight(op, dy, x, s), Ok)?])
}

fn defines(y: &Array, layout: Layout) -> [(&'static str, Define); 2] {
    [("scalar_t", y.dtype().into()), ("CHANNELS_LAST", Define::Int(i64::from(layout == Layout::ChannelsLast)))]
}

/// The grid for `rows` x `cols` elements in each of `groups`.
fn grid(op: &'static str, rows: usize, cols: usize, parts: usize, groups: usize) -> Result<[u32; 3]> {
    let tiles = rows.div_ceil(TILE).checked_mul(cols.div_ceil(TILE)).filter(|&t| t <= i32::MAX as usize);
    let tiles = tiles.ok_or_else(|| Error::invalid(op, format!("too many tiles for one launch: {rows} by {cols} elements")))?;
    // More groups than the grid takes are looped over.
    Ok([tiles as u32, parts as u32, groups.min(65535) as u32])
}

pub(super) fn forward(op: &'static str, x: &Array, w: &Array, b: Option<&Array>, s: &ConvShape) -> Result<Array> {
    if let Some(y) = stem::forward(x, w, b, s)? {
        return Ok(y);
    }
    if let Some(y) = depthwise::forward(x, w, b, s)? {
        return Ok(y);
    }
    let convs = [(w, b, s)];
    let mut y = wgmma::forward(x, &convs)?.map_or_else(|| forward_otherwise(op, x, &convs), Ok)?;
    Ok(y.remove(0))
}

/// By `conv2d.cu`.
pub(super) fn general_forward(op: &'static str, x: &Array, w: &Array, b: Option<&Array>, s: &ConvShape) -> Result<Array> {
    let (layout, shape) = (x.layout(), output(s));
    let y = Array::uninit(&shape, x.dtype(), layout, &x.context())?;
    let launch = Launch::new(&y, FILE, "conv2d_fwd", &defines(&y, layout))?;
    let launch = launch.array(&y).array(x).array(w).optional(b).value(Sizes::new(op, s, layout, &w.strides())?);
    launch.run(grid(op, s.n * shape[2] * shape[3], s.o / s.groups, 1, s.groups)?, [256, 1, 1], 0)?;
    Ok(y)
}

/// One gradient of x, not by wgmma.
fn alone(op: &'static str, &(dy, w, s): &Gradient) -> Result<Array> {
    if let Some(dx) = depthwise::backward_data(dy, w, s)? {
        return Ok(dx);
    }
    if let Some(dx) = mma::backward_data(dy, w, s)? {
        return Ok(dx);
    }
    let layout = dy.layout();
    let dx = Array::uninit(&[s.n, s.c, s.h, s.w], dy.dtype(), layout, &dy.context())?;
    let launch = Launch::new(&dx, FILE, "conv2d_bwd_data", &defines(&dx, layout))?;
    let launch = launch.array(&dx).array(dy).array(w).value(Sizes::new(op, s, layout, &w.strides())?);
    // With strides, the pixels fall into phases that meet different taps; the first one is the largest.
    let [down, across] = [s.stride[0].min(s.h), s.stride[1].min(s.w)];
    let pixels = s.n * s.h.div_ceil(s.stride[0]) * s.w.div_ceil(s.stride[1]);
    let phases = down.saturating_mul(across).min(65535);
    launch.run(grid(op, pixels, s.c / s.groups, phases, s.groups)?, [256, 1, 1], 0)?;
    Ok(dx)
}

/// dw in x's layout, and where it is asked for db.
pub(super) fn backward_weight_and_bias(
    op: &'static str,
    dy: &Array,
    x: &Array,
    s: &ConvShape,
    bias: bool,
) -> Result<(Array, Option<Array>)> {
    let db = || backward_bias(op, dy, s);
    let known = Sums::of(dy)?.is_some();
    if let Some((dw, own)) = stem::backward_weight(dy, x, s, bias && !known)? {
        return Ok((dw, if bias && known { Some(db()?) } else { own }));
    }
    Ok((backward_weight(op, dy, x, s)?, bias.then(db).transpose()?))
}

pub(super) fn backward_weight(op: &'static str, dy: &Array, x: &Array, s: &ConvShape) -> Result<Array> {
    if let Some(dw) = depthwise::backward_weight(dy, x, s)? {
        return Ok(dw);
    }
    let convs = [(dy, s)];
    let mut dw = wgmma::backward_weight(x, &convs)?.map_or_else(|| backward_weight_otherwise(op, x, &convs), Ok)?;
    Ok(dw.remove(0))
}

/// By `conv2d.cu`.
fn general_backward_weight(op: &'static str, dy: &Array, x: &Array, s: &ConvShape) -> Result<Array> {
    let layout = x.layout();
    let dy = dy.to_layout(layout)?;
    let shape = [s.o, s.c / s.groups, s.kernel[0], s.kernel[1]];
    let dw = Array::uninit(&shape, dy.dtype(), layout, &dy.context())?;
    let (og, taps) = (s.o / s.groups, shape[1] * shape[2] * shape[3]);
    let tiles = og.div_ceil(TILE).saturating_mul(taps.div_ceil(TILE)).saturating_mul(s.groups);
    let (parts, chunk) = split(s.n * s.out_h() * s.out_w(), tiles);
    let sums = match parts {
        1 => None,
        _ => Some(Array::uninit(&[parts, dw.len()], computed_in(dw.dtype()), Layout::RowMajor, &dw.context())?),
    };
    let define = defines(&dw, layout);
    let launch = Launch::new(&dw, FILE, "conv2d_bwd_weight", &define)?.array(&dw).optional(sums.as_ref()).array(&dy).array(x);
    let launch = launch.value(Sizes::new(op, s, layout, &dw.strides())?).value(chunk as i64);
    launch.run(grid(op, og, taps, parts, s.groups)?, [256, 1, 1], 0)?;
    if let Some(sums) = sums {
        sum_parts(&dw, &sums, None, parts, 1, FILE, &define)?;
    }
    Ok(dw)
}

pub(super) fn backward_bias(op: &'static str, dy: &Array, s: &ConvShape) -> Result<Array> {
    if let Some(sums) = Sums::of(dy)? {
        return sums.cast(dy.dtype());
    }
    let [n, o, oh, ow] = output(s);
    match dy.layout() {
        Layout::ChannelsLast => column_sums(op, dy, n * oh * ow, o),
        Layout::RowMajor => plane_sums(dy, n, o, oh * ow),
    }
}
