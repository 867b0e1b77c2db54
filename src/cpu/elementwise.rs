//! Sums that neither lose digits nor depend on the number of threads.

/// The sum of a short run in 16 interleaved partial sums, which vectorizes and keeps the error small; runs of any length are cut into blocks that are added in f64.
pub fn sum(x: &[f32]) -> f32 {
    const BLOCK: usize = 4096;
    x.chunks(BLOCK).map(|block| sum_block(block) as f64).sum::<f64>() as f32
}

fn sum_block(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += v;
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += v;
    }
    fold_lanes(lanes)
}

/// Adds 16 partial sums as a tree.
#[inline(always)]
pub(crate) fn fold_lanes(lanes: [f32; 16]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}
