//! Run-time choice of the vector instructions.
//!
//! The crate is compiled for the baseline of its target (SSE2 on x86-64). Loops that compute rather than wait for memory are run through [`vectorized`], which
//! compiles the closure once per instruction set and picks the best that the processor has.

use std::sync::OnceLock;

fn arch() -> pulp::Arch {
    static ARCH: OnceLock<pulp::Arch> = OnceLock::new();
    *ARCH.get_or_init(pulp::Arch::new)
}

/// Runs `f` compiled for the widest instruction set of this processor. What `f` calls must be `#[inline(always)]` to profit.
#[inline]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    arch().dispatch(f)
}

/// Runs an operation written against `pulp::Simd`.
#[inline]
pub fn dispatch<Op: pulp::WithSimd>(op: Op) -> Op::Output {
    arch().dispatch(op)
}

/// Proof that 256-bit shuffles are available, for [`transpose`].
#[cfg(target_arch = "x86_64")]
pub type Avx = pulp::x86::V3;
/// Never present on other processors.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy)]
pub enum Avx {}

#[inline(always)]
pub fn avx() -> Option<Avx> {
    #[cfg(target_arch = "x86_64")]
    return pulp::x86::V3::try_new();
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// The transpose of an 8x8 matrix, plus `bias[i]` in row i of the result. With `Avx` present, the caller must itself run under [`dispatch`] or [`vectorized`]
/// for this to be inlined. The rows come by reference because arrays that pass through branches by value are taken apart into scalars by the compiler.
#[inline(always)]
pub fn transpose(avx: Option<Avx>, rows: [&[f32; 8]; 8], bias: Option<&[f32; 8]>) -> [[f32; 8]; 8] {
    match avx {
        #[cfg(target_arch = "x86_64")]
        Some(v3) => transpose_avx(v3, rows, bias),
        _ => std::array::from_fn(|i| std::array::from_fn(|l| rows[l][i] + bias.map_or(0.0, |b| b[i]))),
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose_avx(v3: Avx, rows: [&[f32; 8]; 8], bias: Option<&[f32; 8]>) -> [[f32; 8]; 8] {
    use std::arch::x86_64::__m256;
    let avx = v3.avx;
    let load = |row: &[f32; 8]| pulp::cast::<[f32; 8], __m256>(*row);
    let [a, b, c, d] = [load(rows[0]), load(rows[1]), load(rows[2]), load(rows[3])];
    let [e, f, g, h] = [load(rows[4]), load(rows[5]), load(rows[6]), load(rows[7])];
    // Pairs of rows interleaved, then pairs of pairs, then halves exchanged.
    let (ab0, ab1) = (avx._mm256_unpacklo_ps(a, b), avx._mm256_unpackhi_ps(a, b));
    let (cd0, cd1) = (avx._mm256_unpacklo_ps(c, d), avx._mm256_unpackhi_ps(c, d));
    let (ef0, ef1) = (avx._mm256_unpacklo_ps(e, f), avx._mm256_unpackhi_ps(e, f));
    let (gh0, gh1) = (avx._mm256_unpacklo_ps(g, h), avx._mm256_unpackhi_ps(g, h));
    const LOW: i32 = 0b01_00_01_00;
    const HIGH: i32 = 0b11_10_11_10;
    let (p0, p1) = (avx._mm256_shuffle_ps::<LOW>(ab0, cd0), avx._mm256_shuffle_ps::<HIGH>(ab0, cd0));
    let (p2, p3) = (avx._mm256_shuffle_ps::<LOW>(ab1, cd1), avx._mm256_shuffle_ps::<HIGH>(ab1, cd1));
    let (q0, q1) = (avx._mm256_shuffle_ps::<LOW>(ef0, gh0), avx._mm256_shuffle_ps::<HIGH>(ef0, gh0));
    let (q2, q3) = (avx._mm256_shuffle_ps::<LOW>(ef1, gh1), avx._mm256_shuffle_ps::<HIGH>(ef1, gh1));
    let store = |i: usize, row: __m256| -> [f32; 8] {
        pulp::cast(match bias {
            Some(bias) => avx._mm256_add_ps(row, avx._mm256_set1_ps(bias[i])),
            None => row,
        })
    };
    let first = |p, q| avx._mm256_permute2f128_ps::<0x20>(p, q);
    let second = |p, q| avx._mm256_permute2f128_ps::<0x31>(p, q);
    [
        store(0, first(p0, q0)),
        store(1, first(p1, q1)),
        store(2, first(p2, q2)),
        store(3, first(p3, q3)),
        store(4, second(p0, q0)),
        store(5, second(p1, q1)),
        store(6, second(p2, q2)),
        store(7, second(p3, q3)),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn transposes() {
        let rows: [[f32; 8]; 8] = std::array::from_fn(|l| std::array::from_fn(|i| (10 * l + i) as f32));
        for avx in [None, super::avx()] {
            let bias = std::array::from_fn(|i| i as f32);
            let plain = super::transpose(avx, rows.each_ref(), None);
            let raised = super::transpose(avx, rows.each_ref(), Some(&bias));
            for i in 0..8 {
                for l in 0..8 {
                    assert_eq!((plain[i][l], raised[i][l]), (rows[l][i], rows[l][i] + bias[i]));
                }
            }
        }
    }
}
