//! What hadal finds on this machine, and what to do about what it does not: `hadal doctor`.

use std::fmt::Write;

use crate::{Array, DType, cuda, data};

/// A report for people: driver, NVRTC, devices, a kernel compiled and run, the data set.
///
/// ```
/// let report = hadal::doctor();
/// assert!(report.contains("cpu(0)"));
/// ```
pub fn doctor() -> String {
    let mut out = String::new();
    let mut line = |mark: &str, what: &str, text: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{mark:>4}  {what:<10} {text}");
    };
    line("ok", "cpu(0)", &crate::cpu().device_name().unwrap_or_default());
    match cuda::compiler() {
        Ok(c) => {
            let from = c.file.as_ref().map_or("the loader's path".to_owned(), |f| f.display().to_string());
            line("ok", "NVRTC", &format!("{}.{} from {from}", c.version.0, c.version.1));
            if c.version < (12, 6) {
                // 12.5 takes 28 CPU seconds for a 3x3 convolution on Hopper, 12.6 5, 12.9 3.
                line("--", "", "up to ten times as long as 12.6 for a first step: `pip install nvidia-cuda-nvrtc-cu12`");
            }
        }
        Err(e) => line("--", "NVRTC", &e),
    }
    match cuda::device_count() {
        Ok(0) => line("--", "driver", "present, but it shows no device (CUDA_VISIBLE_DEVICES?)"),
        Ok(n) => {
            let (major, minor) = cuda::driver_version().unwrap_or_default();
            line("ok", "driver", &format!("CUDA {major}.{minor}, {n} device(s)"));
        }
        Err(e) => line("--", "driver", &e.to_string()),
    }
    for i in 0..crate::num_gpus() {
        let name = format!("gpu({i})");
        match cuda::device(i) {
            Ok(d) => {
                let (major, minor) = d.capability;
                line(
                    "ok",
                    &name,
                    &format!("{}, compute capability {major}.{minor}, {} multiprocessors", d.name, d.multiprocessors),
                );
                match Array::full(&[3], 2.5, DType::F32, &crate::Context::Gpu(i)).and_then(|a| a.to_vec::<f32>()) {
                    Ok(v) if v == [2.5; 3] => line("ok", &name, "a kernel was compiled, loaded and run"),
                    Ok(v) => line("BAD", &name, &format!("a kernel ran, but gave {v:?} instead of 2.5")),
                    Err(e) => line("BAD", &name, &e.to_string()),
                }
            }
            Err(e) => line("BAD", &name, &e.to_string()),
        }
    }
    match data::FashionMnist::options().download(data::Download::Never).load() {
        Ok(set) if set.is_sample() => line("--", "data", &set.describe()),
        Ok(set) => line("ok", "data", &set.describe()),
        Err(e) => line("BAD", "data", &e.to_string()),
    }
    out
}
