//! The `HADAL_…` variables that switch something: what they may say. A word that is not known is an error that names those that are.
//!
//! A switch is `on`, `1`, `true`, `yes` or `off`, `0`, `false`, `no`, in capitals or not; empty is as good as unset. All of them
//! are looked at before a GPU is used, so that a misspelt one does not pass for its default.

use std::{env, ffi::OsStr, path::PathBuf};

use crate::{Error, Result};

/// When the tuner times candidates, by `HADAL_TUNE`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Tune {
    Off,
    On,
    Force,
}

/// Where compiled kernels and the tuner's choices are kept, by `HADAL_CACHE`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cache {
    /// Nowhere.
    Off,
    /// In the user's cache folder.
    User,
    At(PathBuf),
}

/// What a switch says; `None` for another word.
fn switch(word: &str) -> Option<bool> {
    match word.to_ascii_lowercase().as_str() {
        "on" | "1" | "true" | "yes" => Some(true),
        "off" | "0" | "false" | "no" => Some(false),
        _ => None,
    }
}

fn refused(name: &'static str, value: &OsStr, allowed: &str) -> Error {
    Error::invalid(name, format!("{value:?} is not known; it may be {allowed}"))
}

/// The variable's text, unless it is unset or empty.
fn text(name: &str) -> Option<std::ffi::OsString> {
    env::var_os(name).filter(|v| !v.is_empty())
}

/// A switch, `usual` where it is not set.
///
/// # Errors
/// [`Error::Invalid`] for an unknown word.
pub(crate) fn flag(name: &'static str, usual: bool) -> Result<bool> {
    read_flag(name, text(name).as_deref(), usual)
}

fn read_flag(name: &'static str, value: Option<&OsStr>, usual: bool) -> Result<bool> {
    let Some(value) = value else { return Ok(usual) };
    value.to_str().and_then(switch).ok_or_else(|| refused(name, value, "on or off"))
}

/// `HADAL_TUNE`.
pub(crate) fn tune() -> Result<Tune> {
    read_tune(text("HADAL_TUNE").as_deref())
}

fn read_tune(value: Option<&OsStr>) -> Result<Tune> {
    let Some(value) = value else { return Ok(Tune::Off) };
    match value.to_str() {
        Some(word) if word.eq_ignore_ascii_case("force") => Ok(Tune::Force),
        word => match word.and_then(switch) {
            Some(true) => Ok(Tune::On),
            Some(false) => Ok(Tune::Off),
            None => Err(refused("HADAL_TUNE", value, "off, on or force")),
        },
    }
}

/// `HADAL_CACHE`.
pub(crate) fn cache() -> Result<Cache> {
    read_cache(text("HADAL_CACHE").as_deref())
}

fn read_cache(value: Option<&OsStr>) -> Result<Cache> {
    let Some(value) = value else { return Ok(Cache::User) };
    match value.to_str().and_then(switch) {
        Some(false) => Ok(Cache::Off),
        Some(true) => Ok(Cache::User),
        // A single word is a slip more often than a folder here, which can be written as ./word.
        None if PathBuf::from(value).components().count() > 1 || PathBuf::from(value).has_root() => Ok(Cache::At(value.into())),
        None => Err(refused("HADAL_CACHE", value, "on, off, or a folder, written with a slash: ./cache or /tmp/cache")),
    }
}

/// An error where one of the variables that a GPU goes by has an unknown value.
pub(crate) fn check() -> Result<()> {
    tune()?;
    cache()?;
    ["HADAL_SYNC", "HADAL_POISON"].into_iter().try_for_each(|name| flag(name, false).map(drop))?;
    flag("HADAL_POOL", true).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_obvious_spellings_are_known_and_others_refused_with_what_is_allowed() {
        for word in ["on", "ON", "1", "True", "yes"] {
            assert!(read_flag("HADAL_SYNC", Some(word.as_ref()), false).unwrap(), "{word}");
            assert_eq!(read_tune(Some(word.as_ref())).unwrap(), Tune::On, "{word}");
            assert_eq!(read_cache(Some(word.as_ref())).unwrap(), Cache::User, "{word}");
        }
        for word in ["off", "OFF", "0", "false", "No"] {
            assert!(!read_flag("HADAL_POOL", Some(word.as_ref()), true).unwrap(), "{word}");
            assert_eq!(read_tune(Some(word.as_ref())).unwrap(), Tune::Off, "{word}");
            assert_eq!(read_cache(Some(word.as_ref())).unwrap(), Cache::Off, "{word}");
        }
        assert_eq!(read_tune(Some("Force".as_ref())).unwrap(), Tune::Force);
        for path in ["/tmp/cache", "./cache", "a/b", "../off"] {
            assert_eq!(read_cache(Some(path.as_ref())).unwrap(), Cache::At(path.into()), "{path}");
        }
        let errors = [
            (
                read_flag("HADAL_SYNC", Some("2".as_ref()), false).unwrap_err(),
                "HADAL_SYNC: \"2\" is not known; it may be on or off",
            ),
            (read_tune(Some("fast".as_ref())).unwrap_err(), "HADAL_TUNE: \"fast\" is not known; it may be off, on or force"),
            (
                read_cache(Some("none".as_ref())).unwrap_err(),
                "HADAL_CACHE: \"none\" is not known; it may be on, off, or a folder",
            ),
        ];
        for (e, start) in errors {
            assert!(e.to_string().starts_with(start), "{e}");
        }
        assert!(read_flag("HADAL_SYNC", None, false).is_ok_and(|on| !on) && read_tune(None).is_ok() && read_cache(None).is_ok());
    }
}
