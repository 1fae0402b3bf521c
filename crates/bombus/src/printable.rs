//! Texts that others wrote, without the characters by which they could control a terminal: a model says what its prompt makes it say, and servers
//! and other machines say what they like.

use std::borrow::Cow;

/// Leaves such characters out of a text that is shown in a line, with all that would end the line.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).collect()
}

/// Leaves such characters out of a text whose lines stay apart.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    let controls = |character: char| character.is_control() && !matches!(character, '\n' | '\t');
    if text.contains(controls) { Cow::Owned(text.replace(controls, "")) } else { Cow::Borrowed(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_controls_the_terminal() {
        let text = "a\x1b[2Jb\x07\u{9b}2J\r\n\tc";
        assert_eq!((one_line(text).as_str(), &*lines(text)), ("a[2Jb2Jc", "a[2Jb2J\n\tc"));
        assert!(matches!(lines("ümläut\n"), Cow::Borrowed(_)));
    }
}
