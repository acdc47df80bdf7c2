//! Holds `docs/FORMATS.md` to the modules: the drawings at their heads are the page's.

const PAGE: &str = include_str!("../../../docs/FORMATS.md");

const MODULES: [(&str, &str); 11] = [
    ("address", include_str!("address.rs")),
    ("flash", include_str!("flash.rs")),
    ("footer", include_str!("footer.rs")),
    ("frame", include_str!("frame.rs")),
    ("map_piece", include_str!("map_piece.rs")),
    ("record", include_str!("record.rs")),
    ("slot", include_str!("slot.rs")),
    ("solo", include_str!("solo.rs")),
    ("superblock", include_str!("superblock.rs")),
    ("vault", include_str!("vault.rs")),
    // Has no drawing: it is encoded by rule.
    ("control", include_str!("control.rs")),
];

/// The text blocks in a module's own comment.
fn drawings(source: &str) -> Vec<String> {
    let comment: Vec<&str> = source
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .collect();
    comment
        .split(|line| line.starts_with("```"))
        .skip(1)
        .step_by(2)
        .map(|drawing| drawing.join("\n"))
        .collect()
}

#[test]
fn the_page_has_every_drawing() {
    for (module, source) in MODULES {
        let drawings = drawings(source);
        assert_eq!(drawings.len(), usize::from(module != "control"), "{module}");
        for drawing in drawings {
            assert!(
                PAGE.contains(&drawing),
                "docs/FORMATS.md has another drawing than {module}.rs"
            );
        }
    }
    let on_page = PAGE.matches("```text").count();
    assert_eq!(on_page, MODULES.len() - 1, "a drawing that no module has");
}
