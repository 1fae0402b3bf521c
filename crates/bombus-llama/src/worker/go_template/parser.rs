//! From the words of actions to a tree.

use std::collections::HashMap;
use std::collections::VecDeque;

use super::lexer::{Kind, Piece, Token, lex};

/// Deepest nesting of blocks and of groups in parentheses.
const DEPTH_MAX: usize = 64;

/// A template and those that it defines.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) root: Vec<Node>,
    pub(super) defined: HashMap<String, Vec<Node>>,
}

#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    Action(Pipeline),
    If(Branch),
    With(Branch),
    Range(Branch),
    Template { name: String, dot: Option<Pipeline> },
    Break,
    Continue,
}

/// A block with what decides about it, and what stands in for it otherwise.
#[derive(Debug)]
pub(super) struct Branch {
    pub(super) pipeline: Pipeline,
    pub(super) body: Vec<Node>,
    pub(super) otherwise: Vec<Node>,
}

/// Commands, each of which gets the value of the one before as its last argument.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    /// Variables that get the value.
    pub(super) variables: Vec<String>,
    /// Whether these exist already.
    pub(super) assigns: bool,
    pub(super) commands: Vec<Vec<Operand>>,
}

#[derive(Debug)]
pub(super) enum Operand {
    Dot,
    /// Fields of the dot.
    Field(Vec<String>),
    /// A variable and fields of it; `$` has an empty name.
    Variable(String, Vec<String>),
    Function(String),
    Text(String),
    Int(i64),
    Float(f64),
    Bool(bool),
    Nil,
    /// A pipeline in parentheses and fields of its value.
    Group(Box<Pipeline>, Vec<String>),
}

impl Node {
    /// Makes the action `{{ .Response }}`.
    pub(super) fn response() -> Self {
        let commands = vec![vec![Operand::Field(vec!["Response".into()])]];
        Self::Action(Pipeline { commands, ..Pipeline::default() })
    }

    fn mentions(&self, field: &str) -> bool {
        match self {
            Self::Text(_) | Self::Break | Self::Continue => false,
            Self::Action(pipeline) => pipeline.mentions(field),
            Self::If(branch) | Self::With(branch) | Self::Range(branch) => {
                let mut nodes = branch.body.iter().chain(&branch.otherwise);
                branch.pipeline.mentions(field) || nodes.any(|node| node.mentions(field))
            }
            Self::Template { dot, .. } => dot.as_ref().is_some_and(|dot| dot.mentions(field)),
        }
    }
}

impl Pipeline {
    /// Returns whether a field of this name is used, of whatever value.
    pub(super) fn mentions(&self, field: &str) -> bool {
        self.commands.iter().flatten().any(|operand| match operand {
            Operand::Field(fields) | Operand::Variable(_, fields) => fields.iter().any(|name| name == field),
            Operand::Group(pipeline, fields) => pipeline.mentions(field) || fields.iter().any(|name| name == field),
            _ => false,
        })
    }
}

impl Tree {
    /// Returns whether a field of this name is used anywhere.
    pub(super) fn mentions(&self, field: &str) -> bool {
        self.root.iter().chain(self.defined.values().flatten()).any(|node| node.mentions(field))
    }
}

/// Reads a template.
pub(super) fn parse(source: &str) -> Result<Tree, String> {
    let mut parser = Parser { pieces: lex(source)?.into(), tree: Tree::default(), depth: 0, loops: 0 };
    let (root, end) = parser.parse_list()?;
    match end {
        End::OfSource => Ok(Tree { root, ..parser.tree }),
        End::OfBlock | End::Else(_) => Err("there is an end or else without a block".into()),
    }
}

struct Parser {
    pieces: VecDeque<Piece>,
    tree: Tree,
    depth: usize,
    loops: usize,
}

/// What a list of nodes ended with.
enum End {
    OfSource,
    OfBlock,
    /// The words after `else`.
    Else(Words),
}

