use hadal::{Result, check::random, ops::Softmax};

use crate::Case;

pub fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    for log in [false, true] {
        for (axis, shape) in [
            (-1, &[3, 17][..]),
            (0, &[50, 3]),
            (0, &[1]),
            (-1, &[5, 1]),
            (1, &[1, 783]),
            (1, &[4, 0, 3]),
            (-1, &[0, 10]),
            (1, &[2, 5, 3, 4]),
            (2, &[2, 5, 3, 4]),
            (-4, &[3, 2, 2, 1]),
            (-1, &[2, 2, 3, 3]),
        ] {
            all.push(Case::new(Softmax { axis, log }, vec![random(shape, 1)?]).both_layouts().slack(2.0));
        }
        // A block for each row; a thread for each of many strided rows.
        for (axis, shape) in [(-1, &[3, 2000][..]), (1, &[1, 6, 70, 70])] {
            all.push(Case::new(Softmax { axis, log }, vec![random(shape, 2)?]).both_layouts().rough().slack(2.0));
        }
    }
    Ok(all)
}
