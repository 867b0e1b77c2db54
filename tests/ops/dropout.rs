use hadal::{Result, check::random, ops::Dropout, random::Draw};

use crate::Case;

pub fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    let draw = Draw { seed: 0x1234_5678_9abc_def0, number: 7 };
    for p in [0.0, 0.3, 0.5, 1.0] {
        // In channels-last memory with whole packs of channels and fours of pixels, and without.
        for shape in [&[3, 17][..], &[2, 3, 5, 4], &[], &[0], &[1], &[783], &[2, 16, 3, 4], &[1, 8, 3, 3]] {
            all.push(Case::new(Dropout { p, draw }, vec![random(shape, 1)?]).both_layouts());
        }
    }
    all.push(Case::new(Dropout { p: 0.2, draw }, vec![random(&[3, 50, 50, 17], 2)?]).both_layouts().rough());
    Ok(all)
}
