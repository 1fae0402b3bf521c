//! Runs templates, for as long as they may.

use std::borrow::Cow;

use serde_json::Value as Json;

use super::functions::call;
use super::parser::{Branch, Node, Operand, Pipeline, Tree};
use super::value::Value;

/// Nodes and values that one run may look at. A conversation of 1,000 turns takes some tens of thousands.
const STEPS_MAX: usize = 5_000_000;
/// Copying so many bytes of text counts as a step.
const STEP_BYTES: usize = 256;
/// Longest prompt that is made, in bytes.
const OUTPUT_BYTES_MAX: usize = 64 << 20;
/// Deepest nesting of templates that use each other.
const DEPTH_MAX: usize = 32;

/// Runs a template. Where `ends_at_response` is set it ends where the model's own words would stand.
pub(super) fn render(tree: &Tree, data: &Json, ends_at_response: bool) -> Result<String, String> {
    let root = Value::of(data);
    let mut renderer = Renderer {
        tree,
        out: String::new(),
        variables: vec![("", root.clone())],
        steps: 0,
        depth: 0,
        ends_at_response,
    };
    renderer.run(&tree.root, &root)?;
    Ok(renderer.out)
}

struct Renderer<'t, 'd> {
    tree: &'t Tree,
    out: String,
    /// The variables in sight, the innermost last.
    variables: Vec<(&'t str, Value<'d>)>,
    steps: usize,
    depth: usize,
    ends_at_response: bool,
}

/// How a list of nodes ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
    Stop,
}

impl<'t, 'd> Renderer<'t, 'd> {
    fn run(&mut self, nodes: &'t [Node], dot: &Value<'d>) -> Result<Flow, String> {
        let in_sight = self.variables.len();
        let mut flow = Flow::Next;
        for node in nodes {
            flow = self.run_node(node, dot)?;
            if flow != Flow::Next {
                break;
            }
        }
        self.variables.truncate(in_sight);
        Ok(flow)
    }

