use hadal::{DType, Result, check::random, ops::Cast};

use crate::Case;

pub fn cases() -> Result<Vec<Case>> {
    let mut all = vec![Case::new(Cast { to: DType::F64 }, vec![random(&[3, 17], 1)?])];
    for to in [DType::F32, DType::F16, DType::BF16, DType::U8, DType::I64] {
        for shape in [&[2, 3, 5, 4][..], &[783], &[], &[0]] {
            // Rounding makes steps, so no finite differences.
            all.push(Case::new(Cast { to }, vec![random(shape, 2)?]).rough().both_layouts());
        }
    }
    Ok(all)
}
