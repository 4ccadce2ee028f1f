//! Text that comes from files and reaches a terminal or a log.

use std::borrow::Cow;

/// The text without characters that a terminal obeys or that hide others: control characters (ECMA-48) but for line feeds
/// and tabs, and those that turn the direction of writing (Unicode Standard Annex #9) become U+FFFD.
pub fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t') || matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    if text.contains(obeyed) { Cow::Owned(text.replace(obeyed, "\u{FFFD}")) } else { Cow::Borrowed(text) }
}

/// As [`printable`], in one line.
pub fn one_line(text: &str) -> Cow<'_, str> {
    match printable(text) {
        text if text.contains(['\n', '\t']) => Cow::Owned(text.replace(['\n', '\t'], "\u{FFFD}")),
        text => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        assert!(matches!(printable("Übung\n\t😀"), Cow::Borrowed(_)));
        assert_eq!(printable("a\x1b[2Jb\u{9b}31mc\x7f\r"), "a\u{FFFD}[2Jb\u{FFFD}31mc\u{FFFD}\u{FFFD}");
        assert_eq!(printable("\u{202E}txt.exe"), "\u{FFFD}txt.exe");
        assert_eq!(one_line("a\nb\tc\x07"), "a\u{FFFD}b\u{FFFD}c\u{FFFD}");
    }
}
