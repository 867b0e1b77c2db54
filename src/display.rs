//! Printing: the values as numpy shows them, then a line with shape, dtype and device.
//!
//! Floats get the fewest digits that tell them apart in their dtype, at most eight after the point; columns are
//! aligned; scientific notation is used when the largest is 10⁸ or more, the smallest below 10⁻⁴, or their quotient
//! above 1000. Above 1000 elements only the first and last three along each axis are shown.

use std::fmt;

use crate::{Array, DType, Element, Layout, Tensor, dtype::element_type, shape::numel};

/// Above this many elements the middle is left out.
const THRESHOLD: usize = 1000;
/// Elements shown on each side of what is left out.
const EDGE: usize = 3;
/// Columns of text in a line.
const WIDTH: usize = 75;
/// Digits after the point.
const PRECISION: usize = 8;

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(&self.array(), "Tensor", f)
    }
}

impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self, "Array", f)
    }
}

/// Without values, which would have to be waited for, and without the tape.
impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(a) = self.try_array() else { return f.write_str("<Tensor that is being written>") };
        f.write_str(&tag(&a, "Tensor", &self.place()))
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layout = if self.layout() == Layout::ChannelsLast { ", channels-last" } else { "" };
        f.write_str(&tag(self, "Array", layout))
    }
}

/// The values, and `<name 2x8 @cpu(0)>`.
fn show(a: &Array, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match words(a) {
        Ok(words) => writeln!(f, "{}", brackets(a.shape(), &words))?,
        Err(e) => writeln!(f, "(the values cannot be read: {e})")?,
    }
    f.write_str(&tag(a, name, ""))
}

/// `<name 2x8 @cpu(0)more>`.
fn tag(a: &Array, name: &str, more: &str) -> String {
    let shape: Vec<String> = a.shape().iter().map(usize::to_string).collect();
    let shape = if shape.is_empty() { "scalar".to_owned() } else { shape.join("x") };
    let dtype = if a.dtype() == DType::F32 { String::new() } else { format!(" {}", a.dtype()) };
    format!("<{name} {shape}{dtype} @{}{more}>", a.context())
}

/// The indices along an axis that are shown.
fn shown(extent: usize, size: usize) -> Vec<usize> {
    if size > THRESHOLD && extent > 2 * EDGE { (0..EDGE).chain(extent - EDGE..extent).collect() } else { (0..extent).collect() }
}

/// The shown elements in row-major order, all of one width.
fn words(a: &Array) -> crate::Result<Vec<String>> {
    let host = a.to_context(&crate::cpu())?.to_layout(Layout::RowMajor)?;
    if a.is_empty() {
        return Ok(Vec::new());
    }
    let mut places = vec![0];
    for &e in a.shape() {
        let along = shown(e, a.len());
        places = places.iter().flat_map(|p| along.iter().map(move |i| p * e + i)).collect();
    }
    if !a.dtype().is_float() {
        let words: Vec<String> = element_type!(a.dtype(), T => {
            let v = host.as_slice::<T>()?;
            places.iter().map(|&p| format!("{:?}", v[p])).collect()
        });
        let width = words.iter().map(String::len).max().unwrap_or(0);
        return Ok(words.into_iter().map(|w| format!("{w:>width$}")).collect());
    }
    element_type!(a.dtype(), T => {
        let v = host.as_slice::<T>()?;
        Ok(floats(&places.iter().map(|&p| v[p].to_f64()).collect::<Vec<_>>(), a.dtype()))
    })
}

/// Floats of one dtype in one format.
fn floats(v: &[f64], dtype: DType) -> Vec<String> {
    let finite: Vec<f64> = v.iter().copied().filter(|x| x.is_finite()).collect();
    let sizes = || finite.iter().map(|x| x.abs()).filter(|&x| x != 0.0);
    let (max, min) = (sizes().fold(0.0, f64::max), sizes().fold(f64::INFINITY, f64::min));
    let scientific = max > 0.0 && (max >= 1e8 || min < 1e-4 || max / min > 1000.0);
    let parts: Vec<Parts> = finite.iter().map(|&x| Parts::new(x, dtype, scientific)).collect();
    let longest = |f: fn(&Parts) -> usize| parts.iter().map(f).max().unwrap_or(0);
    let (digits, exponent) = (longest(|p| p.fraction.len()), longest(|p| p.exponent.len().saturating_sub(1)));
    let tail = digits + if scientific { exponent + 2 } else { 0 };
    // nan and inf take the whole width, the point included.
    let negative = usize::from(v.contains(&f64::NEG_INFINITY));
    let odd = if finite.len() < v.len() { (3 + negative).max(3).saturating_sub(tail + 1) } else { 0 };
    let head = longest(|p| p.whole.len()).max(odd);
    let width = head + 1 + tail;
    let mut parts = parts.into_iter();
    v.iter()
        .map(|x| match (x.is_finite(), parts.len()) {
            (true, 1..) => parts.next().map_or_else(String::new, |p| p.join(*x, head, digits, exponent, scientific)),
            _ if x.is_nan() => format!("{:>width$}", "nan"),
            _ => format!("{:>width$}", if *x < 0.0 { "-inf" } else { "inf" }),
        })
        .collect()
}

