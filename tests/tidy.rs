//! The rules of the house that no compiler checks: imports run downward, deciding code stays pure, files stay small,
//! tables are complete, and nothing in the repository knows the machine it was written on.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what a test's helpers cannot read is a failure of the test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The storeys, top first. A room may import what is below its own storey, and itself.
const STOREYS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["node"],
    &["config"],
    &["api", "admin", "client"],
    &["replication"],
    &["cluster"],
    &["store", "transport"],
    &["blocking", "clock", "disk", "messagepack", "telemetry", "token"],
    &["types"],
];
/// The map of the house: it names every room.
const MAP: &str = "lib";
/// Files and folders that decide, and so are pure.
const PURE: &[&str] = &[
    "src/api/access.rs",
    "src/api/limits.rs",
    "src/replication/register",
    "src/replication/collection.rs",
    "src/replication/repair.rs",
    "src/replication/outbox.rs",
    "src/cluster/membership.rs",
    "src/cluster/hello.rs",
    "src/cluster/memory.rs",
    "src/store/feed/ring.rs",
    "src/store/digest.rs",
    "src/store/update.rs",
    "src/types.rs",
];
/// What no pure file mentions: I/O, the clock, and ambient randomness.
const IMPURE: &[&str] = &["tokio", "rusqlite", "quinn", "SystemTime", "Instant", "rand"];
/// The longest file, in lines, its tests apart.
const FILE_LINES_MAX: usize = 650;
/// Files and folders that programs made.
const MADE: &[&str] = &[".git", "target", "outrigger-data", "outrigger-dev", "proptest-regressions"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A source file, named from the root, with its code apart from comments, texts and tests.
struct Source {
    path: String,
    code: String,
}

impl Source {
    /// The room that it belongs to.
    fn room(&self) -> &str {
        let inside = self.path.trim_start_matches("src/");
        inside.split('/').next().unwrap().trim_end_matches(".rs")
    }

    /// How many `super::` lead from this file's module to the root of the crate.
    fn depth(&self) -> usize {
        let inside = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        inside.split('/').filter(|part| *part != "mod").count()
    }
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if MADE.contains(&name) || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            files_below(&path, found);
        } else if path.is_file() {
            found.push(path);
        }
    }
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()
}

/// Every source file of the program itself: files of tests are apart.
fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    files_below(&root().join("src"), &mut paths);
    let is_source = |path: &&PathBuf| {
        let name = relative(path);
        name.ends_with(".rs") && !name.ends_with("/tests.rs") && !name.contains("/tests/")
    };
    let read = |path: &PathBuf| Source { path: relative(path), code: code_of(&fs::read_to_string(path).unwrap()) };
    paths.iter().filter(is_source).map(read).collect()
}

/// The code of a file: comments and texts blanked, line by line, and everything from its inline tests on cut off.
fn code_of(text: &str) -> String {
    let blanked = blank(text);
    let tests = blanked.find("#[cfg(test)]\nmod tests {").unwrap_or(blanked.len());
    blanked[..tests].to_owned()
}

/// Replaces comments, texts and characters by nothing, and keeps the lines.
fn blank(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = raw_text(rest) {
            length
        } else if first == '"' {
            quoted(rest, '"')
        } else if let Some(length) = character(rest) {
            length
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        out.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
        rest = &rest[skipped..];
    }
    out
}

/// The length of a raw text at the start of `rest`.
fn raw_text(rest: &str) -> Option<usize> {
    let hashes = rest.strip_prefix('r')?.chars().take_while(|c| *c == '#').count();
    if !rest[1 + hashes..].starts_with('"') {
        return None;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let body = hashes + 2;
    Some(rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len()))
}

/// The length of what `quote` opens at the start of `rest`.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character literal at the start of `rest`; a lifetime is none.
fn character(rest: &str) -> Option<usize> {
    let mut inside = rest.strip_prefix('\'')?.chars();
    let (first, second) = (inside.next()?, inside.next()?);
    (first == '\\' || second == '\'').then(|| quoted(rest, '\''))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !is_word(c)).filter(|word| !word.is_empty())
}

/// The rooms that `code` names by paths that begin with `prefix`, as in `crate::store` and `crate::{clock, store::x}`.
fn rooms_after<'a>(code: &'a str, prefix: &str) -> Vec<&'a str> {
    let mut rooms = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(|c: char| is_word(c) || c == ':') {
            continue;
        }
        let after = code[at + prefix.len()..].trim_start();
        match after.strip_prefix('{') {
            Some(group) => rooms.extend(heads(group)),
            None => rooms.extend(words(after).next()),
        }
    }
    rooms
}

/// The first word of every part of a group of imports, whose `{` is already read.
fn heads(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0_usize, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.into_iter().filter_map(|part| words(part).next()).collect()
}

