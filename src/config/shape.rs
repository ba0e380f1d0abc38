//! The outermost form of a file: which sections are there once, which any number of times. Serde
//! would take a list for a section, and says little to one who wrote `[pool]` for `[[pool]]`.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Problem;

const ONCE: &[&str] = &["mount", "control", "target", "reservations", "reactor", "log"];
const REPEATED: &[&str] = &["device", "pool", "volume"];

/// Refuses what is not TOML, and a section in the wrong kind of brackets.
pub(super) fn check(text: &str) -> Result<(), Vec<Problem>> {
    let table = DeTable::parse(text).map_err(|error| vec![Problem::from_toml(&error, text)])?;
    let mut problems = Vec::new();
    for (key, value) in table.get_ref() {
        let name = key.get_ref().as_ref();
        let rule = if ONCE.contains(&name) && !value.get_ref().is_table() {
            format!("this section is there once, as [{name}]")
        } else if REPEATED.contains(&name) && !is_list_of_tables(value) {
            format!("there may be several of these sections, each as [[{name}]]")
        } else {
            continue;
        };
        problems.push(Problem::of_section(text, &key.span(), name, rule));
    }
    problems.sort_by_key(|problem| problem.line);
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

fn is_list_of_tables(value: &Spanned<DeValue<'_>>) -> bool {
    let list = value.get_ref().as_array();
    list.is_some_and(|list| list.iter().all(|item| item.get_ref().is_table()))
}
