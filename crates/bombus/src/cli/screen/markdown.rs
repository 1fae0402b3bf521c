use console::measure_text_width;

use super::Size;
use super::outline::Outline;
use super::render::render;

const DIM: &str = "\x1b[2m";
const CODE: &str = "\x1b[36m";
const RESET: &str = "\x1b[0m";

/// Makes Markdown readable in a terminal while it comes.
///
/// What comes is shown at once as it is. When its line is whole, the line is taken back and shown as what it means; the rows of a table
/// are when the table is.
pub(in crate::cli) struct Markdown {
    colors: bool,
    /// What is shown as it came and may be taken back: rows of a table, and the line that is not whole.
    shown: String,
    /// What ends the block of code that has begun.
    fence: Option<String>,
    /// What the lines so far leave open.
    outline: Outline,
    /// Whether the last that was shown is a thought.
    thinking: bool,
    at_line_start: bool,
}

impl Markdown {
    /// Begins with an empty answer. Without colours only what needs none is changed: lists, tables, rules.
    pub(super) fn new(colors: bool) -> Self {
        let (shown, outline) = (String::new(), Outline::default());
        Self { colors, shown, fence: None, outline, thinking: false, at_line_start: true }
    }

    /// Takes more of the answer and returns what to write to the terminal.
    pub(super) fn push(&mut self, text: &str, size: Size) -> String {
        let mut out = String::new();
        if std::mem::take(&mut self.thinking) {
            out.push_str(self.code(RESET));
            out.push_str(if self.at_line_start { "\n" } else { "\n\n" });
            self.at_line_start = true;
        }
        let text = text.replace('\t', "    ");
        for piece in text.split_inclusive('\n') {
            match piece.strip_suffix('\n') {
                Some(rest) => {
                    self.show(&mut out, rest);
                    self.end_line(&mut out, size);
                }
                None => self.show(&mut out, piece),
            }
        }
        out
    }

    /// Takes more of what the model thinks and returns what to write to the terminal.
    pub(super) fn push_thought(&mut self, text: &str) -> String {
        let begin = if std::mem::replace(&mut self.thinking, true) { "" } else { self.code(DIM) };
        if !text.is_empty() {
            self.at_line_start = text.ends_with('\n');
        }
        format!("{begin}{text}")
    }

    /// Ends the answer and begins the next one. Returns what to write to the terminal.
    pub(super) fn end(&mut self, size: Size) -> String {
        let mut out = String::new();
        if !self.at_line_start && !self.thinking {
            self.end_line(&mut out, size);
        }
        self.end_table(&mut out, size);
        if self.thinking || self.fence.is_some() {
            out.push_str(self.code(RESET));
        }
        if !self.at_line_start {
            out.push('\n');
        }
        *self = Self::new(self.colors);
        out
    }

