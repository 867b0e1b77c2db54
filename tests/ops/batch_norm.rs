use hadal::{
    Array, Result,
    check::{random, random_in},
    ops::{BatchNorm, BatchNormInference, BatchNormInferenceRelu, BatchNormRelu},
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
    // Channels in whole packs of 16 bytes: one group of them and several, the last one not full; one chunk and several.
    for shape in [[2, 8, 3, 5], [1, 16, 1, 2], [3, 24, 50, 53], [5, 72, 3, 1], [2, 136, 5, 7]] {
        all.push(Case::new(op, inputs(&shape)?).both_layouts().rough().slack(3.0));
    }
    all.push(Case::new(op, inputs(&[701, 24])?).rough().slack(3.0));
    // Runs of whole packs: in one chunk and in several.
    for shape in [[2, 3, 4, 6], [3, 5, 50, 56], [1, 2, 96, 97]] {
        all.push(Case::new(op, inputs(&shape)?).rough().slack(3.0));
    }

    let op = BatchNormInference { eps: 1e-3 };
    for shape in [&[4, 3][..], &[2, 3, 4, 5], &[1, 17, 1, 1], &[0, 3, 2, 2], &[3, 2, 5], &[2, 1, 2, 3, 2]] {
        let mut all_five = inputs(shape)?;
        all_five.push(random(&shape[1..2], 4)?);
        all_five.push(random_in(&shape[1..2], 5, 0.3, 2.0)?);
        all.push(Case::new(op, all_five).both_layouts().slack(2.0));
    }
    fused(&mut all)?;
    Ok(all)
}

/// With ReLU, without and with a residual. Finite differences only where no output is near 0: β is large for every other channel
/// and as far below 0 for the others.
fn fused(all: &mut Vec<Case>) -> Result<()> {
    let kink_free = |shape: &[usize]| -> Result<Vec<Array>> {
        let mut x = inputs(shape)?;
        let far = (0..shape[1]).map(|c| if c % 2 == 0 { 6.0 } else { -6.0 }).collect();
        x[2] = Array::from_vec(far, &shape[1..2], &hadal::cpu())?;
        Ok(x)
    };
    for shape in [&[4, 3][..], &[3, 5, 2], &[2, 3, 4, 5], &[5, 2, 3, 1], &[2, 16, 3, 3], &[2, 3, 4, 6], &[50, 0]] {
        let (train, predict) = (BatchNormRelu { eps: 1e-5 }, BatchNormInferenceRelu { eps: 1e-3 });
        let x = kink_free(shape)?;
        let statistics = [random(&shape[1..2], 4)?, random_in(&shape[1..2], 5, 0.3, 2.0)?];
        let with = |rest: &[Array]| [&x, rest].concat();
        let r = random(shape, 6)?;
        all.push(Case::new(train, x.clone()).both_layouts().slack(3.0));
        all.push(Case::new(train, with(std::slice::from_ref(&r))).both_layouts().slack(3.0));
        all.push(Case::new(predict, with(&statistics)).both_layouts().slack(3.0));
        all.push(Case::new(predict, [with(&statistics), vec![r]].concat()).both_layouts().slack(3.0));
    }
    // Both sides of ReLU's kink in each channel; in f64, where rounding puts no element on the other side.
    for shape in [&[7, 3][..], &[3, 17, 2], &[2, 3, 4, 5], &[1, 7, 5, 3], &[3, 24, 50, 53], &[3, 5, 50, 53], &[9001, 2]] {
        let x = inputs(shape)?;
        let statistics = [random(&shape[1..2], 4)?, random_in(&shape[1..2], 5, 0.3, 2.0)?];
        let with = |rest: &[Array]| [&x, rest].concat();
        let (train, predict, r) = (BatchNormRelu { eps: 1e-5 }, BatchNormInferenceRelu { eps: 1e-3 }, random(shape, 6)?);
        let mut push = |case: Case| all.push(case.both_layouts().rough().dtypes(&[]).slack(3.0));
        push(Case::new(train, x.clone()));
        push(Case::new(train, with(std::slice::from_ref(&r))));
        push(Case::new(predict, with(&statistics)));
        push(Case::new(predict, [with(&statistics), vec![r]].concat()));
    }
    Ok(())
}