impl Parser {
    fn parse_list(&mut self) -> Result<(Vec<Node>, End), String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("blocks are nested more than {DEPTH_MAX} deep"));
        }
        let mut nodes = Vec::new();
        let end = loop {
            match self.pieces.pop_front() {
                None => break End::OfSource,
                Some(Piece::Text(text)) => nodes.push(Node::Text(text)),
                Some(Piece::Action(tokens)) => {
                    let mut words = Words(tokens.into());
                    match words.keyword() {
                        Some("end") => break End::OfBlock,
                        Some("else") => {
                            words.0.pop_front();
                            break End::Else(words);
                        }
                        _ => nodes.extend(self.parse_action(words)?),
                    }
                }
            }
        };
        self.depth -= 1;
        Ok((nodes, end))
    }

    fn parse_action(&mut self, mut words: Words) -> Result<Option<Node>, String> {
        let keyword = words.keyword().map(str::to_owned);
        if keyword.is_some() {
            words.0.pop_front();
        }
        let node = match keyword.as_deref() {
            Some("if") => Node::If(self.parse_branch(words)?),
            Some("with") => Node::With(self.parse_branch(words)?),
            Some("range") => {
                self.loops += 1;
                let branch = self.parse_branch(words)?;
                self.loops -= 1;
                Node::Range(branch)
            }
            Some(word @ ("break" | "continue")) => {
                if self.loops == 0 {
                    return Err(format!("there is a {word} outside of any range"));
                }
                words.expect_end()?;
                if word == "break" { Node::Break } else { Node::Continue }
            }
            Some("define") => {
                let name = words.text()?;
                words.expect_end()?;
                let body = self.parse_body()?;
                self.tree.defined.insert(name, body);
                return Ok(None);
            }
            Some("block") => {
                let name = words.text()?;
                let dot = words.pipeline(0)?;
                words.expect_end()?;
                let body = self.parse_body()?;
                self.tree.defined.entry(name.clone()).or_insert(body);
                Node::Template { name, dot: Some(dot) }
            }
            Some("template") => {
                let name = words.text()?;
                let dot = if words.0.is_empty() { None } else { Some(words.pipeline(0)?) };
                words.expect_end()?;
                Node::Template { name, dot }
            }
            Some(other) => return Err(format!("{other} is out of place")),
            None => {
                let pipeline = words.pipeline(0)?;
                words.expect_end()?;
                Node::Action(pipeline)
            }
        };
        Ok(Some(node))
    }

    /// Reads the nodes of a definition up to its end.
    fn parse_body(&mut self) -> Result<Vec<Node>, String> {
        let loops = std::mem::take(&mut self.loops);
        let (body, end) = self.parse_list()?;
        self.loops = loops;
        if matches!(end, End::OfBlock) { Ok(body) } else { Err("a definition has no end".into()) }
    }

    fn parse_branch(&mut self, mut words: Words) -> Result<Branch, String> {
        let pipeline = words.pipeline(0)?;
        words.expect_end()?;
        let (body, end) = self.parse_list()?;
        let otherwise = match end {
            End::OfBlock => Vec::new(),
            End::OfSource => return Err("a block has no end".into()),
            End::Else(words) if words.0.is_empty() => {
                let (otherwise, end) = self.parse_list()?;
                if !matches!(end, End::OfBlock) {
                    return Err("an else has no end".into());
                }
                otherwise
            }
            // `else if` ends with the block that it belongs to.
            End::Else(mut words) => {
                self.depth += 1;
                let chained = match words.keyword().map(str::to_owned).as_deref() {
                    Some("if") => {
                        words.0.pop_front();
                        Node::If(self.parse_branch(words)?)
                    }
                    Some("with") => {
                        words.0.pop_front();
                        Node::With(self.parse_branch(words)?)
                    }
                    _ => return Err("an else is followed by something else than if or with".into()),
                };
                self.depth -= 1;
                vec![chained]
            }
        };
        Ok(Branch { pipeline, body, otherwise })
    }
}

/// The words of an action that are still to be read.
struct Words(VecDeque<Token>);

