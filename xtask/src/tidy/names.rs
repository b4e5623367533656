//! Names that say nothing, and files that do not belong in git.

use std::path::{Path, PathBuf};

use super::Violation;
use super::tokens::Token;

const EMPTY_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "common", "manager", "misc", "types"];

/// Endings of what compilers leave behind.
const ARTEFACTS: &[&str] = &["o", "a", "so", "d", "rlib", "rmeta", "exe", "class", "jar", "pyc", "wasm", "profraw"];

/// The one object that is committed: `cargo xtask ebpf` makes it.
const COMMITTED_OBJECT: &str = "observer-ebpf/observer.bpf.o";

/// Inputs of the fuzz targets: some are programs.
const SEEDS: &str = "tests/fuzz/corpus";

const FIX: &str = "name it after what it holds, in the field's own words";

/// Refuses a file or directory with an empty name.
pub(crate) fn check_path(path: &Path) -> Vec<Violation> {
    let stem = path.with_extension("");
    let mut parts = stem.iter().map(|part| part.to_string_lossy());
    match parts.find(|part| EMPTY_NAMES.contains(&part.as_ref())) {
        Some(part) => vec![Violation::new(path, 1, format!("the name `{part}` says nothing"), FIX)],
        None => Vec::new(),
    }
}

/// Refuses a module with an empty name.
pub(crate) fn check_modules(path: &Path, tokens: &[Token]) -> Vec<Violation> {
    let named = tokens.windows(2).filter(|pair| pair[0].word() == Some("mod"));
    named
        .filter_map(|pair| Some((pair[1].word()?, pair[1].line)))
        .filter(|(name, _)| EMPTY_NAMES.contains(name))
        .map(|(name, line)| Violation::new(path, line, format!("the name `{name}` says nothing"), FIX))
        .collect()
}

/// Refuses build artefacts among what git tracks; `is_elf` looks at a file's first bytes.
pub(crate) fn check_tracked(tracked: &[PathBuf], is_elf: impl Fn(&Path) -> bool) -> Vec<Violation> {
    let is_artefact = |path: &Path| {
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        path.iter().any(|part| part == "target" || part == "__pycache__")
            || ARTEFACTS.contains(&extension.as_ref())
            || is_elf(path)
    };
    tracked
        .iter()
        .filter(|path| *path != Path::new(COMMITTED_OBJECT) && !path.starts_with(SEEDS) && is_artefact(path))
        .map(|path| {
            let fix =
                format!("git rm --cached {0} and ignore it; {COMMITTED_OBJECT} alone is committed", path.display());
            Violation::new(path, 1, "a build artefact is committed", fix)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tokens::lex;
    use super::*;

    #[test]
    fn refuses_empty_names_of_files_directories_and_modules() {
        assert_eq!(check_path(Path::new("observer/src/utils.rs")).len(), 1);
        assert_eq!(check_path(Path::new("observer/src/common/lock.rs")).len(), 1);
        let tokens = lex("pub mod lock;\nmod helpers {}\n").unwrap_or_default();
        let violations = check_modules(Path::new("a.rs"), &tokens);
        assert_eq!(violations.iter().map(|violation| violation.line).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn accepts_names_that_say_something() {
        assert!(check_path(Path::new("observer/src/model/lock.rs")).is_empty());
        assert!(check_path(Path::new("observer/src/census/commonality.rs")).is_empty());
        let tokens = lex("mod lock; let types = 1;").unwrap_or_default();
        assert!(check_modules(Path::new("a.rs"), &tokens).is_empty());
    }

    #[test]
    fn refuses_committed_artefacts_but_not_the_one_object() {
        let tracked = [
            "observer-ebpf/observer.bpf.o",
            "tests/victims/deadlock.o",
            "target/x",
            "tests/victims/deadlock",
            "tests/fuzz/corpus/names/seed-plain",
            "README.md",
        ]
        .map(PathBuf::from);
        let is_elf = |path: &Path| path.extension().is_none_or(|end| end == "o") && !path.starts_with("target");
        let refused: Vec<PathBuf> =
            check_tracked(&tracked, is_elf).into_iter().map(|violation| violation.path).collect();
        assert_eq!(refused, ["tests/victims/deadlock.o", "target/x", "tests/victims/deadlock"].map(PathBuf::from));
    }
}
