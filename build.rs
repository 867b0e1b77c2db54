//! Embeds `kernels/*.cu`, their includes spliced in, so that neither a toolkit nor the sources are needed at run time.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=src/ops");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("kernels.rs"), kernel_table(Path::new("kernels"))).expect("OUT_DIR is writable");
    fs::write(out.join("op_types.rs"), op_types(Path::new("src/ops"))).expect("OUT_DIR is writable");
}

/// `&[("relu.cu", "source"), …]`
fn kernel_table(folder: &Path) -> String {
    let mut names: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the crate has a folder kernels")
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "cu"))
        .collect();
    names.sort();
    let rows: String = names
        .iter()
        .map(|path| {
            let name = path.file_name().expect("a file").to_string_lossy();
            format!("    ({name:?}, {:?}),\n", splice(path, &mut Vec::new()))
        })
        .collect();
    format!("&[\n{rows}]")
}

/// The file's text with each `#include "x"` replaced by that file, once; `#line` keeps the compiler's messages true.
fn splice(path: &Path, seen: &mut Vec<PathBuf>) -> String {
    let shown = path.display().to_string().replace('\\', "/");
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{shown}: {e}"));
    let mut out = format!("#line 1 \"{shown}\"\n");
    for (i, line) in text.lines().enumerate() {
        match line.trim().strip_prefix("#include \"").and_then(|l| l.strip_suffix('"')) {
            // The emulator brings its own version of these.
            Some(name) if name.starts_with("emu_") => out += &format!("{line}\n"),
            Some(name) => {
                let file = path.with_file_name(name);
                if !seen.contains(&file) {
                    seen.push(file.clone());
                    out += &splice(&file, seen);
                }
                out += &format!("#line {} \"{shown}\"\n", i + 2);
            }
            None => out += &format!("{line}\n"),
        }
    }
    out
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
