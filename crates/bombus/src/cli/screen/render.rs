use console::measure_text_width;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// How a piece of text looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Look {
    bold: bool,
    italic: bool,
    struck: bool,
    underlined: bool,
    code: bool,
    dim: bool,
}

impl Look {
    /// Returns the codes that switch it on (ECMA-48, SGR).
    fn codes(self) -> String {
        let numbers = [
            (self.bold, "1"),
            (self.dim, "2"),
            (self.italic, "3"),
            (self.underlined, "4"),
            (self.struck, "9"),
            (self.code, "36"),
        ];
        let on: Vec<&str> = numbers.into_iter().filter_map(|(is, number)| is.then_some(number)).collect();
        if on.is_empty() { String::new() } else { format!("\x1b[{}m", on.join(";")) }
    }
}

/// Pieces of text, each with its look.
#[derive(Debug, Clone, Default)]
struct Line(Vec<(String, Look)>);

impl Line {
    fn push(&mut self, text: &str, look: Look) {
        match self.0.last_mut() {
            Some((last, same)) if *same == look => last.push_str(text),
            _ => self.0.push((text.to_owned(), look)),
        }
    }

    fn width(&self) -> usize {
        self.0.iter().map(|(text, _)| measure_text_width(text)).sum()
    }

    fn write(&self, colors: bool) -> String {
        let piece = |(text, look): &(String, Look)| match look.codes() {
            codes if colors && !codes.is_empty() => format!("{codes}{text}\x1b[0m"),
            _ => text.clone(),
        };
        self.0.iter().map(piece).collect()
    }

    /// Breaks it between words, so that no line is wider than that, but for words that are.
    fn wrap(&self, columns: usize) -> Vec<Self> {
        if self.width() <= columns {
            return vec![self.clone()];
        }
        let mut lines = vec![Self::default()];
        let mut width = 0;
        for (word, gap) in self.words() {
            let line = lines.last_mut().expect("there is a line from the beginning");
            let word_width = word.width();
            if width > 0 && width + usize::from(gap) + word_width > columns {
                width = word_width;
                lines.push(word);
                continue;
            }
            if gap && width > 0 {
                let look = line.0.last().map_or(Look::default(), |(_, look)| *look);
                line.push(
                    " ",
                    if word.0.first().is_some_and(|(_, next)| *next == look) { look } else { Look::default() },
                );
                width += 1;
            }
            width += word_width;
            word.0.iter().for_each(|(text, look)| line.push(text, *look));
        }
        lines
    }

    /// Splits it into words, each with whether a space stands before it.
    fn words(&self) -> Vec<(Self, bool)> {
        let mut words: Vec<(Self, bool)> = Vec::new();
        let mut gap = true;
        for (text, look) in &self.0 {
            for (at, part) in text.split(' ').enumerate() {
                gap |= at > 0;
                if part.is_empty() {
                    continue;
                }
                if std::mem::take(&mut gap) || words.is_empty() {
                    words.push((Self::default(), !words.is_empty()));
                }
                words.last_mut().expect("one was just pushed or is there").0.push(part, *look);
            }
        }
        words
    }
}

/// Makes a line of Markdown, or a whole table, fit to be read in a terminal of that width. What is returned ends with a line break. What
/// Markdown would show nothing of stays as it is.
pub(super) fn render(markdown: &str, columns: usize, colors: bool) -> String {
    if markdown.trim().is_empty() {
        return "\n".to_owned();
    }
    let text = markdown.trim_start_matches(' ');
    let indent = markdown.len() - text.len();
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
    // What is indented in a list stays so; to the parser it would be code.
    let mut page = Page::default();
    for event in Parser::new_ext(text, options) {
        page.take(event, columns);
    }
    // Of where a link leads that is used elsewhere, Markdown shows nothing.
    if page.is_empty() && (page.mark.is_empty() || text.contains(char::is_alphanumeric)) {
        return format!("{markdown}\n");
    }
    page.write(indent, columns, colors)
}

