//! What can be told of a template from its tree alone: the names it asks for, what it calls, and which of its actions fails.

use std::collections::{BTreeMap, BTreeSet};

use gotmpl::{
    Template,
    parse::{Expr, ListNode, Node, PipeNode, Pos},
};

/// More calls of templates within each other than this are a mistake or an attack.
const CALLS: u64 = 10_000;

/// What a template speaks of.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) functions: BTreeSet<String>,
    /// Fields that begin with a capital.
    pub(super) capitals: BTreeSet<String>,
    /// Whether a chain begins with such a one, or with a name of a resource's YAML.
    go: bool,
    yaml: bool,
}

impl Seen {
    /// Whether it is written in the names that calicoctl's Go types have.
    pub(super) const fn calicos(&self) -> bool {
        self.go && !self.yaml
    }

    fn chain(&mut self, fields: &[gotmpl::parse::SmolStr]) {
        let capital = |f: &str| f.starts_with(|c: char| c.is_ascii_uppercase());
        if let Some(first) = fields.first() {
            self.go |= capital(first);
            self.yaml |= ["items", "metadata", "spec", "status", "kind", "apiVersion", "object"]
                .contains(&first.as_str());
        }
        self.capitals.extend(fields.iter().filter(|f| capital(f)).map(|f| f.to_string()));
    }
}

/// Something wrong at an offset of the text.
pub(super) type Wrong = (usize, String);

/// Looks a template through: every function is one of `known`, every template called is there, and none calls itself.
pub(super) fn look(template: &Template, known: &[&str]) -> Result<Seen, Wrong> {
    let mut seen = Seen::default();
    let mut wrong: Option<Wrong> = None;
    let mut calls: BTreeMap<&str, Vec<(usize, &str)>> = BTreeMap::new();
    let names = template.templates();
    for name in &names {
        let Some(tree) = template.lookup(name) else { continue };
        let mut called = Vec::new();
        each_node(tree, &mut |node| match node {
            Node::Template(t) => {
                if !names.contains(&t.name.as_str()) {
                    wrong
                        .get_or_insert((t.pos.offset, format!("template {:?} not defined", t.name.as_str())));
                }
                called.push((t.pos.offset, t.name.as_str()));
            }
            _ => each_pipe(node, &mut |_| {}),
        });
        each_expr(tree, &mut |expr| match expr {
            Expr::Identifier(pos, name) => {
                if !known.contains(&name.as_str()) {
                    let meant = brindle_config_core::suggest::closest(name, known.iter().copied());
                    let hint = meant.map(|m| format!("; did you mean {m}?")).unwrap_or_default();
                    wrong.get_or_insert((
                        pos.offset,
                        format!("function {:?} not defined{hint}", name.as_str()),
                    ));
                }
                seen.functions.insert(name.to_string());
            }
            Expr::Field(_, fields) | Expr::Variable(_, _, fields) | Expr::Chain(_, _, fields) => {
                seen.chain(fields);
            }
            _ => {}
        });
        calls.insert(name, called);
    }
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    let mut costs = BTreeMap::new();
    for name in &names {
        cost(name, &calls, &mut costs)?;
    }
    Ok(seen)
}

/// How many templates a call of this one calls in the end; `None` in `costs` while that is being found out.
fn cost<'t>(
    name: &'t str,
    calls: &BTreeMap<&'t str, Vec<(usize, &'t str)>>,
    costs: &mut BTreeMap<&'t str, Option<u64>>,
) -> Result<u64, Wrong> {
    if let Some(Some(known)) = costs.get(name) {
        return Ok(*known);
    }
    costs.insert(name, None);
    let mut all = 1u64;
    for (offset, called) in calls.get(name).into_iter().flatten() {
        if costs.get(called) == Some(&None) {
            return Err((*offset, format!("template {called:?} would call itself")));
        }
        all = all.saturating_add(cost(called, calls, costs)?);
        if all > CALLS {
            return Err((*offset, format!("more than {CALLS} templates would be called")));
        }
    }
    costs.insert(name, Some(all));
    Ok(all)
}