fn storey(room: &str) -> Option<usize> {
    STOREYS.iter().position(|rooms| rooms.contains(&room))
}

/// The imports of a source that do not run downward.
fn upward(source: &Source) -> Vec<String> {
    let room = source.room();
    let own = storey(room).unwrap_or_else(|| panic!("{}: no storey; give {room} its place in tidy.rs", source.path));
    let to_root = "super::".repeat(source.depth());
    let mut named = rooms_after(&source.code, "crate::");
    named.extend(rooms_after(&source.code, &to_root));
    // The program names the library's rooms through the library.
    named.extend(rooms_after(&source.code, "outrigger::"));
    let is_wrong = |other: &&str| *other != room && storey(other).is_some_and(|theirs| theirs <= own);
    let wrong: BTreeSet<&str> = named.into_iter().filter(is_wrong).collect();
    wrong.into_iter().map(|other| format!("{} imports {other}", source.path)).collect()
}

#[test]
fn imports_run_downward() {
    let wrong: Vec<String> = sources().iter().filter(|source| source.room() != MAP).flat_map(upward).collect();
    assert!(wrong.is_empty(), "these run upward or sideways: {wrong:#?}");
}

#[test]
fn what_decides_is_pure() {
    let sources = sources();
    for pure in PURE {
        let is_here = |source: &&Source| source.path == *pure || source.path.starts_with(&format!("{pure}/"));
        let files: Vec<_> = sources.iter().filter(is_here).collect();
        assert!(!files.is_empty(), "{pure} is gone; correct the list in tidy.rs");
        for source in files {
            let found: Vec<_> = words(&source.code).filter(|word| IMPURE.contains(word)).collect();
            assert!(found.is_empty(), "{} is to be pure but mentions {found:?}", source.path);
        }
    }
}

#[test]
fn files_stay_small() {
    let long = |source: &Source| {
        let lines = source.code.lines().count();
        (lines > FILE_LINES_MAX).then(|| format!("{} has {lines} lines", source.path))
    };
    let long: Vec<String> = sources().iter().filter_map(long).collect();
    assert!(long.is_empty(), "more than {FILE_LINES_MAX}; what are the two rooms called? {long:#?}");
}

#[test]
fn every_metric_is_used() {
    let table = fs::read_to_string(root().join("src/telemetry.rs")).unwrap();
    let name_of = |line: &str| {
        let (name, rest) = line.trim().split_once(", ")?;
        let is_row = ["Counter, ", "Gauge, ", "Histogram, "].iter().any(|kind| rest.starts_with(kind));
        is_row.then(|| name.to_owned())
    };
    let names: BTreeSet<String> = table.lines().filter_map(name_of).collect();
    assert_eq!(names.len(), outrigger::telemetry::METRICS.len(), "the table is read wrongly: {names:?}");
    let sources = sources();
    let used: BTreeSet<&str> =
        sources.iter().filter(|source| source.path != "src/telemetry.rs").flat_map(|s| words(&s.code)).collect();
    let unused: Vec<_> = names.iter().filter(|name| !used.contains(name.as_str())).collect();
    assert!(unused.is_empty(), "in the table of metrics, but nowhere counted: {unused:?}");
}

#[test]
fn every_configuration_key_is_in_the_documented_file() {
    let text = fs::read_to_string(root().join("config/outrigger.toml")).unwrap();
    for key in outrigger::config::KEYS {
        let (section, name) = key.path.split_once('.').unwrap();
        let section = section_of(&text, section);
        for part in name.split('.') {
            assert!(words(section).any(|word| word == part), "config/outrigger.toml lacks {}", key.path);
        }
    }
}

fn section_of<'a>(text: &'a str, section: &str) -> &'a str {
    let Some((_, after)) = text.split_once(&format!("\n[{section}]\n")) else {
        panic!("config/outrigger.toml has no [{section}]");
    };
    after.split("\n[").next().unwrap()
}

/// What is wrong with a mutant of the program (`tests/sim/mutants`): each hunk of its patch must still find its place.
fn unfit(patch: &str, read: impl Fn(&str) -> Option<String>) -> Option<String> {
    let mut lines = patch.lines().peekable();
    let mut said = 0;
    while lines
        .next_if(|line| !line.starts_with("--- "))
        .inspect(|line| said += usize::from(!line.is_empty()))
        .is_some()
    {}
    if said == 0 {
        return Some("does not say what it does and what it breaks".to_owned());
    }
    let (mut file, mut hunks) = (None, 0);
    while let Some(line) = lines.next() {
        if let Some(path) = line.strip_prefix("+++ b/") {
            file = read(path).map(|text| (path, text));
        } else if line.starts_with("@@ ") {
            hunks += 1;
            let hunk =
                std::iter::from_fn(|| lines.next_if(|line| !line.starts_with("@@ ") && !line.starts_with("--- ")));
            let (added, before): (Vec<&str>, Vec<&str>) = hunk.partition(|line| line.starts_with('+'));
            if added.is_empty() && before.iter().all(|line| !line.starts_with('-')) {
                return Some(format!("changes nothing at {line}"));
            }
            let before = before.iter().map(|line| line.get(1..).unwrap_or_default()).collect::<Vec<_>>().join("\n");
            match &file {
                Some((_, text)) if text.contains(&before) => {}
                Some((path, _)) => return Some(format!("{path} has no such lines: {line}\n{before}")),
                None => return Some(format!("no such file at {line}")),
            }
        }
    }
    (hunks == 0).then(|| "changes nothing".to_owned())
}

