//! Every `unsafe` has its reason right above: `// SAFETY:` for blocks and implementations, `# Safety` in the
//! documentation of functions and traits.

use crate::source::{code, is_word};
use crate::tree::File;

/// Uses of `unsafe` without a reason.
pub fn findings(file: &File) -> Vec<String> {
    let code = code(&file.text);
    let code: Vec<&str> = code.lines().collect();
    let text: Vec<&str> = file.text.lines().collect();
    let mut findings = Vec::new();
    for (number, line) in code.iter().enumerate() {
        let used = line.match_indices("unsafe").any(|(at, word)| is_word(line, at, word));
        let in_attribute = line.trim_start().starts_with('#');
        if used && !in_attribute && !is_type(line) && !has_reason(&code, &text, number) {
            findings.push(format!(
                "{}:{}: unsafe without a reason",
                file.path.display(),
                number + 1
            ));
        }
    }
    findings
}

/// `unsafe extern "C" fn(…)` and `unsafe fn(…)` as types promise nothing.
fn is_type(line: &str) -> bool {
    let rest = line.split("unsafe").nth(1).unwrap_or_default().trim_start();
    let rest = rest.strip_prefix("extern").unwrap_or(rest).trim_start();
    rest.starts_with("fn(")
}

/// Walks up to the beginning of the statement or item, through the comment above it.
fn has_reason(code: &[&str], text: &[&str], number: usize) -> bool {
    let reason = |line: usize| text[line].contains("SAFETY:") || text[line].contains("# Safety");
    if reason(number) {
        return true;
    }
    for above in (0..number).rev() {
        if reason(above) {
            return true;
        }
        let rest = code[above].trim_end();
        if rest.ends_with([';', '{', '}', ',']) || text[above].trim().is_empty() {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(text: &str) -> usize {
        findings(&File { path: "x.rs".into(), text: text.to_owned() }).len()
    }

    #[test]
    fn reasons_are_seen_where_they_belong() {
        assert_eq!(look("// SAFETY: it is.\nunsafe { f() }"), 0);
        assert_eq!(look("// SAFETY: it is,\n// really.\nlet x =\n    unsafe { f() };"), 0);
        assert_eq!(
            look("/// Does.\n///\n/// # Safety\n/// Never.\n#[inline]\npub unsafe fn f() {}"),
            0
        );
        assert_eq!(look("// unsafe is not used\nlet s = \"unsafe\";"), 0);
        assert_eq!(look("#![forbid(unsafe_code)]\ntype F = unsafe fn(u8);"), 0);
    }

    #[test]
    fn missing_reasons_are_found() {
        assert_eq!(look("unsafe { f() }"), 1);
        assert_eq!(look("// SAFETY: of another.\ng();\nunsafe { f() }"), 1);
        assert_eq!(look("// SAFETY: too far away.\n\nunsafe { f() }"), 1);
        assert_eq!(look("unsafe impl Send for X {}"), 1);
        assert_eq!(look("/// Does.\npub unsafe fn f() {}"), 1);
    }
}