    fn code<'a>(&self, code: &'a str) -> &'a str {
        if self.colors { code } else { "" }
    }

    fn show(&mut self, out: &mut String, text: &str) {
        if text.is_empty() {
            return;
        }
        if self.at_line_start && self.fence.is_some() {
            out.push_str(self.code(CODE));
        }
        out.push_str(text);
        self.shown.push_str(text);
        self.at_line_start = false;
    }

    /// The line that is shown is whole.
    fn end_line(&mut self, out: &mut String, size: Size) {
        self.at_line_start = true;
        let line = self.shown.rsplit('\n').next().unwrap_or_default().to_owned();
        if let Some(fence) = &self.fence {
            let closes =
                line.trim_start().starts_with(fence.as_str()) && line.trim().chars().all(|c| fence.contains(c));
            out.push_str(self.code(RESET));
            if closes {
                self.fence = None;
                self.replace(out, size, &format!("{}{line}{}\n", self.code(DIM), self.code(RESET)));
            } else {
                out.push('\n');
                self.shown.clear();
            }
            return;
        }
        let is_code = self.outline.take(&line);
        if !is_code && line.trim_start().starts_with('|') {
            self.shown.push('\n');
            out.push('\n');
            return;
        }
        // A table takes every line for a row that has no mark of its own, so it is read without the line that ends it.
        let table = self.shown.strip_suffix(&line).unwrap_or_default().trim_end_matches('\n');
        let mut rendered = if table.is_empty() { String::new() } else { render(table, size.columns, self.colors) };
        self.fence = opening_fence(&line).filter(|_| !is_code);
        if is_code {
            rendered.push_str(&format!("{line}\n"));
        } else if self.fence.is_some() {
            rendered.push_str(&format!("{}{line}{}\n", self.code(DIM), self.code(RESET)));
        } else {
            rendered.push_str(&render(&line, size.columns, self.colors));
        }
        self.replace(out, size, &rendered);
    }

    fn end_table(&mut self, out: &mut String, size: Size) {
        if let Some(table) = self.shown.strip_suffix('\n').map(str::to_owned) {
            let rendered = render(&table, size.columns, self.colors);
            self.replace(out, size, &rendered);
        }
    }

    /// Takes back what is shown and writes something else in its place, unless that would look the same, or the beginning has left the
    /// screen.
    fn replace(&mut self, out: &mut String, size: Size, rendered: &str) {
        let shown = std::mem::take(&mut self.shown);
        let ended = shown.ends_with('\n');
        // A line that is ended leaves the cursor on the one below it.
        let rows: usize = shown.split('\n').map(|line| rows_of(line, size.columns)).sum();
        let same = rows == 1 && rendered.strip_suffix('\n') == Some(shown.as_str());
        if same || rows >= size.rows {
            out.push_str(if ended { "" } else { "\n" });
            return;
        }
        out.push('\r');
        if rows > 1 {
            out.push_str(&format!("\x1b[{}A", rows - 1));
        }
        out.push_str("\x1b[J");
        out.push_str(rendered);
    }
}

/// Counts the rows that a line takes in a terminal of that width: a wide character for which a row has only one column left begins the next.
fn rows_of(line: &str, columns: usize) -> usize {
    let (mut rows, mut row_start) = (1, 0);
    for (at, character) in line.char_indices() {
        // Measured together, since what is joined to the character before it takes no room of its own.
        if measure_text_width(&line[row_start..at + character.len_utf8()]) > columns {
            rows += 1;
            row_start = at;
        }
    }
    rows
}

