use super::markdown::opening_fence;

/// Indent in spaces, behind the text of the item of a list that it stands in, from which a line is code (CommonMark 0.31.2, section 4.4).
const CODE_INDENT: usize = 4;
/// Most items that begin in one line, each in the one before; what follows is text. To read each mark takes a look at the rest of the line.
const MARKS_MAX: usize = 16;

/// What the lines of an answer leave open for the next one.
#[derive(Debug, Default)]
pub(super) struct Outline {
    /// The items of lists that go on, outermost first.
    items: Vec<Item>,
    /// Whether the line before is text, with which the next one goes on.
    in_paragraph: bool,
    /// Whether the last line that is not empty is code by its indent.
    in_code: bool,
}

/// An item of a list.
#[derive(Debug)]
struct Item {
    /// The least indent of what belongs to it, behind its first paragraph. CommonMark wants that of its text; models are less exact.
    indent_min: usize,
    /// The column at which its text begins.
    text_column: usize,
}

/// What a line begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    /// An item of a list, by a mark of so many characters.
    Item(usize),
    /// A heading or a rule, which has no further lines.
    Line,
    /// A row of a table, or a block of code with fences.
    Framed,
    /// What somebody else says.
    Quote,
    /// A paragraph, or nothing where one goes on.
    Text,
}

impl Outline {
    /// Takes the next line. Returns whether it is code by its indent. What begins an item of a list, a row of a table or a fence is so only
    /// where such code goes on: models indent them as they like.
    pub(super) fn take(&mut self, line: &str) -> bool {
        let mut text = line.trim_start_matches(' ');
        if text.trim().is_empty() {
            self.in_paragraph = false;
            return false;
        }
        let mut column = line.len() - text.len();
        let mut block = Block::of(text);
        // A paragraph goes on, however its further lines are indented.
        if !self.in_paragraph || block != Block::Text {
            self.items.retain(|item| item.indent_min <= column);
        }
        let text_column = self.items.last().map_or(0, |item| item.text_column);
        let is_framed = matches!(block, Block::Item(_) | Block::Framed);
        if column >= text_column + CODE_INDENT && (self.in_code || !self.in_paragraph && !is_framed) {
            self.in_code = true;
            return true;
        }
        self.in_code = false;
        let mut marks = 0;
        while let Block::Item(mark) = block {
            let rest = text[mark..].trim_start_matches(' ');
            let gap = text.len() - mark - rest.len();
            self.in_code = gap > CODE_INDENT && !rest.is_empty();
            let indent_min = column + mark + 1;
            let text_column = if rest.is_empty() || self.in_code { indent_min } else { column + mark + gap };
            self.items.push(Item { indent_min, text_column });
            column += mark + gap;
            text = rest;
            marks += 1;
            block = match () {
                () if self.in_code => Block::Line,
                () if marks == MARKS_MAX => Block::Text,
                () => Block::of(text),
            };
        }
        self.in_paragraph = !text.is_empty() && matches!(block, Block::Quote | Block::Text);
        false
    }
}

impl Block {
    fn of(text: &str) -> Self {
        if is_rule(text) || is_heading(text) {
            Self::Line
        } else if let Some(mark) = list_mark(text) {
            Self::Item(mark)
        } else if text.starts_with('|') || opening_fence(text).is_some() {
            Self::Framed
        } else if text.starts_with('>') {
            Self::Quote
        } else {
            Self::Text
        }
    }
}

/// Returns whether a line is a rule: three marks of a kind or more, and nothing else.
fn is_rule(text: &str) -> bool {
    ['-', '*', '_'].into_iter().any(|mark| {
        text.matches(mark).count() >= 3 && text.chars().all(|character| character == mark || character == ' ')
    })
}

fn is_heading(text: &str) -> bool {
    let title = text.trim_start_matches('#');
    (1..=6).contains(&(text.len() - title.len())) && (title.is_empty() || title.starts_with(' '))
}

/// Returns the width of the mark that begins an item of a list: a bullet, or a number with a dot or a parenthesis, before a space or nothing.
fn list_mark(text: &str) -> Option<usize> {
    let after_number = text.trim_start_matches(|character: char| character.is_ascii_digit());
    let marks: &[char] = if after_number.len() == text.len() { &['-', '*', '+'] } else { &['.', ')'] };
    let rest = after_number.strip_prefix(marks)?;
    (rest.is_empty() || rest.starts_with(' ')).then_some(text.len() - rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the lines that are code by their indent.
    fn code(markdown: &str) -> Vec<&str> {
        let mut outline = Outline::default();
        markdown.lines().filter(|line| outline.take(line)).collect()
    }

    #[test]
    fn what_is_indented_by_itself_is_code() {
        for line in
            ["    def __init__(self):", "        x = a*b*c", "    -x = `y`", "    # *no* title", "    2.5 * _a_"]
        {
            assert_eq!(code(line), [line]);
        }
        assert_eq!(code("# Title\n    code"), ["    code"]);
        assert_eq!(code("* * *\n\n    code"), ["    code"]);
        assert_eq!(code("    a:\n    - b\n\n    | c\n    ```\ntext"), ["    a:", "    - b", "    | c", "    ```"]);
    }

    #[test]
    fn what_goes_on_is_no_code() {
        for markdown in [
            "Text\n    that goes on",
            "> said\n    by somebody",
            "10. Foo\n    bar",
            "10. Foo\n\n    bar",
            "10.  Foo\n\n    bar",
            "1.    a tab\n\n    another one",
            "- a\nof a\n\n    of a",
            "- a\n    - b\n\n        of b\n\n    of a",
            "    - deep\n        - deeper\n\n          of deeper",
            "-\n  a\n\n  of a",
        ] {
            assert!(code(markdown).is_empty(), "{markdown:?}: {:?}", code(markdown));
        }
    }

    #[test]
    fn marks_behind_many_others_are_text() {
        for mark in ["1. ", "- "] {
            for (marks, items) in [(3, 3), (MARKS_MAX, MARKS_MAX), (MARKS_MAX + 1, MARKS_MAX), (300_000, MARKS_MAX)] {
                let mut outline = Outline::default();
                assert!(!outline.take(&format!("{}text", mark.repeat(marks))));
                assert_eq!((outline.items.len(), outline.in_paragraph), (items, true), "{marks} of {mark:?}");
            }
        }
    }

    #[test]
    fn code_of_an_item_is_indented_behind_its_text() {
        assert_eq!(code("- a\n\n      code\n\n    of a"), ["      code"]);
        assert_eq!(code("10. a\n\n       of a\n\n        code"), ["        code"]);
        assert_eq!(code("- 1. a\n\n        of a\n\n         code"), ["         code"]);
        assert_eq!(code("-     code\n      code\n  of the item"), ["      code"]);
        assert_eq!(code("- a\n\nText.\n\n    code"), ["    code"]);
    }
}
