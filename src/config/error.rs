//! What is wrong with a configuration, and where: file, line, key, value, and what is allowed.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::FILE_BYTES_LIMIT;

/// A longer value is shown by its beginning.
const VALUE_SHOWN_CHARACTERS: usize = 60;

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration file {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is longer than any configuration.
    #[error(
        "{} is no configuration file: it is longer than {FILE_BYTES_LIMIT} bytes",
        .path.display()
    )]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file says something that is not allowed.
    #[error("{}", Lines(.path, .problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Everything that was found, in the file's order; at least one.
        problems: Vec<Problem>,
    },
}

/// The problems, one a line, each after its file and line.
struct Lines<'a>(&'a Path, &'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.1.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{}:{problem}", self.0.display())?;
        }
        Ok(())
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// The key, after its section: `device.size`. Empty where the text is not TOML.
    pub key: String,
    /// The value as the file has it, shortened; empty if it is the key that is wrong.
    pub value: String,
    /// What is wrong, and what is allowed.
    pub rule: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, key, value, rule } = self;
        match (key.as_str(), value.as_str()) {
            ("", _) => write!(f, "{line}: {rule}"),
            (_, "") => write!(f, "{line}: {key}: {rule}"),
            _ => write!(f, "{line}: {key} = {value}: {rule}"),
        }
    }
}

impl Problem {
    /// A problem of the value of `key` at `span`.
    pub(super) fn at(text: &str, span: Range<usize>, key: &str, rule: String) -> Self {
        let value = shortened(text.get(span.clone()).unwrap_or_default());
        Self { line: line_of(text, span.start), key: key.to_owned(), value, rule }
    }

    /// A problem of the section `section` at `span` as a whole.
    pub(super) fn of_section(text: &str, span: &Range<usize>, section: &str, rule: String) -> Self {
        let line = line_of(text, span.start);
        Self { line, key: section.to_owned(), value: String::new(), rule }
    }

    /// What TOML or serde refused.
    pub(super) fn from_toml(error: &toml::de::Error, text: &str) -> Self {
        let span = error.span().unwrap_or(0..0);
        let (table, _) = DeTable::parse_recoverable(text);
        let mut path = Vec::new();
        let found = locate(table.get_ref(), &span, &mut path);
        let key = path.join(".");
        let rule = in_words(error.message());
        match found {
            Some(Found::Value) => Self::at(text, span, &key, rule),
            Some(Found::Key) => Self::of_section(text, &span, &key, rule),
            // Only a repeated key has no place in the table: the first one has taken it.
            None => {
                let repeated = text.get(span.clone()).unwrap_or_default();
                let rule = if rule == "duplicate key" {
                    format!("the key {:?} is there twice", shortened(repeated))
                } else {
                    rule
                };
                Self::of_section(text, &span, "", rule)
            }
        }
    }
}

enum Found {
    Key,
    Value,
}

/// Finds what stands at `span`; leaves its keys, from the outermost, in `path`.
fn locate(table: &DeTable<'_>, span: &Range<usize>, path: &mut Vec<String>) -> Option<Found> {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        if key.span() == *span {
            return Some(Found::Key);
        }
        let tables: Vec<&DeTable<'_>> = match value.get_ref() {
            DeValue::Table(table) => vec![table],
            DeValue::Array(list) => {
                list.iter().filter_map(|item| item.get_ref().as_table()).collect()
            }
            _ => Vec::new(),
        };
        // The header of `[a]` and of `[[a]]` is no value of its own, so look inside first.
        for inner in &tables {
            if let Some(found) = locate(inner, span, path) {
                return Some(found);
            }
        }
        let place = value.span();
        if tables.is_empty() && place.start <= span.start && span.end <= place.end {
            return Some(Found::Value);
        }
        path.pop();
    }
    None
}

/// Serde's words for an operator; an unknown name is followed by the nearest of those it expects.
fn in_words(message: &str) -> String {
    let message = message
        .trim_end()
        .replace('\n', ", ")
        .replace('`', "\"")
        .replace("unknown field", "unknown key")
        .replace("unknown variant", "unknown value")
        .replace("expected u32", "expected a whole number from 0 to 4294967295")
        .replace("expected i64", "expected a whole number")
        .replace("expected a boolean", "expected true or false");
    if !message.starts_with("unknown ") {
        return message;
    }
    let mut names = message.split('"').skip(1).step_by(2);
    let Some(unknown) = names.next() else { return message };
    match nearest(unknown, names) {
        Some(name) => format!("{message}; did you mean \"{name}\"?"),
        None => message,
    }
}

/// The name nearest to `unknown`, if any is near enough to be what was meant.
fn nearest<'a>(unknown: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = 1 + unknown.len() / 3;
    names
        .map(|name| (distance(unknown, name), name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's distance in bytes. Anything beyond 64 bytes is not compared: no key is so long.
fn distance(left: &str, right: &str) -> usize {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    if left.len().max(right.len()) > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(l != r);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|&&byte| byte == b'\n').count()
}

fn shortened(value: &str) -> String {
    let line = value.lines().next().unwrap_or_default();
    let mut shown: String = line.chars().take(VALUE_SHOWN_CHARACTERS).collect();
    if shown.len() < value.len() {
        shown.push_str("...");
    }
    shown
}

/// Reads the file, up to [`FILE_BYTES_LIMIT`].
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mut text = String::new();
    file.take(FILE_BYTES_LIMIT + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_LIMIT {
        return Err(ConfigError::TooLong { path: path.to_owned() });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_hinted_at() {
        let hint = |word| nearest(word, ["size", "name", "block_size"].into_iter());
        assert_eq!(hint("siez"), Some("size"));
        assert_eq!(hint("blocksize"), Some("block_size"));
        assert_eq!(hint("volume"), None);
        assert_eq!(hint(&"x".repeat(1000)), None);
    }

    #[test]
    fn distances() {
        for (left, right, expected) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3)] {
            assert_eq!(distance(left, right), expected, "{left} {right}");
            assert_eq!(distance(right, left), expected, "{right} {left}");
        }
    }
}
