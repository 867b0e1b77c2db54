//! Division by a number that the host knows: CUTLASS's fast divmod.

/// Division of numbers below 2³¹ by `d` > 0: n / d = n · mul >> shift. The `Div` of `kernels/div.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct FastDivmod {
    mul: u32,
    shift: i32,
}

impl FastDivmod {
    pub(crate) fn new(d: usize) -> Self {
        // With 2^s ≥ d the rounded-up factor is too large by less than 1 in 2^31 of what would change the quotient.
        let shift = 31 + d.next_power_of_two().trailing_zeros();
        FastDivmod { mul: (1u128 << shift).div_ceil(d as u128) as u32, shift: shift as i32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_by_a_known_number_is_exact() {
        let most = (1u64 << 31) - 1;
        for d in (1..200).chain([255, 256, 257, 4095, 65535, 65537, (1 << 20) - 1, (1 << 30) - 1, 1 << 30, most as usize]) {
            let FastDivmod { mul, shift } = FastDivmod::new(d);
            let tries = [0, 1, most, most - 1].into_iter().chain((1..50).flat_map(|q| {
                let multiple = (most / d as u64 * q / 49) * d as u64;
                [multiple, multiple.saturating_sub(1), (multiple + d as u64 - 1).min(most)]
            }));
            for n in tries {
                assert_eq!((n * u64::from(mul)) >> shift, n / d as u64, "{n} / {d}");
            }
        }
    }
}
