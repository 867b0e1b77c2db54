//! `#include "x"` resolved on the text: NVRTC is given one file and needs no folder. Used by `build.rs` as well.

/// `text` with each `#include "x"` that `find` knows replaced by that file, once; `#line` keeps the compiler's messages true.
///
/// `shown` is the file's name in messages; `find` gives the shown name and text of an included file. A name that it does
/// not know stays, so that the compiler says which line asks for it.
pub fn splice<'t>(shown: &str, text: &str, seen: &mut Vec<String>, find: &dyn Fn(&str) -> Option<(String, &'t str)>) -> String {
    let mut out = format!("#line 1 {shown:?}\n");
    for (i, line) in text.lines().enumerate() {
        match included(line).and_then(find) {
            Some((file, text)) => {
                if !seen.contains(&file) {
                    seen.push(file.clone());
                    out += &splice(&file, text, seen, find);
                }
                out += &format!("#line {} {shown:?}\n", i + 2);
            }
            None => {
                out += line;
                out.push('\n');
            }
        }
    }
    out
}

/// The name in a line `#include "name"`.
fn included(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?.trim_start();
    Some(rest.strip_prefix('"')?.split_once('"')?.0)
}