#[test]
fn every_mutant_still_applies() {
    let folder = root().join("tests/sim/mutants");
    let mut paths = Vec::new();
    files_below(&folder, &mut paths);
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    let read = |path: &str| fs::read_to_string(root().join(path)).ok();
    let wrong = |path: &PathBuf| {
        let why = unfit(&fs::read_to_string(path).unwrap(), read)?;
        Some(format!("{} {why}", relative(path)))
    };
    let wrong: Vec<String> = paths.iter().filter_map(wrong).collect();
    assert!(wrong.is_empty(), "make them anew for what is there now: {wrong:#?}");
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    // Put together here, so that this file holds none of them.
    let machine: Vec<String> = ["work", "root", "home"].iter().map(|folder| format!("/{folder}/")).collect();
    let mut paths = Vec::new();
    files_below(&root(), &mut paths);
    let mut wrong = Vec::new();
    for path in paths {
        // What is not text is not ours.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            if machine.iter().any(|folder| line.contains(folder.as_str())) {
                wrong.push(format!("{}:{}: {}", relative(&path), number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "paths of one machine: {wrong:#?}");
}

/// The checks themselves, on made-up files: a check that cannot fail checks nothing.
mod checked {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), code: code_of(text) }
    }

    #[test]
    fn upward_and_sideways_imports_are_found_however_they_are_written() {
        for text in [
            "use crate::api::Command;",
            "use crate::{clock::Clock, api};",
            "use crate::{\n    types::{Key, Value},\n    api::{self, error},\n};",
            "fn f() { crate::api::serve() }",
            "use super::super::api::Command;",
            "const A: char = '\"'; use crate::api; const B: &str = \"\";",
        ] {
            assert_eq!(upward(&source("src/store/shard.rs", text)), ["src/store/shard.rs imports api"], "{text}");
        }
        assert_eq!(
            upward(&source("src/store/mod.rs", "use super::transport;")),
            ["src/store/mod.rs imports transport"]
        );
        assert_eq!(upward(&source("src/main.rs", "use outrigger::node;")), Vec::<String>::new());
        assert_eq!(upward(&source("src/cli/dev.rs", "use outrigger::main;")), ["src/cli/dev.rs imports main"]);
        assert_eq!(upward(&source("src/clock.rs", "use crate::telemetry;")), ["src/clock.rs imports telemetry"]);
    }

    #[test]
    fn a_mutant_that_lost_its_place_is_found() {
        let read = |path: &str| (path == "src/a.rs").then(|| "fn a() {\n    b();\n\n    c();\n}\n".to_owned());
        let patch = |hunk: &str| format!("Breaks a.\n\n--- a/src/a.rs\n+++ b/src/a.rs\n@@ -1,3 +1,2 @@\n{hunk}");
        assert_eq!(unfit(&patch(" fn a() {\n-    b();\n \n     c();\n"), read), None);
        for wrong in [
            patch(" fn a() {\n-    gone();\n"),
            patch(" fn a() {\n-    b();\n     c();\n"),
            patch(" fn a() {\n"),
            patch("-    b();\n").replace("Breaks a.", ""),
            patch("-    b();\n").replace("src/a.rs", "src/b.rs"),
            "Breaks nothing.\n".to_owned(),
        ] {
            assert!(unfit(&wrong, read).is_some(), "{wrong}");
        }
    }

    #[test]
    fn downward_imports_comments_texts_and_tests_are_left_alone() {
        for text in [
            "use crate::{clock::Clock, types::Key};",
            "use crate::store::Manager;",
            "use super::api;",
            "// use crate::api;\n/* crate::api */",
            "const A: &str = \"crate::api\"; const B: &str = r#\"\" crate::api\"#;",
            "fn f<'a>(x: &'a str) {}\n#[cfg(test)]\nmod tests {\n    use crate::api;\n}",
            "use other_crate::api;",
        ] {
            assert_eq!(upward(&source("src/store/shard.rs", text)), Vec::<String>::new(), "{text}");
        }
    }
}
