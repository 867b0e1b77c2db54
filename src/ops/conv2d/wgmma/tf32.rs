//! What the gradients of a convolution need to run by wgmma in tf32, which reads both operands along k only.

use crate::{Array, DType, Layout, Result, cuda::Launch};

/// The filters (o, c, kh, kw), in either layout, as those (c, o, kh, kw) of the forward convolution that computes the gradient of
/// the images: channels-last, the taps from the last to the first. o and c are multiples of 4.
pub(super) fn turned(w: &Array) -> Result<Array> {
    let [o, c, kh, kw] = [0, 1, 2, 3].map(|i| w.shape()[i]);
    let turned = Array::uninit(&[c, o, kh, kw], w.dtype(), Layout::ChannelsLast, &w.context())?;
    let tiles = o.div_ceil(64) * (c * kh * kw).div_ceil(64);
    Launch::new(&turned, "turn_filters.cu", "turn_filters", &[("scalar_t", DType::F32.into())])?
        .array(&turned)
        .array(w)
        .value(o as i32)
        .value(c as i32)
        .value((kh * kw) as i32)
        .value(i32::from(w.layout() == Layout::ChannelsLast))
        .run([tiles as u32, 1, 1], [256, 1, 1], 0)?;
    Ok(turned)
}
