//! The order of a waterfall: depth first, each span below its parent, siblings by their start.

use std::collections::HashMap;

use crate::span::Span;

/// A span at its place in the tree.
#[derive(Debug)]
pub struct Row<'a> {
    /// The span.
    pub span: &'a Span,
    /// Where its parent is among the rows.
    pub parent: Option<usize>,
    /// What is drawn before its name.
    pub branch: String,
    /// What is drawn before the lines below it.
    pub trunk: String,
}

impl Row<'_> {
    /// How many spans are above it.
    pub(crate) fn depth(&self, rows: &[Row<'_>]) -> usize {
        let above = |row: Option<usize>| row.and_then(|index| rows.get(index));
        std::iter::successors(above(self.parent), |row| above(row.parent)).count()
    }
}

/// The rows of a trace. A span whose parent was not recorded is a root.
pub fn rows(spans: &[Span]) -> Vec<Row<'_>> {
    let known: HashMap<&str, &Span> = spans.iter().map(|span| (span.span_id.as_str(), span)).collect();
    let mut children: HashMap<Option<&str>, Vec<&Span>> = HashMap::new();
    for span in spans {
        let parent = span.parent_span_id.as_deref().filter(|id| known.contains_key(id));
        children.entry(parent).or_default().push(span);
    }
    for siblings in children.values_mut() {
        siblings.sort_by_key(|span| (span.start, span.end));
    }
    let mut rows = Vec::with_capacity(spans.len());
    for root in children.remove(&None).unwrap_or_default() {
        let row = Row { span: root, parent: None, branch: String::new(), trunk: String::new() };
        add(&mut rows, row, &mut children);
    }
    rows
}

fn add<'a>(rows: &mut Vec<Row<'a>>, row: Row<'a>, children: &mut HashMap<Option<&'a str>, Vec<&'a Span>>) {
    let mut below =
        children.remove(&Some(row.span.span_id.as_str())).unwrap_or_default().into_iter().peekable();
    let (parent, base) = (rows.len(), row.trunk.clone());
    let has_children = below.peek().is_some();
    rows.push(Row { trunk: format!("{base}{}", if has_children { "│  " } else { "   " }), ..row });
    while let Some(span) = below.next() {
        let (branch, trunk) = if below.peek().is_some() { ("├─ ", "│  ") } else { ("└─ ", "   ") };
        let row = Row {
            span,
            parent: Some(parent),
            branch: format!("{base}{branch}"),
            trunk: format!("{base}{trunk}"),
        };
        add(rows, row, children);
    }
}
