//! Which values came from which, to carry a mark from a use back to everything it depends on.
//!
//! Two graphs are kept while a program is explored. In the graph of *precision* a node is a number's origin: it is marked
//! when the safety of what follows was decided by the number's range. In the graph of *reads* a node is the contents of a
//! stack slot: it is marked when they are read. A checkpoint gives every value a node of its own, so the marks on its nodes
//! say which parts of the state mattered after it; the others need not be compared with a later state.

use std::collections::HashMap;

/// A node. [`NONE`] stands for "depends on nothing", and is never marked.
pub(crate) type Node = u32;

/// The node without a mark and without origins.
pub(crate) const NONE: Node = 0;

/// Nodes with at most two origins each, marks, and the few edges that are added later.
pub(crate) struct Graph {
    origins: Vec<[Node; 2]>,
    marked: Vec<bool>,
    /// Edges of loops: from a node of an older state to nodes that were found equal to it.
    also: HashMap<Node, Vec<Node>>,
    work: Vec<Node>,
}

impl Graph {
    pub(crate) fn new() -> Graph {
        Graph { origins: vec![[NONE; 2]], marked: vec![false], also: HashMap::new(), work: Vec::new() }
    }

    /// A new node that depends on `origins`.
    pub(crate) fn node(&mut self, origins: [Node; 2]) -> Node {
        self.origins.push(origins);
        self.marked.push(false);
        (self.origins.len() - 1) as Node
    }

    /// The node of a value made of two: one of them when the other depends on nothing.
    pub(crate) fn join(&mut self, a: Node, b: Node) -> Node {
        if a == b || b == NONE {
            a
        } else if a == NONE {
            b
        } else {
            self.node([a, b])
        }
    }

    /// Bytes that the graph takes, about.
    pub(crate) fn bytes(&self) -> usize {
        const EDGE_BYTES: usize = 64;
        self.origins.capacity() * (size_of::<[Node; 2]>() + size_of::<bool>()) + self.also.len() * EDGE_BYTES
    }

    pub(crate) fn is_marked(&self, node: Node) -> bool {
        self.marked[node as usize]
    }

    /// Marks a node and all that it depends on.
    pub(crate) fn mark(&mut self, node: Node) {
        self.work.push(node);
        while let Some(node) = self.work.pop() {
            if node == NONE || std::mem::replace(&mut self.marked[node as usize], true) {
                continue;
            }
            self.work.extend(self.origins[node as usize]);
            if let Some(also) = self.also.get(&node) {
                self.work.extend(also);
            }
        }
    }

    /// A mark on `old` is a mark on `new` too; with `later`, also one that `old` gets from now on.
    pub(crate) fn link(&mut self, old: Node, new: Node, later: bool) {
        if old == NONE || new == NONE {
            return;
        }
        if self.is_marked(old) {
            self.mark(new);
        } else if later {
            self.also.entry(old).or_default().push(new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_reach_all_origins() {
        let mut graph = Graph::new();
        let (a, b) = (graph.node([NONE; 2]), graph.node([NONE; 2]));
        let sum = graph.join(a, b);
        let copy = graph.node([sum, NONE]);
        let other = graph.node([a, NONE]);
        graph.mark(copy);
        assert!([a, b, sum, copy].iter().all(|&n| graph.is_marked(n)));
        assert!(!graph.is_marked(other) && !graph.is_marked(NONE));
    }

    #[test]
    fn later_marks_follow_links() {
        let mut graph = Graph::new();
        let (old, new) = (graph.node([NONE; 2]), graph.node([NONE; 2]));
        graph.link(old, new, true);
        assert!(!graph.is_marked(new));
        graph.mark(old);
        assert!(graph.is_marked(new));
    }
}
