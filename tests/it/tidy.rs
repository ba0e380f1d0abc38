//! What lints cannot enforce: import arrows, where unsafe may be, sizes, ASCII, and that the
//! paths which documents name exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Who may import whom: each module, and what it may name besides itself and the leaves.
/// ARCHITECTURE.md draws the same picture.
const ARROWS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("cli", &["daemon", "config", "control", "lvol", "block", "hw"]),
    (
        "daemon",
        &[
            "config",
            "control",
            "fuse",
            "nvmf",
            "volume",
            "reservation",
            "lvol",
            "block",
            "nvme",
            "hw",
            "emulated",
        ],
    ),
    ("config", &[]),
    ("control", &[]),
    ("fuse", &["volume", "reservation", "lvol", "block", "hw"]),
    ("nvmf", &["volume", "reservation", "lvol", "block", "hw"]),
    ("volume", &["reservation", "lvol", "block", "hw"]),
    ("reservation", &["hw"]),
    ("lvol", &["block", "hw"]),
    ("block", &["nvme", "hw"]),
    ("nvme", &["hw"]),
    ("hw", &[]),
    ("reactor", &["hw"]),
    ("spec", &[]),
    ("units", &[]),
    ("emulated", &["hw"]),
    ("sim", &["block", "hw"]),
];
const LEAVES: &[&str] = &["units", "spec", "reactor"];
/// The only files where `unsafe` may stand.
const UNSAFE: &[&str] = &["src/hw/", "src/hw.rs", "src/reactor/ring.rs"];
const LINES_LIMIT: usize = 600;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join("src"), &mut found);
    found.sort();
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        (name, text)
    };
    found.into_iter().map(read).collect()
}

/// The part of a file before its unit tests.
fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod ").next().unwrap()
}

fn module_of(file: &str) -> &str {
    let inner = file.strip_prefix("src/").unwrap();
    inner.split('/').next().unwrap().trim_end_matches(".rs")
}

/// Top-level modules that a text names by `crate::`, as `crate::a` or `crate::{a, b}`.
fn imports(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + 7..];
        let names: Vec<&str> = match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap().split(',').map(str::trim).collect(),
            None => vec![rest],
        };
        for name in names {
            let end = name.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(name.len());
            found.insert(name[..end].to_owned());
        }
    }
    found
}

#[test]
fn imports_follow_the_arrows() {
    for (file, text) in sources() {
        let module = module_of(&file);
        if module == "lib" {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
            panic!("{file}: module {module} has no place in the picture; add it to ARROWS");
        };
        let product = without_tests(&text).replace("lvolfs::", "crate::");
        let code: String = product
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .map(|line| format!("{line}\n"))
            .collect();
        for name in imports(&code) {
            let known = ARROWS.iter().any(|(module, _)| *module == name);
            let fine = name == module || allowed.contains(&&*name) || LEAVES.contains(&&*name);
            assert!(!known || fine, "{file}: {module} must not import {name}");
        }
    }
}

#[test]
fn unsafe_stays_in_its_place() {
    for (file, text) in sources() {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let uses = code.clone().any(|line| {
            line.contains("unsafe {") || line.contains("unsafe impl") || line.contains("unsafe fn")
        });
        let lifts = text.contains("unsafe_code");
        let allowed = UNSAFE.iter().any(|place| file.starts_with(place));
        assert!(allowed || !(uses || lifts), "{file}: unsafe code outside of {UNSAFE:?}");
    }
}

#[test]
fn files_are_of_a_readable_size_and_plain_ascii() {
    for (file, text) in sources() {
        let lines = without_tests(&text).lines().count();
        assert!(lines <= LINES_LIMIT, "{file}: {lines} lines without tests; split it");
        assert!(text.is_ascii(), "{file}: not ASCII");
        assert!(text.starts_with("//!"), "{file}: does not open with its module's job");
        assert!(!text.contains('\t'), "{file}: a tab");
    }
}

/// Paths in backquotes or links of a document that look like files of this repository.
fn paths_named(text: &str) -> BTreeSet<String> {
    text.split(['`', '(', ')', ' ', '\n'])
        .map(|word| word.trim_end_matches(['.', ',', ':', ';']))
        .filter(|word| {
            ["src/", "tests/", "docs/", "benches/", "mount/", ".ci/"]
                .iter()
                .any(|folder| word.starts_with(folder))
        })
        .filter(|word| !word.contains(['*', '<', '{', '$']))
        .filter(|word| !word.starts_with("mount/volumes/"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn paths_named_in_documents_exist() {
    let mut documents = vec![root().join("README.md"), root().join("ARCHITECTURE.md")];
    // A checkout without a single document has no folder: git does not keep empty ones.
    if let Ok(docs) = std::fs::read_dir(root().join("docs")) {
        documents.extend(docs.map(|entry| entry.unwrap().path()));
    }
    for document in documents {
        let Ok(text) = std::fs::read_to_string(&document) else { continue };
        for path in paths_named(&text) {
            assert!(
                root().join(&path).exists(),
                "{} names {path}, which does not exist",
                document.display()
            );
        }
    }
}

#[test]
fn the_checks_find_what_they_look_for() {
    let found = imports("use crate::lvol::Store;\nuse crate::{block, nvme::Queue};");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["block", "lvol", "nvme"]);
    assert_eq!(paths_named("see `src/nope.rs`, docs/x.md.").len(), 2);
    assert_eq!(without_tests("a\n#[cfg(test)]\nmod tests {}"), "a");
}
