//! Which followers have streams open here.
//!
//! Invariant: of several links of one follower only the newest counts. An earlier one may still be open because its end was
//! not noticed yet; what is read from it late speaks of a stream that its follower has given up.

use std::collections::BTreeMap;

use crate::control::NodeId;

/// The newest link of each follower, by node and boot.
#[derive(Debug, Default)]
pub struct Feeds {
    links: u64,
    newest: BTreeMap<(NodeId, u64), u64>,
}

impl Feeds {
    /// A follower has opened a link: its number.
    pub fn begin(&mut self, node: NodeId, boot: u64) -> u64 {
        self.links += 1;
        self.newest.insert((node, boot), self.links);
        self.links
    }

    /// Whether that link is the follower's newest one.
    pub fn is_newest(&self, node: NodeId, boot: u64, link: u64) -> bool {
        self.newest.get(&(node, boot)) == Some(&link)
    }

    /// A link has ended. Whether the follower has none that counts any more.
    pub fn end(&mut self, node: NodeId, boot: u64, link: u64) -> bool {
        let was_newest = self.is_newest(node, boot, link);
        if was_newest {
            self.newest.remove(&(node, boot));
        }
        was_newest
    }

    /// Whether the follower has a stream open here.
    pub fn is_open(&self, node: NodeId, boot: u64) -> bool {
        self.newest.contains_key(&(node, boot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_link_counts() {
        let (mut feeds, node) = (Feeds::default(), NodeId(2));
        let old = feeds.begin(node, 1);
        let new = feeds.begin(node, 1);
        assert!(!feeds.is_newest(node, 1, old) && feeds.is_newest(node, 1, new));
        assert!(!feeds.end(node, 1, old), "its end is no news");
        assert!(feeds.is_open(node, 1) && !feeds.is_open(node, 2));
        assert!(feeds.end(node, 1, new));
        assert!(!feeds.is_open(node, 1));
    }
}