/// Returns what closes a block of code that this line opens.
pub(super) fn opening_fence(line: &str) -> Option<String> {
    let line = line.trim_start();
    ['`', '~'].into_iter().find_map(|mark| {
        let length = line.chars().take_while(|character| *character == mark).count();
        (length >= 3 && !line[length..].contains('`')).then(|| mark.to_string().repeat(length))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { columns: 40, rows: 24 };

    /// What a terminal of this size shows after all that was written to it, without styles.
    fn on_screen(written: &str) -> String {
        let (mut lines, mut row, mut column) = (vec![Vec::<char>::new()], 0_usize, 0_usize);
        let mut characters = written.chars();
        while let Some(character) = characters.next() {
            match character {
                '\n' => {
                    row += 1;
                    column = 0;
                }
                '\r' => column = 0,
                '\x1b' => {
                    characters.next();
                    let mut number = String::new();
                    let letter = loop {
                        match characters.next() {
                            Some(digit) if digit.is_ascii_digit() => number.push(digit),
                            other => break other,
                        }
                    };
                    match letter {
                        Some('A') => row -= number.parse::<usize>().unwrap(),
                        Some('J') => {
                            lines.truncate(row + 1);
                            lines[row].truncate(column);
                        }
                        _ => {}
                    }
                }
                other => {
                    let width = measure_text_width(other.encode_utf8(&mut [0; 4]));
                    if column + width > SIZE.columns {
                        row += 1;
                        column = 0;
                    }
                    while lines.len() <= row {
                        lines.push(Vec::new());
                    }
                    lines[row].resize(column, ' ');
                    lines[row].push(other);
                    // The second half of a wide character.
                    lines[row].resize(column + width, '\0');
                    column += width;
                }
            }
            while lines.len() <= row {
                lines.push(Vec::new());
            }
        }
        let lines: Vec<String> =
            lines.iter().map(|line| line.iter().collect::<String>().replace('\0', "").trim_end().to_owned()).collect();
        lines.join("\n").trim_end().to_owned()
    }

    fn shown(markdown: &str, piece: usize) -> String {
        let mut screen = Markdown::new(false);
        let characters: Vec<char> = markdown.chars().collect();
        let mut written: String =
            characters.chunks(piece).map(|piece| screen.push(&String::from_iter(piece), SIZE)).collect();
        written.push_str(&screen.end(SIZE));
        on_screen(&written)
    }

    #[test]
    fn it_looks_the_same_however_it_is_cut() {
        let markdown = "# Bees\n\nThey **dance** and make `honey` all day long, in every weather.\n\n* one\n* two\n\n\
                        ```rust\nlet x = \"**not bold**\";\n```\n| a | b |\n|---|---|\n| 1 | 2 |\nend";
        let whole = shown(markdown, markdown.len());
        for piece in [1, 2, 7] {
            assert_eq!(shown(markdown, piece), whole, "{piece} characters at a time");
        }
        for wanted in [
            "Bees\n",
            "They dance and make honey all day long,\nin every weather.",
            "• one\n• two",
            "a │ b\n──┼──\n1 │ 2",
        ] {
            assert!(whole.contains(wanted), "{whole:?} lacks {wanted:?}");
        }
        assert!(whole.contains("let x = \"**not bold**\";"), "{whole}");
        assert!(whole.ends_with("end"), "{whole}");
    }

    #[test]
    fn a_list_goes_on_with_what_is_indented_until_it_ends() {
        let markdown = "10. Foo\n    **Note:** see `x` and [a](http://b)\n\n    - bar\n\n      \
                        a **long** paragraph of the inner item, in words\n\n          y = a*b*c\n\n\
                        Text.\n\n    z = a*b*c\n";
        for piece in [1, 7, markdown.len()] {
            assert_eq!(
                shown(markdown, piece),
                "10. Foo\n    Note: see x and a (http://b)\n\n    • bar\n\n      \
                 a long paragraph of the inner\n      item, in words\n\n          y = a*b*c\n\n\
                 Text.\n\n    z = a*b*c"
            );
        }
    }

    #[test]
    fn a_line_of_wide_characters_leaves_nothing_behind() {
        // 80 columns wide in all, yet three rows: the first and the second have one column left, which is too narrow for what follows.
        let line = format!("x{}**y**{}", "蜂".repeat(20), "蜂".repeat(17));
        for piece in [1, line.len()] {
            assert_eq!(shown(&line, piece), format!("x{}\n蜂y{}", "蜂".repeat(19), "蜂".repeat(17)));
        }
    }

    #[test]
    fn plain_text_is_written_once() {
        let mut screen = Markdown::new(false);
        assert_eq!(screen.push("hello ", SIZE), "hello ");
        assert_eq!(screen.push("there\n", SIZE), "there\n");
        assert_eq!(screen.end(SIZE), "");
    }

    #[test]
    fn what_has_left_the_screen_is_not_taken_back() {
        let mut screen = Markdown::new(false);
        let long = "**word** ".repeat(200);
        let written = screen.push(&format!("{long}\n"), SIZE);
        assert_eq!(written, format!("{long}\n"));
    }

    #[test]
    fn thoughts_stand_apart() {
        let mut screen = Markdown::new(true);
        assert_eq!(screen.push_thought("hm"), "\x1b[2mhm");
        assert_eq!(screen.push_thought(" so"), " so");
        assert_eq!(screen.push("yes", SIZE), "\x1b[0m\n\nyes");
    }

    #[test]
    fn fences_close_as_they_open() {
        assert_eq!(opening_fence("```rust").as_deref(), Some("```"));
        assert_eq!(opening_fence("  ~~~~").as_deref(), Some("~~~~"));
        assert_eq!(opening_fence("```a```"), None);
        assert_eq!(opening_fence("``"), None);
    }
}
