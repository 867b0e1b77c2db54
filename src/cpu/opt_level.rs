//! Says once that the CPU path was compiled without optimisation, as `cargo run` of a user's crate does it.

use std::{env, ffi::OsStr, path::Path, sync::Once};

const MESSAGE: &str = "\
hadal was compiled without optimisation, so its CPU path takes many times as long. Run with `--release`, or add to Cargo.toml:

[profile.dev.package]
hadal.opt-level = 3
\"*\".opt-level = 3
";

/// The warning, at the first operation on the CPU; none once hadal is compiled with optimisation.
pub(super) fn warn() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let package = env::var_os("CARGO_PKG_NAME");
        if slow(env!("HADAL_OPT_LEVEL"), package.as_deref(), env::current_exe().ok().as_deref()) {
            eprintln!("{MESSAGE}");
        }
    });
}

/// Whether somebody waits: not in hadal's own tests, which cargo runs from its folder `deps`, or rustdoc from one of its own.
fn slow(opt_level: &str, package: Option<&OsStr>, program: Option<&Path>) -> bool {
    let folder = program.and_then(Path::parent).and_then(Path::file_name);
    let test = package == Some(OsStr::new("hadal")) && !folder.is_some_and(|f| f == "debug" || f == "examples");
    opt_level == "0" && !test
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_a_slow_build_are_warned_and_tests_are_not() {
        let of = |level, package: &str, program: &str| slow(level, Some(OsStr::new(package)), Some(Path::new(program)));
        assert!(of("0", "mine", "/mine/target/debug/mine"));
        assert!(of("0", "mine", "/mine/target/debug/deps/tests-0123"));
        assert!(of("0", "hadal", "/hadal/target/debug/examples/mlp"));
        assert!(slow("0", None, None));
        assert!(!of("3", "mine", "/mine/target/debug/mine"));
        assert!(!of("1", "mine", "/mine/target/debug/mine"));
        assert!(!of("0", "hadal", "/hadal/target/debug/deps/ops-0123"));
        assert!(!of("0", "hadal", "/tmp/rustdoctest0123/rust_out"));
        assert!(MESSAGE.contains("[profile.dev.package]") && MESSAGE.contains("hadal.opt-level = 3"));
    }

    #[test]
    fn the_level_is_known() {
        assert!(["0", "1", "2", "3", "s", "z"].contains(&env!("HADAL_OPT_LEVEL")));
    }
}