impl Words {
    fn keyword(&self) -> Option<&str> {
        const KEYWORDS: [&str; 10] =
            ["block", "break", "continue", "define", "else", "end", "if", "range", "template", "with"];
        match self.0.front().map(|token| &token.kind) {
            Some(Kind::Word(word)) if KEYWORDS.contains(&word.as_str()) => Some(word),
            _ => None,
        }
    }

    fn text(&mut self) -> Result<String, String> {
        match self.0.pop_front().map(|token| token.kind) {
            Some(Kind::Text(name)) => Ok(name),
            _ => Err("a template's name has to be a text in quotes".into()),
        }
    }

    fn expect_end(&self) -> Result<(), String> {
        match self.0.front() {
            None => Ok(()),
            Some(token) => Err(format!("{:?} is out of place", token.kind)),
        }
    }

    fn pipeline(&mut self, depth: usize) -> Result<Pipeline, String> {
        if depth > DEPTH_MAX {
            return Err(format!("parentheses are nested more than {DEPTH_MAX} deep"));
        }
        let mut pipeline = Pipeline::default();
        self.variables(&mut pipeline);
        loop {
            let mut command = Vec::new();
            while let Some(operand) = self.operand(depth)? {
                command.push(operand);
            }
            if command.is_empty() {
                return Err("a command is missing".into());
            }
            pipeline.commands.push(command);
            match self.0.front().map(|token| &token.kind) {
                Some(Kind::Pipe) => drop(self.0.pop_front()),
                _ => return Ok(pipeline),
            }
        }
    }

    /// Reads `$a :=`, `$a, $b :=` and `$a =`.
    fn variables(&mut self, pipeline: &mut Pipeline) {
        let kind = |words: &Self, at: usize| words.0.get(at).map(|token| token.kind.clone());
        let (names, sign_at) = match (kind(self, 0), kind(self, 1), kind(self, 2)) {
            (Some(Kind::Variable(a)), Some(Kind::Comma), Some(Kind::Variable(b))) => (vec![a, b], 3),
            (Some(Kind::Variable(a)), _, _) => (vec![a], 1),
            _ => return,
        };
        let assigns = match kind(self, sign_at) {
            Some(Kind::Declare) => false,
            Some(Kind::Assign) => true,
            _ => return,
        };
        self.0.drain(..=sign_at);
        pipeline.variables = names;
        pipeline.assigns = assigns;
    }

    /// Reads the next value of a command; `None` where the command ends.
    fn operand(&mut self, depth: usize) -> Result<Option<Operand>, String> {
        let Some(token) = self.0.front() else { return Ok(None) };
        if matches!(token.kind, Kind::Pipe | Kind::Close) {
            return Ok(None);
        }
        let Some(token) = self.0.pop_front() else { return Ok(None) };
        let operand = match token.kind {
            Kind::Word(word) => match word.as_str() {
                "true" => Operand::Bool(true),
                "false" => Operand::Bool(false),
                "nil" => Operand::Nil,
                _ => Operand::Function(word),
            },
            Kind::Dot => Operand::Dot,
            Kind::Field(first) => {
                let mut fields = vec![first];
                fields.extend(self.fields());
                Operand::Field(fields)
            }
            Kind::Variable(name) => Operand::Variable(name, self.fields()),
            Kind::Text(text) => Operand::Text(text),
            Kind::Int(number) => Operand::Int(number),
            Kind::Float(number) => Operand::Float(number),
            Kind::Open => {
                let group = self.pipeline(depth + 1)?;
                match self.0.pop_front().map(|token| token.kind) {
                    Some(Kind::Close) => Operand::Group(Box::new(group), self.fields()),
                    _ => return Err("a parenthesis is not closed".into()),
                }
            }
            other => return Err(format!("{other:?} is out of place")),
        };
        Ok(Some(operand))
    }

    /// Reads the fields that follow without a space.
    fn fields(&mut self) -> Vec<String> {
        let mut fields = Vec::new();
        while let Some(Token { kind: Kind::Field(name), is_apart: false }) = self.0.front() {
            fields.push(name.clone());
            self.0.pop_front();
        }
        fields
    }
}
