use hadal::{
    Array, Result,
    check::{random, random_in},
    ops::{BatchNorm, BatchNormInference},
};

use crate::Case;

/// x, γ and β; x is not centred at 0.
fn inputs(shape: &[usize]) -> Result<Vec<Array>> {
    let c = &shape[1..2];
    Ok(vec![random_in(shape, 1, -0.5, 2.0)?, random_in(c, 2, 0.5, 1.5)?, random(c, 3)?])
}

pub fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    let op = BatchNorm { eps: 1e-5 };
    for shape in [&[4, 3][..], &[17, 1], &[3, 17, 2], &[2, 3, 2, 3, 2], &[50, 0], &[3, 0, 2, 2], &[5, 33]] {
        all.push(Case::new(op, inputs(shape)?).slack(3.0));
    }
    for shape in [[2, 3, 4, 5], [5, 1, 3, 1], [1, 3, 7, 5], [3, 35, 1, 2]] {
        all.push(Case::new(op, inputs(&shape)?).both_layouts().slack(3.0));
    }
    // Several chunks for each channel, and the variance 0 of a single value.
    for shape in [[3, 3, 50, 53], [783, 5, 3, 1], [1, 783, 2, 3]] {
        all.push(Case::new(op, inputs(&shape)?).both_layouts().rough().slack(3.0));
    }
    all.push(Case::new(op, inputs(&[9000, 2])?).rough().slack(3.0));

    let op = BatchNormInference { eps: 1e-3 };
    for shape in [&[4, 3][..], &[2, 3, 4, 5], &[1, 17, 1, 1], &[0, 3, 2, 2], &[3, 2, 5], &[2, 1, 2, 3, 2]] {
        let mut all_five = inputs(shape)?;
        all_five.push(random(&shape[1..2], 4)?);
        all_five.push(random_in(&shape[1..2], 5, 0.3, 2.0)?);
        all.push(Case::new(op, all_five).both_layouts().slack(2.0));
    }
    Ok(all)
}
