//! Who owns which slot, as far as a client knows. A cache: redirects correct it, nothing relies on it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lockgate_engine::{SLOTS, Slot};

use super::reply::Reply;

/// The owners' addresses, by slot.
#[derive(Clone, Debug)]
pub struct SlotMap {
    owners: Vec<Option<SocketAddr>>,
}

impl Default for SlotMap {
    fn default() -> Self {
        SlotMap { owners: vec![None; usize::from(SLOTS)] }
    }
}

impl SlotMap {
    /// Without any owner.
    pub fn new() -> SlotMap {
        SlotMap::default()
    }

    /// From the reply to CLUSTER SLOTS, sent by `from`; or what is wrong with it.
    pub fn parse(reply: &Reply, from: SocketAddr) -> Result<SlotMap, String> {
        let Reply::Array(ranges) = reply else {
            return Err(format!("{} as the reply to CLUSTER SLOTS", reply.type_name()));
        };
        let mut map = SlotMap::new();
        for (number, range) in ranges.iter().enumerate() {
            let (first, last, owner) = parse_range(range, from)
                .ok_or_else(|| format!("range {number} of CLUSTER SLOTS: {range:?}"))?;
            map.owners[first.index()..=last.index()].fill(Some(owner));
        }
        Ok(map)
    }

    /// The owner of a slot, if one is known.
    pub fn owner(&self, slot: Slot) -> Option<SocketAddr> {
        self.owners[slot.index()]
    }

    /// Notes a slot's owner.
    pub fn set(&mut self, slot: Slot, owner: SocketAddr) {
        self.owners[slot.index()] = Some(owner);
    }

    /// All owners, each once.
    pub fn nodes(&self) -> BTreeSet<SocketAddr> {
        self.owners.iter().flatten().copied().collect()
    }

    /// How many slots have a known owner.
    pub fn owned(&self) -> usize {
        self.owners.iter().flatten().count()
    }
}

/// `[first, last, [host, port, ...], ...]`. An empty or null host is the one of the node that was asked.
fn parse_range(range: &Reply, from: SocketAddr) -> Option<(Slot, Slot, SocketAddr)> {
    let Reply::Array(parts) = range else { return None };
    let [Reply::Integer(first), Reply::Integer(last), Reply::Array(node), ..] = parts.as_slice() else {
        return None;
    };
    let slot = |number: &i64| Slot::new(u16::try_from(*number).ok()?);
    let (first, last) = (slot(first)?, slot(last)?);
    let ip: IpAddr = match node.first()? {
        Reply::Null => from.ip(),
        Reply::Bulk(host) if host.is_empty() => from.ip(),
        Reply::Bulk(host) => std::str::from_utf8(host).ok()?.parse().ok()?,
        _ => return None,
    };
    let Reply::Integer(port) = node.get(1)? else { return None };
    (first <= last).then_some((first, last, SocketAddr::new(ip, u16::try_from(*port).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SlotMap, String> {
        let text = text.replace(' ', "\r\n") + "\r\n";
        SlotMap::parse(&Reply::read(&mut text.as_bytes()).unwrap(), "127.0.0.9:1".parse().unwrap())
    }

    #[test]
    fn ranges_are_taken_and_replicas_left() {
        let map = parse(
            "*2 *4 :0 :9 *3 $9 127.0.0.1 :7000 $1 a *3 $9 127.0.0.1 :7001 $1 b *3 :16383 :16383 *2 $-1 :7002",
        )
        .unwrap();
        assert_eq!(map.owned(), 11);
        assert_eq!(map.owner(Slot::new(9).unwrap()), Some("127.0.0.1:7000".parse().unwrap()));
        assert_eq!(map.owner(Slot::new(10).unwrap()), None);
        assert_eq!(map.owner(Slot::new(16383).unwrap()), Some("127.0.0.9:7002".parse().unwrap()));
        assert_eq!(map.nodes().len(), 2);
    }

    #[test]
    fn bad_maps_are_refused() {
        for text in [
            "+OK",
            "*1 :1",
            "*1 *2 :0 :1",
            "*1 *3 :5 :4 *2 $9 127.0.0.1 :1",
            "*1 *3 :0 :16384 *2 $9 127.0.0.1 :1",
            "*1 *3 :0 :1 *2 $4 host :1",
            "*1 *3 :0 :1 *2 $9 127.0.0.1 :70000",
            "*1 *3 :-1 :1 *2 $9 127.0.0.1 :1",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
