//! Rust source as text in which comments, literals and test modules are told apart.
//!
//! Not a parser: it knows comments (nested too), strings (raw too), characters and lifetimes, and
//! matches braces. What it removes it replaces by spaces, so that lines keep their numbers.

/// The text with comments and the insides of literals blanked.
pub fn code(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < characters.len() {
        let end = skip(&characters, at);
        if end == at {
            out.push(characters[at]);
            at += 1;
            continue;
        }
        let blank = |&character: &char| if character == '\n' { '\n' } else { ' ' };
        out.extend(characters[at..end].iter().map(blank));
        at = end;
    }
    out
}

/// [`code`] without modules and items that exist for tests only.
pub fn code_without_tests(text: &str) -> String {
    let mut code: Vec<char> = code(text).chars().collect();
    let marker: Vec<char> = "#[cfg(test)]".chars().collect();
    let mut at = 0;
    while at + marker.len() <= code.len() {
        if code[at..at + marker.len()] != marker[..] {
            at += 1;
            continue;
        }
        let end = item_end(&code, at + marker.len());
        for character in &mut code[at..end] {
            if *character != '\n' {
                *character = ' ';
            }
        }
        at = end;
    }
    code.into_iter().collect()
}

/// Where the item that begins at `at` ends: after its `;`, or after its outermost braces.
fn item_end(code: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < code.len() {
        match code[at] {
            ';' if depth == 0 => return at + 1,
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    at
}

/// Where the comment or literal that begins at `at` ends; `at` itself when none does.
fn skip(text: &[char], at: usize) -> usize {
    let starts = |pattern: &str| {
        pattern.chars().enumerate().all(|(offset, c)| text.get(at + offset) == Some(&c))
    };
    if starts("//") {
        return (at..text.len()).find(|&end| text[end] == '\n').unwrap_or(text.len());
    }
    if starts("/*") {
        return block_comment(text, at);
    }
    let before = at.checked_sub(1).map(|before| text[before]);
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if !in_word {
        for prefix in ["br", "cr", "r"] {
            if starts(prefix)
                && let Some(end) = raw_string(text, at + prefix.len())
            {
                return end;
            }
        }
    }
    match text[at] {
        '"' => quoted(text, at, '"'),
        // A lifetime has no closing quote after one character.
        '\'' if text.get(at + 1) == Some(&'\\') || text.get(at + 2) == Some(&'\'') => {
            quoted(text, at, '\'')
        }
        _ => at,
    }
}

fn quoted(text: &[char], at: usize, quote: char) -> usize {
    let mut end = at + 1;
    while end < text.len() && text[end] != quote {
        end += if text[end] == '\\' { 2 } else { 1 };
    }
    (end + 1).min(text.len())
}

fn raw_string(text: &[char], at: usize) -> Option<usize> {
    let hashes = text[at..].iter().take_while(|&&c| c == '#').count();
    if text.get(at + hashes) != Some(&'"') {
        return None;
    }
    let mut end = at + hashes + 1;
    while end < text.len() {
        let closes = text[end] == '"'
            && text[end + 1..].iter().take_while(|&&c| c == '#').take(hashes).count() == hashes;
        if closes {
            return Some(end + 1 + hashes);
        }
        end += 1;
    }
    Some(end)
}

fn block_comment(text: &[char], at: usize) -> usize {
    let (mut end, mut depth) = (at, 0);
    while end + 1 < text.len() {
        match (text[end], text[end + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') if depth == 1 => return end + 2,
            ('*', '/') => depth -= 1,
            _ => {
                end += 1;
                continue;
            }
        }
        end += 2;
    }
    text.len()
}

/// Whether `word` stands at `at` as a word or path of its own, not as part of a longer one.
pub fn is_word(code: &str, at: usize, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let before = code[..at].chars().next_back();
    let after = code[at + word.len()..].chars().next();
    !before.is_some_and(part) && !after.is_some_and(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        let cases = [
            ("a // std::net\nb", "a            \nb"),
            ("a /* x /* y */ z */ b", "a                   b"),
            ("f(\"std::fs \\\" x\")", "f(              )"),
            ("r#\"a\"b\"# c", "         c"),
            ("'a' 'b: &'c T", "    'b: &'c T"),
            ("'\\'' x", "     x"),
            ("for\"x\"", "for   "),
        ];
        for (text, expected) in cases {
            assert_eq!(code(text), expected, "{text}");
        }
    }

    #[test]
    fn test_modules_are_left_out_and_what_follows_is_not() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { {} } }\nfn c() {}\n#[cfg(test)]\nmod t;\nfn d() {}";
        let left = code_without_tests(text);
        assert!(!left.contains('b') && !left.contains("mod t"), "{left}");
        assert!(left.contains("fn a") && left.contains("fn c") && left.contains("fn d"), "{left}");
        assert_eq!(left.lines().count(), text.lines().count());
    }
}
