//! `hadal bench` measures every op and step, on every context, and its lines can be read by a program.

use std::process::Command;

use serde_json::Value;

#[path = "common/mod.rs"]
mod common;

fn hadal(args: &[&str]) -> (bool, String, String) {
    // A bundle has the program beside the tests' folder.
    let own = std::env::current_exe().unwrap();
    let beside = own.parent().unwrap().join("../bin/hadal");
    let built = std::path::PathBuf::from(env!("CARGO_BIN_EXE_hadal"));
    let program = if built.exists() { built } else { beside };
    let out = Command::new(&program).arg("bench").args(args).output().unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.success(), text(&out.stdout), text(&out.stderr))
}

fn json(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

#[test]
fn every_op_and_step_has_a_line() {
    for ctx in common::contexts() {
        let context = ctx.to_string();
        let (ok, listed, errors) = hadal(&["--list", "--quick", "--context", &context]);
        assert!(ok, "{errors}");
        let (ok, measured, errors) = hadal(&["--json", "--quick", "--context", &context]);
        assert!(ok, "{errors}");
        let measured = json(&measured);
        // Which other engines have no counterpart for.
        assert!(measured.iter().any(|l| l["name"] == "input batch 28x28 to 96x96" && l["gbs"].as_f64() > Some(0.0)));
        for case in json(&listed) {
            let line = measured.iter().find(|l| l["name"] == case["name"] && l["pass"] == "forward");
            let line = line.unwrap_or_else(|| panic!("{case} was not measured on {ctx}"));
            assert!(line["us"].as_f64().is_some_and(|t| t > 0.0) && line["gbs"].as_f64().is_some_and(|r| r > 0.0), "{line}");
            let product = ["Conv", "Entry", "Matmul", "Dense"].iter().any(|op| case["op"] == *op);
            assert_eq!(product, line["of_best"].as_f64().is_some_and(|share| share > 0.0), "{line}");
        }
        for model in ["resnet18", "lenet_relu", "lenet_sigmoid", "mlp"] {
            let line =
                measured.iter().find(|l| l["model"] == model).unwrap_or_else(|| panic!("{model} was not measured on {ctx}"));
            assert!(line["best_ms"].as_f64().is_some_and(|t| t > 0.0), "{line}");
        }
    }
}

#[test]
fn steps_run_in_every_dtype_and_as_graphs() {
    for ctx in common::contexts() {
        let args = ["step", "--json", "--quick", "--only", "mlp", "--graph", "--channels-last", "--dtypes", "f32,tf32,bf16,f16"];
        let (ok, measured, errors) = hadal(&[&args[..], &["--context", &ctx.to_string()]].concat());
        assert!(ok, "{errors}");
        let modes = if ctx.is_gpu() { &["hybrid", "graph"][..] } else { &["hybrid"] };
        let found: Vec<(String, String)> = json(&measured)
            .iter()
            .inspect(|l| assert!(l["best_ms"].as_f64().is_some_and(|t| t > 0.0) && l["first_step_s"].is_number(), "{l}"))
            .map(|l| (l["dtype"].as_str().unwrap().to_owned(), l["mode"].as_str().unwrap().to_owned()))
            .collect();
        let want = ["f32", "tf32", "bf16", "f16"].iter().flat_map(|d| modes.iter().map(|m| (d.to_string(), m.to_string())));
        assert_eq!(found, want.collect::<Vec<_>>(), "{ctx}");
    }
}

#[test]
fn first_steps_are_timed_with_an_empty_and_a_filled_cache() {
    for ctx in common::contexts() {
        let (ok, measured, errors) = hadal(&["first", "--json", "--quick", "--only", "mlp", "--context", &ctx.to_string()]);
        assert!(ok, "{errors}");
        let [line] = &json(&measured)[..] else { panic!("{measured}") };
        let seconds = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{line}"));
        assert!(seconds("cold_s") > 0.0 && seconds("warm_s") > 0.0, "{line}");
        // What is compiled the first time is loaded the second time.
        assert!(!ctx.is_gpu() || seconds("warm_s") < seconds("cold_s"), "{line}");
    }
}

#[test]
fn wrong_words_are_named() {
    for (args, word) in [
        (&["--dtypes", "f31"][..], "f31"),
        (&["--batch", "0"], "--batch"),
        (&["--only"], "needs a value"),
        (&["--fast"], "--fast"),
        (&["--context", "tpu"], "tpu"),
    ] {
        let (ok, _, errors) = hadal(args);
        assert!(!ok && errors.contains(word), "{args:?}: {errors}");
    }
}
