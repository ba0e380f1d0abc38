//! The on-disk format against images that SPDK wrote, and against its description.

use lvolfs::lvol::format::raw::STRUCTURES;

#[test]
fn the_document_describes_the_structures() {
    let document = include_str!("../../docs/on-disk-format.md");
    let mut headings = document.lines().filter(|line| line.starts_with("### "));
    for structure in STRUCTURES {
        let heading = format!("### {} ({} bytes)", structure.name, structure.size);
        assert_eq!(headings.next(), Some(heading.as_str()));
        let after = document.lines().skip_while(|line| *line != heading);
        let rows: Vec<_> = after.skip(4).take_while(|line| line.starts_with('|')).collect();
        let fields = structure.fields.iter();
        let expected =
            fields.map(|field| format!("| {} | {} | `{}` |", field.offset, field.size, field.name));
        let expected: Vec<_> = expected.collect();
        assert_eq!(rows.len(), expected.len(), "{heading}");
        for (row, expected) in rows.iter().zip(&expected) {
            assert!(row.starts_with(expected), "{heading}: {row:?} instead of {expected:?}");
        }
    }
    assert_eq!(headings.next(), None);
}