/// A number's text: `-1`, `5`, and `+20` for -1.5e+20.
struct Parts {
    whole: String,
    fraction: String,
    exponent: String,
}

impl Parts {
    fn new(x: f64, dtype: DType, scientific: bool) -> Self {
        let text = if scientific { scientific_text(x, dtype) } else { positional_text(x, dtype) };
        let (number, exponent) = text.split_once('e').unwrap_or((&text, ""));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let exponent = match exponent.strip_prefix('-') {
            Some(e) => format!("-{e:0>2}"),
            None if scientific => format!("+{exponent:0>2}"),
            None => String::new(),
        };
        Parts { whole: whole.to_owned(), fraction: fraction.trim_end_matches('0').to_owned(), exponent }
    }

    /// `head` columns before the point; `digits` after it, and of the exponent `exponent`.
    fn join(&self, x: f64, head: usize, digits: usize, exponent: usize, scientific: bool) -> String {
        if !scientific {
            return format!("{:>head$}.{:<digits$}", self.whole, self.fraction);
        }
        // All have as many digits as the longest, and those are the value's own.
        let text = format!("{x:.digits$e}");
        let mantissa = text.split('e').next().unwrap_or_default();
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let (sign, number) = self.exponent.split_at(1);
        format!("{whole:>head$}.{fraction}e{sign}{number:0>exponent$}")
    }
}

/// `d.ddde±x` with the fewest digits that give `x` back in its dtype.
fn shortest(x: f64, dtype: DType) -> String {
    match dtype {
        DType::F64 => format!("{x:e}"),
        DType::F32 => format!("{:e}", x as f32),
        // No shortest form in the library: one digit more until it reads back.
        _ => {
            let same = |text: &str| {
                let y: f64 = text.parse().unwrap_or(f64::NAN);
                match dtype {
                    DType::F16 => half::f16::from_f64(y).to_f64() == x,
                    _ => half::bf16::from_f64(y).to_f64() == x,
                }
            };
            (0..PRECISION).map(|p| format!("{x:.p$e}")).find(|text| same(text)).unwrap_or_else(|| format!("{x:e}"))
        }
    }
}

fn scientific_text(x: f64, dtype: DType) -> String {
    let text = shortest(x, dtype);
    let digits = text.split('e').next().map_or(0, |m| m.trim_start_matches('-').len());
    if digits > PRECISION + 2 { format!("{x:.PRECISION$e}") } else { text }
}

fn positional_text(x: f64, dtype: DType) -> String {
    let text = shortest(x, dtype);
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i64 = exponent.parse().unwrap_or(0);
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).count() as i64;
    let after_point = (digits - 1 - exponent).max(0) as usize;
    if after_point > PRECISION {
        return format!("{x:.PRECISION$}");
    }
    if after_point > 0 {
        return format!("{x:.after_point$}");
    }
    // An integer: the shortest digits, then zeros.
    let sign = if mantissa.starts_with('-') { "-" } else { "" };
    let own: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    format!("{sign}{own}{}", "0".repeat((exponent + 1 - digits).max(0) as usize))
}

/// Words within nested brackets; lines are broken at [`WIDTH`].
fn brackets(shape: &[usize], words: &[String]) -> String {
    let size = numel(shape);
    match shape {
        [] => words.first().cloned().unwrap_or_default(),
        _ if size == 0 => "[]".to_owned(),
        _ => nested(shape, size, &mut words.iter(), 1, WIDTH),
    }
}