/// What was read of a piece of Markdown.
#[derive(Default)]
struct Page {
    /// What stands before the text, and before its further lines as so many spaces.
    mark: String,
    /// Whether the mark stands before further lines too.
    marks_all: bool,
    lines: Vec<Line>,
    look: Look,
    /// Where the link that is open leads.
    link: Option<String>,
    /// Rows of cells; the first is the head.
    table: Vec<Vec<Line>>,
    in_cell: bool,
}

impl Page {
    /// Returns whether there is nothing behind its mark.
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.table.is_empty()
    }

    fn take(&mut self, event: Event<'_>, columns: usize) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(end) => self.end(end),
            Event::Text(text) | Event::Html(text) | Event::InlineHtml(text) => self.text(&text, self.look),
            Event::Code(text) => self.text(&text, Look { code: true, ..self.look }),
            Event::InlineMath(text) => self.text(&format!("${text}$"), self.look),
            Event::DisplayMath(text) => self.text(&format!("$${text}$$"), self.look),
            Event::FootnoteReference(name) => self.text(&format!("[^{name}]"), self.look),
            Event::SoftBreak | Event::HardBreak => self.lines.push(Line::default()),
            Event::Rule => self.text(&"─".repeat(columns), Look { dim: true, ..Look::default() }),
            Event::TaskListMarker(done) => self.mark.push_str(if done { "[x] " } else { "[ ] " }),
        }
    }

    fn start(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::Heading { level, .. } => {
                self.look.bold = true;
                self.look.underlined = level == pulldown_cmark::HeadingLevel::H1;
            }
            Tag::List(Some(number)) => self.mark.push_str(&format!("{number}. ")),
            Tag::List(None) => self.mark.push_str("• "),
            Tag::BlockQuote(_) => {
                self.mark.push_str("│ ");
                self.marks_all = true;
            }
            Tag::Emphasis => self.look.italic = true,
            Tag::Strong => self.look.bold = true,
            Tag::Strikethrough => self.look.struck = true,
            Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. } => self.link = Some(dest_url.into_string()),
            Tag::TableHead | Tag::TableRow => self.table.push(Vec::new()),
            Tag::TableCell => {
                self.in_cell = true;
                self.look.bold = self.table.len() == 1;
                if let Some(row) = self.table.last_mut() {
                    row.push(Line::default());
                }
            }
            _ => {}
        }
    }

    fn end(&mut self, end: TagEnd) {
        match end {
            TagEnd::Heading(_) => self.look = Look::default(),
            TagEnd::Emphasis => self.look.italic = false,
            TagEnd::Strong => self.look.bold = self.in_cell && self.table.len() == 1,
            TagEnd::Strikethrough => self.look.struck = false,
            TagEnd::TableCell => {
                self.in_cell = false;
                self.look.bold = false;
            }
            TagEnd::Link | TagEnd::Image => {
                let target = self.link.take().unwrap_or_default();
                let shown = self.lines.last().map(|line| line.write(false)).unwrap_or_default();
                if !target.is_empty() && !shown.ends_with(&target) {
                    self.text(&format!(" ({target})"), Look { dim: true, ..Look::default() });
                }
            }
            _ => {}
        }
    }

    fn text(&mut self, text: &str, look: Look) {
        if self.in_cell {
            if let Some(cell) = self.table.last_mut().and_then(|row| row.last_mut()) {
                cell.push(text, look);
            }
            return;
        }
        if self.lines.is_empty() {
            self.lines.push(Line::default());
        }
        if let Some(line) = self.lines.last_mut() {
            line.push(text.trim_end_matches('\n'), look);
        }
    }

    fn write(&self, indent: usize, columns: usize, colors: bool) -> String {
        let mut out = String::new();
        let margin = " ".repeat(indent);
        for row in self.table_lines() {
            out.push_str(&format!("{margin}{}\n", row.write(colors)));
        }
        let mark_width = measure_text_width(&self.mark);
        let room = columns.saturating_sub(indent + mark_width).max(10);
        let further = if self.marks_all { self.mark.clone() } else { " ".repeat(mark_width) };
        let mut mark = &self.mark;
        for line in self.lines.iter().flat_map(|line| line.wrap(room)) {
            out.push_str(&format!("{margin}{mark}{}\n", line.write(colors)));
            mark = &further;
        }
        if out.is_empty() {
            out.push_str(&format!("{margin}{}\n", self.mark.trim_end()));
        }
        out
    }

    fn table_lines(&self) -> Vec<Line> {
        let count = self.table.iter().map(Vec::len).max().unwrap_or(0);
        let width_of =
            |column: usize| self.table.iter().filter_map(|row| row.get(column)).map(Line::width).max().unwrap_or(0);
        let widths: Vec<usize> = (0..count).map(width_of).collect();
        let dim = Look { dim: true, ..Look::default() };
        let mut lines = Vec::new();
        for (number, row) in self.table.iter().enumerate() {
            let mut line = Line::default();
            for (column, width) in widths.iter().enumerate() {
                if column > 0 {
                    line.push(" │ ", dim);
                }
                let cell = row.get(column).cloned().unwrap_or_default();
                cell.0.iter().for_each(|(text, look)| line.push(text, *look));
                if column + 1 < count {
                    line.push(&" ".repeat(width - cell.width()), Look::default());
                }
            }
            lines.push(line);
            if number == 0 {
                let mut rule = Line::default();
                let parts: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
                rule.push(&parts.join("─┼─"), dim);
                lines.push(rule);
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(markdown: &str) -> String {
        render(markdown, 30, false)
    }

    #[test]
    fn marks_become_what_they_mean() {
        for (markdown, shown) in [
            ("plain text, 2 < 3", "plain text, 2 < 3\n"),
            ("# Title", "Title\n"),
            ("- one", "• one\n"),
            ("  * inner", "  • inner\n"),
            ("12. twelfth", "12. twelfth\n"),
            ("    - *inner*", "    • inner\n"),
            ("      12) *twelfth*", "      12. twelfth\n"),
            ("    **text** of an item", "    text of an item\n"),
            ("- [x] done", "• [x] done\n"),
            ("> said", "│ said\n"),
            ("a **b** _c_ ~~d~~ `e*f`", "a b c d e*f\n"),
            ("[a](http://x)", "a (http://x)\n"),
            ("<http://x.example>", "http://x.example\n"),
            ("", "\n"),
            ("-", "•\n"),
        ] {
            assert_eq!(plain(markdown), shown, "{markdown:?}");
        }
        assert_eq!(plain("---"), format!("{}\n", "─".repeat(30)));
    }

    #[test]
    fn nothing_that_is_said_is_swallowed() {
        for line in ["[1]: https://example.com/docs", "  [a b]: <x> 'title'", "> [1]: /docs", "- [1]: /docs", "#"] {
            assert_eq!(plain(line), format!("{line}\n"));
        }
    }

    #[test]
    fn long_lines_break_between_words_and_stay_under_their_mark() {
        let text = "- bees are **flying insects** that make honey";
        assert_eq!(plain(text), "• bees are flying insects that\n  make honey\n");
        assert_eq!(plain("> bees are flying insects that make"), "│ bees are flying insects that\n│ make\n");
        assert_eq!(plain(&"x".repeat(40)), format!("{}\n", "x".repeat(40)));
    }

    #[test]
    fn tables_stand_in_columns() {
        let table = "| a | long head |\n|---|:-:|\n| wide cell | `b` |";
        assert_eq!(plain(table), "a         │ long head\n──────────┼──────────\nwide cell │ b\n");
    }

    #[test]
    fn looks_are_switched_on_and_off() {
        assert_eq!(render("a **b**", 30, true), "a \x1b[1mb\x1b[0m\n");
        assert_eq!(render("# T", 30, true), "\x1b[1;4mT\x1b[0m\n");
        assert_eq!(render("`x`", 30, true), "\x1b[36mx\x1b[0m\n");
    }
}
