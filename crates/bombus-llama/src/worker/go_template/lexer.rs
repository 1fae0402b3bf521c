//! From a template's text to pieces of text and the words of its actions.

/// A part of a template.
#[derive(Debug, PartialEq)]
pub(super) enum Piece {
    Text(String),
    Action(Vec<Token>),
}

/// A word of an action.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Whether it stands apart from the word before: `.A .B` is two values and `.A.B` is one.
    pub(super) is_apart: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// A keyword, a function, or a constant.
    Word(String),
    /// `.`, and `.Name` as `Field`.
    Dot,
    Field(String),
    /// `$` has an empty name.
    Variable(String),
    Text(String),
    Int(i64),
    Float(f64),
    Pipe,
    Open,
    Close,
    Comma,
    Declare,
    Assign,
}

/// Splits a template.
pub(super) fn lex(source: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = source;
    let mut trims_next = false;
    while let Some(at) = rest.find("{{") {
        let mut text = &rest[..at];
        let mut action = &rest[at + 2..];
        if trims_next {
            text = text.trim_start();
        }
        if let Some(trimmed) = action.strip_prefix('-').filter(|after| after.starts_with(char::is_whitespace)) {
            text = text.trim_end();
            action = trimmed;
        }
        push_text(&mut pieces, text);
        (rest, trims_next) = lex_action(action, &mut pieces)?;
    }
    push_text(&mut pieces, if trims_next { rest.trim_start() } else { rest });
    Ok(pieces)
}

fn push_text(pieces: &mut Vec<Piece>, text: &str) {
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

/// Reads an action to its end. Returns what follows, and whether white space is to be taken off it.
fn lex_action<'s>(action: &'s str, pieces: &mut Vec<Piece>) -> Result<(&'s str, bool), String> {
    if let Some(comment) = action.trim_start().strip_prefix("/*") {
        let (_, after) = comment.split_once("*/").ok_or("a comment has no end")?;
        let after = after.trim_start();
        return match (after.strip_prefix("}}"), after.strip_prefix("-}}")) {
            (Some(rest), _) => Ok((rest, false)),
            (_, Some(rest)) => Ok((rest, true)),
            _ => Err("a comment is followed by something else than }}".into()),
        };
    }
    let mut tokens = Vec::new();
    let mut rest = action;
    loop {
        let trimmed = rest.trim_start();
        let is_apart = trimmed.len() < rest.len() || tokens.is_empty();
        rest = trimmed;
        if let Some(after) = rest.strip_prefix("}}") {
            pieces.push(Piece::Action(tokens));
            return Ok((after, false));
        }
        if let Some(after) = rest.strip_prefix("-}}").filter(|_| is_apart) {
            pieces.push(Piece::Action(tokens));
            return Ok((after, true));
        }
        let (kind, after) = lex_token(rest)?;
        tokens.push(Token { kind, is_apart });
        rest = after;
    }
}

fn lex_token(rest: &str) -> Result<(Kind, &str), String> {
    let symbols = [
        (":=", Kind::Declare),
        ("=", Kind::Assign),
        ("|", Kind::Pipe),
        ("(", Kind::Open),
        (")", Kind::Close),
        (",", Kind::Comma),
    ];
    for (symbol, kind) in symbols {
        if let Some(after) = rest.strip_prefix(symbol) {
            return Ok((kind, after));
        }
    }
    let Some(first) = rest.chars().next() else { return Err("an action has no end".into()) };
    match first {
        '"' => lex_quoted(rest),
        '`' => {
            let (text, after) = rest[1..].split_once('`').ok_or("a text in ` has no end")?;
            Ok((Kind::Text(text.to_owned()), after))
        }
        '.' => {
            let (name, after) = split_name(&rest[1..]);
            if name.is_empty() && after.starts_with(|c: char| c.is_ascii_digit()) {
                return lex_number(rest);
            }
            Ok((if name.is_empty() { Kind::Dot } else { Kind::Field(name.to_owned()) }, after))
        }
        '$' => {
            let (name, after) = split_name(&rest[1..]);
            Ok((Kind::Variable(name.to_owned()), after))
        }
        '+' | '-' | '0'..='9' => lex_number(rest),
        c if c == '_' || c.is_alphabetic() => {
            let (word, after) = split_name(rest);
            Ok((Kind::Word(word.to_owned()), after))
        }
        other => Err(format!("{other:?} has no meaning in an action")),
    }
}

fn split_name(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(text.len());
    // A name does not begin with a digit.
    if text.starts_with(|c: char| c.is_ascii_digit()) { ("", text) } else { text.split_at(end) }
}

fn lex_number(rest: &str) -> Result<(Kind, &str), String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_');
    let sign = usize::from(rest.starts_with(['+', '-']));
    let end = rest[sign..].find(|c| !is_part(c)).map_or(rest.len(), |end| end + sign);
    let (number, after) = rest.split_at(end);
    let digits = number.replace('_', "");
    if let Ok(int) = digits.parse() {
        return Ok((Kind::Int(int), after));
    }
    digits.parse().map(|float| (Kind::Float(float), after)).map_err(|_| format!("{number:?} is no number"))
}

fn lex_quoted(rest: &str) -> Result<(Kind, &str), String> {
    let mut text = String::new();
    let mut chars = rest[1..].char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((Kind::Text(text), &rest[at + 2..])),
            '\\' => match chars.next().map(|(_, escaped)| escaped) {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some('r') => text.push('\r'),
                Some(c @ ('"' | '\\' | '\'')) => text.push(c),
                Some(width @ ('u' | 'x' | 'U')) => {
                    let digits = match width {
                        'x' => 2,
                        'u' => 4,
                        _ => 8,
                    };
                    let code: String = chars.by_ref().take(digits).map(|(_, digit)| digit).collect();
                    let c = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
                    text.push(c.ok_or_else(|| format!("\\{width}{code} is no character"))?);
                }
                other => return Err(format!("a text has the unknown escape {other:?}")),
            },
            '\n' => break,
            c => text.push(c),
        }
    }
    Err("a text in \" has no end".into())
}
