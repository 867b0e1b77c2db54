//! Embeds `kernels/*.cu`, their includes spliced in, and the headers, so that neither a toolkit nor the sources are
//! needed at run time.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

#[path = "src/cuda/splice.rs"]
mod splice;

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=src/ops");
    println!("cargo:rerun-if-changed=src/cuda/splice.rs");
    // With what the CPU path is compiled, which says in a user's debug build why it is slow.
    println!("cargo:rustc-env=HADAL_OPT_LEVEL={}", env::var("OPT_LEVEL").unwrap_or_default());
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let (kernels, headers) = (files(Path::new("kernels"), "cu"), files(Path::new("kernels"), "cuh"));
    let shown = |name: &str| format!("kernels/{name}");
    let find = |name: &str| match headers.get(name) {
        Some(text) => Some((shown(name), text.as_str())),
        // The emulator brings its own version of these.
        None if name.starts_with("emu_") => None,
        None => panic!("a kernel includes {name}, which is not in kernels/"),
    };
    let spliced = kernels.iter().map(|(name, text)| (name, splice::splice(&shown(name), text, &mut Vec::new(), &find)));
    fs::write(out.join("kernels.rs"), format!("&{:?}", spliced.collect::<Vec<_>>())).expect("OUT_DIR is writable");
    fs::write(out.join("headers.rs"), format!("&{:?}", headers.iter().collect::<Vec<_>>())).expect("OUT_DIR is writable");
    fs::write(out.join("op_types.rs"), op_types(Path::new("src/ops"))).expect("OUT_DIR is writable");
}

/// Names and texts of the files in `folder` with that extension.
fn files(folder: &Path, extension: &str) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).expect("the crate has a folder kernels").flatten().map(|e| e.path());
    let wanted = entries.filter(|p| p.extension().is_some_and(|e| e == extension));
    let text = |p: &PathBuf| fs::read_to_string(p).unwrap_or_else(|e| panic!("{}: {e}", p.display()));
    wanted.map(|p| (p.file_name().expect("a file").to_string_lossy().into_owned(), text(&p))).collect()
}

/// Every type with an `impl Op for`, so that a test can tell an op without a gradient check.
fn op_types(folder: &Path) -> String {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the crate has a folder src/ops").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            for line in text.lines() {
                if let Some(rest) = line.trim_start().strip_prefix("impl Op for ") {
                    found.push(rest.split([' ', '<', '{']).next().unwrap_or_default().to_owned());
                }
            }
        }
    }
    found.sort();
    format!("&{found:?}")
}