fn nested(shape: &[usize], size: usize, words: &mut std::slice::Iter<'_, String>, indent: usize, width: usize) -> String {
    let Some((&extent, inner)) = shape.split_first() else { return words.next().cloned().unwrap_or_default() };
    let indices = shown(extent, size);
    let gap = if indices.len() < extent { EDGE } else { usize::MAX };
    let spaces = " ".repeat(indent);
    if inner.is_empty() {
        let (mut text, mut line) = (String::new(), spaces.clone());
        let mut extend = |word: &str, last: bool| {
            if line.len() > indent && line.len() + word.len() > width - 1 {
                text += line.trim_end();
                text.push('\n');
                line.clone_from(&spaces);
            }
            line += word;
            if last { text += &line } else { line.push(' ') }
        };
        for n in 0..indices.len() {
            if n == gap {
                extend("...", false);
            }
            extend(words.next().map_or("", String::as_str), n + 1 == indices.len());
        }
        return format!("[{}]", &text[indent..]);
    }
    let mut rows = Vec::new();
    for n in 0..indices.len() {
        if n == gap {
            rows.push("...".to_owned());
        }
        rows.push(nested(inner, size, words, indent + 1, width - 1));
    }
    format!("[{}]", rows.join(&format!("{}{spaces}", "\n".repeat(inner.len()))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu;

    fn text(v: Vec<f32>, shape: &[usize]) -> String {
        Tensor::from_vec(v, shape, &cpu()).unwrap().to_string()
    }

    #[test]
    fn the_books_prints() {
        let x: Vec<f32> = (0..16u8).map(f32::from).collect();
        assert_eq!(
            text(x, &[2, 8]),
            "[[ 0.  1.  2.  3.  4.  5.  6.  7.]\n [ 8.  9. 10. 11. 12. 13. 14. 15.]]\n<Tensor 2x8 @cpu(0)>"
        );
        assert_eq!(
            text(vec![0., 0., 0., 0., 8., 10., 12., 0., 16., 0., 20., 22., 0., 0., 0., 30.], &[2, 8]),
            "[[ 0.  0.  0.  0.  8. 10. 12.  0.]\n [16.  0. 20. 22.  0.  0.  0. 30.]]\n<Tensor 2x8 @cpu(0)>"
        );
        assert_eq!(text(vec![0.0; 16], &[2, 8]), "[[0. 0. 0. 0. 0. 0. 0. 0.]\n [0. 0. 0. 0. 0. 0. 0. 0.]]\n<Tensor 2x8 @cpu(0)>");
        assert_eq!(text(vec![f32::NAN; 10], &[10]), "[nan nan nan nan nan nan nan nan nan nan]\n<Tensor 10 @cpu(0)>");
        let normals = vec![
            2.2122064,
            0.7740038,
            1.0434405,
            1.1839255,
            1.8917114,
            -1.2347414,
            -1.771029,
            -0.45138445,
            0.57938355,
            -1.856082,
            -1.9768796,
            -0.20801921,
            0.2444218,
            -0.03716067,
            -0.48774993,
            -0.02261727,
        ];
        assert_eq!(
            text(normals, &[4, 4]),
            "[[ 2.2122064   0.7740038   1.0434405   1.1839255 ]\n \
             [ 1.8917114  -1.2347414  -1.771029   -0.45138445]\n \
             [ 0.57938355 -1.856082   -1.9768796  -0.20801921]\n \
             [ 0.2444218  -0.03716067 -0.48774993 -0.02261727]]\n<Tensor 4x4 @cpu(0)>"
        );
        let exploded = vec![
            3.1575275e20,
            -5.0052276e19,
            2.0565092e21,
            -2.3741922e20,
            -4.63326e20,
            7.3445046e19,
            -3.0176513e21,
            3.4838066e20,
            -5.8487235e20,
            9.27118e19,
            -3.8092853e21,
            4.397733e20,
            -6.2947415e19,
            9.978366e18,
            -4.0997977e20,
            4.7331174e19,
        ];
        assert_eq!(
            text(exploded, &[4, 4]),
            "[[ 3.1575275e+20 -5.0052276e+19  2.0565092e+21 -2.3741922e+20]\n \
             [-4.6332600e+20  7.3445046e+19 -3.0176513e+21  3.4838066e+20]\n \
             [-5.8487235e+20  9.2711797e+19 -3.8092853e+21  4.3977330e+20]\n \
             [-6.2947415e+19  9.9783660e+18 -4.0997977e+20  4.7331174e+19]]\n<Tensor 4x4 @cpu(0)>"
        );
    }

    /// The expected texts are those of numpy 1.23.
    #[test]
    fn numpy_prints_the_same() {
        let check = |v: Vec<f64>, dtype: DType, shape: &[usize], expected: &str| {
            let a = Array::from_vec(v, shape, &cpu()).unwrap().cast(dtype).unwrap();
            let text = a.to_string();
            assert_eq!(text.rsplit_once('\n').unwrap().0, expected, "{shape:?} {dtype}");
        };
        let range = |n: u16| (0..n).map(f64::from).collect::<Vec<_>>();
        check(vec![1.5, f64::NAN, f64::NEG_INFINITY], DType::F32, &[3], "[ 1.5  nan -inf]");
        check(vec![f64::INFINITY, 1.0, 2.0], DType::F32, &[3], "[inf  1.  2.]");
        check(vec![f64::INFINITY], DType::F32, &[1], "[inf]");
        check(vec![f64::NEG_INFINITY], DType::F32, &[1], "[-inf]");
        check(vec![0.1, 100.0], DType::F32, &[2], "[  0.1 100. ]");
        check(vec![0.1, 1000.0], DType::F32, &[2], "[1.e-01 1.e+03]");
        check(vec![1e-05, 1.0], DType::F32, &[2], "[1.e-05 1.e+00]");
        check(vec![100000000.0, 3.0], DType::F32, &[2], "[1.e+08 3.e+00]");
        check(vec![99999999.0, 300000.0], DType::F32, &[2], "[1.e+08 3.e+05]");
        check(vec![16777217.0, 123456.7], DType::F32, &[2], "[16777216.    123456.7]");
        check(vec![0.012345679, 0.33333334], DType::F32, &[2], "[0.01234568 0.33333334]");
        check(vec![0.3333333333333333, 0.6666666666666666, 0.001], DType::F64, &[3], "[0.33333333 0.66666667 0.001     ]");
        check(vec![1e+100, -2.5e-05], DType::F64, &[2], "[ 1.0e+100 -2.5e-005]");
        check(vec![1e-300], DType::F64, &[1], "[1.e-300]");
        check(vec![123456789.123, f64::NAN], DType::F64, &[2], "[1.23456789e+08            nan]");
        check(vec![1.0, 2.0], DType::F64, &[2], "[1. 2.]");
        check(vec![0.1, 0.2, 65504.0], DType::F16, &[3], "[1.00e-01 2.00e-01 6.55e+04]");
        check(vec![0.1, -0.3333], DType::F16, &[2], "[ 0.1    -0.3333]");
        check(vec![-0.0, 0.0], DType::F32, &[2], "[-0.  0.]");
        check(vec![1.0], DType::F32, &[1, 1, 1], "[[[1.]]]");
        check(vec![1.0, -20.0, 300.0], DType::I64, &[3], "[  1 -20 300]");
        check(vec![0.0, 255.0], DType::U8, &[2], "[  0 255]");
        check(
            range(24),
            DType::F32,
            &[2, 3, 4],
            "[[[ 0.  1.  2.  3.]\n  [ 4.  5.  6.  7.]\n  [ 8.  9. 10. 11.]]\n\n [[12. 13. 14. 15.]\n  [16. 17. 18. 19.]\n  [20. 21. 22. 23.]]]",
        );
        check(vec![], DType::F32, &[0], "[]");
        check(vec![], DType::F32, &[2, 0], "[]");
        check(
            range(30),
            DType::F32,
            &[30],
            "[ 0.  1.  2.  3.  4.  5.  6.  7.  8.  9. 10. 11. 12. 13. 14. 15. 16. 17.\n 18. 19. 20. 21. 22. 23. 24. 25. 26. 27. 28. 29.]",
        );
        check(range(1200), DType::F32, &[1200], "[0.000e+00 1.000e+00 2.000e+00 ... 1.197e+03 1.198e+03 1.199e+03]");
        check(
            range(1200),
            DType::F32,
            &[30, 40],
            "[[0.000e+00 1.000e+00 2.000e+00 ... 3.700e+01 3.800e+01 3.900e+01]\n [4.000e+01 4.100e+01 4.200e+01 ... 7.700e+01 7.800e+01 7.900e+01]\n [8.000e+01 8.100e+01 8.200e+01 ... 1.170e+02 1.180e+02 1.190e+02]\n ...\n [1.080e+03 1.081e+03 1.082e+03 ... 1.117e+03 1.118e+03 1.119e+03]\n [1.120e+03 1.121e+03 1.122e+03 ... 1.157e+03 1.158e+03 1.159e+03]\n [1.160e+03 1.161e+03 1.162e+03 ... 1.197e+03 1.198e+03 1.199e+03]]",
        );
        check(
            range(2000),
            DType::I64,
            &[10, 4, 50],
            "[[[   0    1    2 ...   47   48   49]\n  [  50   51   52 ...   97   98   99]\n  [ 100  101  102 ...  147  148  149]\n  [ 150  151  152 ...  197  198  199]]\n\n [[ 200  201  202 ...  247  248  249]\n  [ 250  251  252 ...  297  298  299]\n  [ 300  301  302 ...  347  348  349]\n  [ 350  351  352 ...  397  398  399]]\n\n [[ 400  401  402 ...  447  448  449]\n  [ 450  451  452 ...  497  498  499]\n  [ 500  501  502 ...  547  548  549]\n  [ 550  551  552 ...  597  598  599]]\n\n ...\n\n [[1400 1401 1402 ... 1447 1448 1449]\n  [1450 1451 1452 ... 1497 1498 1499]\n  [1500 1501 1502 ... 1547 1548 1549]\n  [1550 1551 1552 ... 1597 1598 1599]]\n\n [[1600 1601 1602 ... 1647 1648 1649]\n  [1650 1651 1652 ... 1697 1698 1699]\n  [1700 1701 1702 ... 1747 1748 1749]\n  [1750 1751 1752 ... 1797 1798 1799]]\n\n [[1800 1801 1802 ... 1847 1848 1849]\n  [1850 1851 1852 ... 1897 1898 1899]\n  [1900 1901 1902 ... 1947 1948 1949]\n  [1950 1951 1952 ... 1997 1998 1999]]]",
        );
        check(
            range(40).into_iter().map(|x| x / 7.0).collect(),
            DType::F32,
            &[40],
            "[0.         0.14285715 0.2857143  0.42857143 0.5714286  0.71428573\n 0.85714287 1.         1.1428572  1.2857143  1.4285715  1.5714285\n 1.7142857  1.8571428  2.         2.142857   2.2857144  2.4285715\n 2.5714285  2.7142856  2.857143   3.         3.142857   3.2857144\n 3.4285715  3.5714285  3.7142856  3.857143   4.         4.142857\n 4.285714   4.428571   4.571429   4.714286   4.857143   5.\n 5.142857   5.285714   5.428571   5.571429  ]",
        );
        check(range(1001), DType::F32, &[1, 1001], "[[   0.    1.    2. ...  998.  999. 1000.]]");
        check(
            vec![0.5; 1002],
            DType::F32,
            &[501, 2],
            "[[0.5 0.5]\n [0.5 0.5]\n [0.5 0.5]\n ...\n [0.5 0.5]\n [0.5 0.5]\n [0.5 0.5]]",
        );
        check(vec![0.000123456789012, 0.05], DType::F64, &[2], "[0.00012346 0.05      ]");
        check(vec![12345.678901234567, 45678.9], DType::F64, &[2], "[12345.67890123 45678.9       ]");
        check(vec![1e-45, 2.0], DType::F32, &[2], "[1.e-45 2.e+00]");
        check(vec![3.4028235e+38], DType::F32, &[1], "[3.4028235e+38]");
    }

    #[test]
    fn the_last_line_names_shape_dtype_and_device() {
        let last = |t: &Tensor| t.to_string().lines().last().unwrap().to_owned();
        assert_eq!(Tensor::full(&[], 2.5, &cpu()).unwrap().to_string(), "2.5\n<Tensor scalar @cpu(0)>");
        let ids = Tensor::from_vec(vec![9_007_199_254_740_993i64, -1, 7], &[3], &cpu()).unwrap();
        assert_eq!(ids.to_string(), "[9007199254740993               -1                7]\n<Tensor 3 i64 @cpu(0)>");
        assert_eq!(last(&Tensor::zeros(&[0, 3], &cpu()).unwrap()), "<Tensor 0x3 @cpu(0)>");
        assert!(Array::zeros(&[2], DType::BF16, &cpu()).unwrap().to_string().ends_with("<Array 2 bf16 @cpu(0)>"));
    }

    #[test]
    fn memory_order_does_not_show() {
        let x = Array::arange(0.0, 24.0, 1.0, DType::F32, &cpu()).unwrap().reshape(&[1, 3, 2, 4]).unwrap();
        assert_eq!(x.to_string(), x.to_layout(Layout::ChannelsLast).unwrap().to_string());
    }
}