fn each_node<'t>(tree: &'t ListNode, seen: &mut dyn FnMut(&'t Node)) {
    for node in &tree.nodes {
        seen(node);
        match node {
            Node::List(list) => each_node(list, seen),
            Node::If(b) | Node::Range(b) | Node::With(b) => {
                each_node(&b.body, seen);
                b.else_body.iter().for_each(|e| each_node(e, seen));
            }
            Node::Define(d) => each_node(&d.body, seen),
            Node::Text(_) | Node::Action(_) | Node::Template(_) | Node::Break(_) | Node::Continue(_) => {}
        }
    }
}

/// The pipeline of one node, if it has one.
fn each_pipe<'t>(node: &'t Node, seen: &mut dyn FnMut(&'t PipeNode)) {
    match node {
        Node::Action(a) => seen(&a.pipe),
        Node::If(b) | Node::Range(b) | Node::With(b) => seen(&b.pipe),
        Node::Template(t) => t.pipe.iter().for_each(seen),
        Node::List(_) | Node::Text(_) | Node::Define(_) | Node::Break(_) | Node::Continue(_) => {}
    }
}

fn each_expr<'t>(tree: &'t ListNode, seen: &mut dyn FnMut(&'t Expr)) {
    fn pipe<'t>(of: &'t PipeNode, seen: &mut dyn FnMut(&'t Expr)) {
        of.commands.iter().flat_map(|c| &c.args).for_each(|e| expr(e, seen));
    }
    fn expr<'t>(of: &'t Expr, seen: &mut dyn FnMut(&'t Expr)) {
        seen(of);
        match of {
            Expr::Pipe(_, inner) => pipe(inner, seen),
            Expr::Chain(_, inner, _) => expr(inner, seen),
            _ => {}
        }
    }
    each_node(tree, &mut |node| each_pipe(node, &mut |p| pipe(p, seen)));
}

/// Where an action stands.
const fn at(node: &Node) -> Option<Pos> {
    match node {
        Node::Action(a) => Some(a.pos),
        Node::If(b) | Node::Range(b) | Node::With(b) => Some(b.pipe.pos),
        Node::Template(t) => Some(t.pos),
        Node::Break(pos) | Node::Continue(pos) => Some(*pos),
        Node::List(_) | Node::Text(_) | Node::Define(_) => None,
    }
}

/// The tree without the actions behind an offset.
fn cut(tree: &ListNode, last: usize) -> ListNode {
    let inner = |tree: &ListNode| cut(tree, last);
    let nodes = tree.nodes.iter().filter(|n| at(n).is_none_or(|pos| pos.offset <= last)).map(|node| {
        let mut node = node.clone();
        match &mut node {
            Node::List(list) => *list = inner(list),
            Node::If(b) | Node::Range(b) | Node::With(b) => {
                b.body = inner(&b.body);
                b.else_body = b.else_body.as_ref().map(inner);
            }
            _ => {}
        }
        node
    });
    ListNode { pos: tree.pos, nodes: nodes.collect() }
}

/// The offset of the action that fails: the library does not say. It is the last one of the shortest beginning that fails
/// too; within another template it is the place from which that is called.
pub(super) fn failing(
    template: &Template,
    main: &str,
    mut fails: impl FnMut(Vec<(String, ListNode)>) -> bool,
) -> Option<usize> {
    let tree = template.lookup(main)?;
    let mut offsets = Vec::new();
    each_node(tree, &mut |n| offsets.extend(at(n).map(|pos| pos.offset)));
    offsets.sort_unstable();
    offsets.dedup();
    let trees = |last: usize| -> Vec<(String, ListNode)> {
        let of = |name: &str| template.lookup(name).map(|tree| (name.to_owned(), tree.clone()));
        let others = template.templates().into_iter().filter(|name| *name != main).filter_map(of);
        others.chain([(main.to_owned(), cut(tree, last))]).collect()
    };
    let first = offsets.partition_point(|last| !fails(trees(*last)));
    offsets.get(first).copied()
}