    fn run_node(&mut self, node: &'t Node, dot: &Value<'d>) -> Result<Flow, String> {
        self.step()?;
        match node {
            Node::Text(text) => self.print(text)?,
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
            Node::Action(pipeline) => {
                if self.ends_with(pipeline) {
                    return Ok(Flow::Stop);
                }
                let value = self.value(pipeline, dot)?;
                if pipeline.variables.is_empty() {
                    self.print(&value.print())?;
                }
                self.set(pipeline, &[value])?;
            }
            Node::If(branch) | Node::With(branch) => {
                if self.ends_with(&branch.pipeline) {
                    return Ok(Flow::Stop);
                }
                let value = self.value(&branch.pipeline, dot)?;
                let in_sight = self.variables.len();
                self.set(&branch.pipeline, std::slice::from_ref(&value))?;
                let inner_dot = if matches!(node, Node::With(_)) { &value } else { dot };
                let flow =
                    if value.is_true() { self.run(&branch.body, inner_dot) } else { self.run(&branch.otherwise, dot) };
                self.variables.truncate(in_sight);
                return flow;
            }
            Node::Range(branch) => return self.range(branch, dot),
            Node::Template { name, dot: inner } => {
                let body = self.tree.defined.get(name).ok_or_else(|| format!("there is no template {name:?}"))?;
                let dot = inner.as_ref().map_or(Ok(Value::Nil), |pipeline| self.value(pipeline, dot))?;
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return Err("templates use each other without an end".into());
                }
                // A template sees nothing but what it is given.
                let variables = std::mem::replace(&mut self.variables, vec![("", dot.clone())]);
                let flow = self.run(body, &dot);
                self.variables = variables;
                self.depth -= 1;
                return flow.map(|flow| if flow == Flow::Stop { Flow::Stop } else { Flow::Next });
            }
        }
        Ok(Flow::Next)
    }

    fn range(&mut self, branch: &'t Branch, dot: &Value<'d>) -> Result<Flow, String> {
        if self.ends_with(&branch.pipeline) {
            return Ok(Flow::Stop);
        }
        let value = self.value(&branch.pipeline, dot)?;
        if !value.is_true() {
            return self.run(&branch.otherwise, dot);
        }
        let items: Box<dyn Iterator<Item = (Value<'d>, Value<'d>)>> = match value {
            Value::List(items) => Box::new((0..).map(Value::Int).zip(items.iter().map(Value::of))),
            Value::Object(members) => {
                let mut members: Vec<(&String, &Json)> = members.iter().collect();
                members.sort_by_key(|(name, _)| *name);
                let text = |name: &'d String| Value::Text(Cow::Borrowed(name.as_str()));
                Box::new(members.into_iter().map(move |(name, member)| (text(name), Value::of(member))))
            }
            Value::Int(count) => Box::new((0..count).map(|number| (Value::Int(number), Value::Int(number)))),
            _ => return Err("range needs a list, an object or a number".into()),
        };
        let pipeline = &branch.pipeline;
        for (key, item) in items {
            self.step()?;
            let in_sight = self.variables.len();
            if let [_] = pipeline.variables.as_slice() {
                self.set(pipeline, std::slice::from_ref(&item))?;
            } else {
                self.set(pipeline, &[key, item.clone()])?;
            }
            let flow = self.run(&branch.body, &item)?;
            self.variables.truncate(in_sight);
            match flow {
                Flow::Next | Flow::Continue => {}
                Flow::Break => break,
                Flow::Stop => return Ok(Flow::Stop),
            }
        }
        Ok(Flow::Next)
    }

    /// Gives the variables of a pipeline their values.
    fn set(&mut self, pipeline: &'t Pipeline, values: &[Value<'d>]) -> Result<(), String> {
        for (name, value) in pipeline.variables.iter().zip(values) {
            if !pipeline.assigns {
                self.variables.push((name, value.clone()));
                continue;
            }
            let known = self.variables.iter_mut().rev().find(|(known, _)| known == name);
            known.ok_or_else(|| format!("there is no variable ${name}"))?.1 = value.clone();
        }
        Ok(())
    }

    fn ends_with(&self, pipeline: &Pipeline) -> bool {
        self.ends_at_response && pipeline.mentions("Response")
    }

    fn print(&mut self, text: &str) -> Result<(), String> {
        if self.out.len() + text.len() > OUTPUT_BYTES_MAX {
            return Err("the prompt grows without an end".into());
        }
        self.out.push_str(text);
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        if self.steps > STEPS_MAX { Err("the template runs without an end".into()) } else { Ok(()) }
    }

    fn value(&mut self, pipeline: &'t Pipeline, dot: &Value<'d>) -> Result<Value<'d>, String> {
        let mut piped = None;
        for command in &pipeline.commands {
            piped = Some(self.command(command, piped, dot)?);
        }
        Ok(piped.unwrap_or(Value::Nil))
    }

    fn command(
        &mut self,
        command: &'t [Operand],
        piped: Option<Value<'d>>,
        dot: &Value<'d>,
    ) -> Result<Value<'d>, String> {
        let (first, rest) = command.split_first().ok_or("a command is missing")?;
        let Operand::Function(name) = first else {
            if !rest.is_empty() || piped.is_some() {
                return Err("a value that is no function is given arguments".into());
            }
            return self.operand(first, dot);
        };
        if let "and" | "or" = name.as_str() {
            let mut last = None;
            for operand in rest {
                let value = self.operand(operand, dot)?;
                if value.is_true() == (name == "or") {
                    return Ok(value);
                }
                last = Some(value);
            }
            return piped.or(last).ok_or_else(|| format!("{name} needs arguments"));
        }
        let mut arguments = rest.iter().map(|operand| self.operand(operand, dot)).collect::<Result<Vec<_>, _>>()?;
        arguments.extend(piped);
        let value = call(name, &arguments)?;
        // A text may be made of itself again and again.
        if matches!(&value, Value::Text(Cow::Owned(text)) if text.len() > OUTPUT_BYTES_MAX) {
            return Err("the template makes a text without an end".into());
        }
        Ok(value)
    }

    fn operand(&mut self, operand: &'t Operand, dot: &Value<'d>) -> Result<Value<'d>, String> {
        self.step()?;
        let (value, fields): (Value<'d>, &[String]) = match operand {
            Operand::Dot => (dot.clone(), &[]),
            Operand::Field(fields) => (dot.clone(), fields),
            Operand::Variable(name, fields) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                (known.ok_or_else(|| format!("there is no variable ${name}"))?.1.clone(), fields)
            }
            Operand::Function(_) => (self.command(std::slice::from_ref(operand), None, dot)?, &[]),
            Operand::Text(text) => (Value::Text(Cow::Owned(text.clone())), &[]),
            Operand::Int(number) => (Value::Int(*number), &[]),
            Operand::Float(number) => (Value::Float(*number), &[]),
            Operand::Bool(value) => (Value::Bool(*value), &[]),
            Operand::Nil => (Value::Nil, &[]),
            Operand::Group(pipeline, fields) => (self.value(pipeline, dot)?, fields),
        };
        if let Value::Text(Cow::Owned(text)) = &value {
            // Long texts take time, too.
            self.steps += text.len() / STEP_BYTES;
        }
        fields.iter().try_fold(value, |value, name| value.field(name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::parser::parse;
    use super::*;

    fn run(source: &str, data: &Json) -> Result<String, String> {
        render(&parse(source)?, data, false)
    }

    #[test]
    fn blocks_pipelines_and_variables_work_as_in_go() {
        let data = json!({ "n": 3, "list": ["a", "b", "c"], "map": { "y": 2, "x": 1 }, "name": "Ada", "none": [] });
        for (source, expected) in [
            ("a {{- /* gone */ -}} b", "ab"),
            ("{{ with .name }}{{ . }}{{ else }}-{{ end }}", "Ada"),
            ("{{ range .none }}x{{ else }}empty{{ end }}", "empty"),
            ("{{ range $k, $v := .map }}{{ $k }}={{ $v }};{{ end }}", "x=1;y=2;"),
            ("{{ range .list }}{{ if eq . \"b\" }}{{ continue }}{{ end }}{{ . }}{{ end }}", "ac"),
            ("{{ range .list }}{{ if eq . \"b\" }}{{ break }}{{ end }}{{ . }}{{ end }}", "a"),
            ("{{ $last := \"\" }}{{ range .list }}{{ $last = . }}{{ end }}{{ $last }}", "c"),
            ("{{ if and (gt .n 2) (not .none) }}yes{{ else if .name }}no{{ end }}", "yes"),
            ("{{ .name | printf \"%s-%d %q\" .name .n }}", "Ada-3 \"Ada\""),
            ("{{ index .list 1 }}{{ len .list }}{{ slice .name 1 }}", "b3da"),
            ("{{ define \"t\" }}<{{ . }}>{{ end }}{{ template \"t\" .name }}", "<Ada>"),
            ("{{ json .map }}{{ .missing.deeper }}{{ or .none .name }}", "{\"y\":2,\"x\":1}Ada"),
            ("{{ (index .list 0) }}{{ $.n }}{{ `raw \\n` }}{{ \"\\u0041\\n\" }}", "a3raw \\nA\n"),
            ("{{ eq .name \"Bob\" \"Ada\" }} {{ ne 1 1.0 }}", "true false"),
        ] {
            assert_eq!(run(source, &data).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for source in [
            "{{ if .x }}",
            "{{ end }}",
            "{{ .x",
            "{{ nothing .x }}",
            "{{ break }}",
            "{{ \"x }}",
            "{{ 1 2 }}",
            "{{ $y }}",
            "{{ index .list 9 }}",
            "{{ template \"t\" }}",
            "{{ \u{fc} 1 }}",
            "{{ ( }}",
        ] {
            assert!(run(source, &json!({ "list": [1] })).is_err(), "{source}");
        }
        let deep = format!("{}{}", "{{ if . }}".repeat(1_000), "{{ end }}".repeat(1_000));
        assert!(run(&deep, &json!(1)).is_err());
        assert!(run(&format!("{{{{ {}1 }}}}", "(".repeat(10_000)), &json!(1)).is_err());
    }

    #[test]
    fn templates_that_never_end_are_stopped() {
        let endless = "{{ range 100000000 }}{{ range 100000000 }}x{{ end }}{{ end }}";
        assert!(run(endless, &json!({})).is_err());
        assert!(run("{{ define \"t\" }}{{ template \"t\" }}{{ end }}{{ template \"t\" }}", &json!({})).is_err());
        let doubling = "{{ $x := \"0123456789abcdef\" }}{{ range 60 }}{{ $x = print $x $x }}{{ end }}";
        assert!(run(doubling, &json!({})).is_err());
    }
}
