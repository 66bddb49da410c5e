//! The messages of slot streams: their bytes. Pure. The tables are in `docs/formats.md`.
//!
//! Invariants:
//! - Decoding checks every length and number before it is used, and allocates by what arrived.
//! - A *subscription* number names one Subscribe of one follower. Ranges and refusals carry it, so that those of an
//!   earlier subscription to the same slot, still under way, are told apart: applied, they could leave a gap.

use lockgate_engine::{Floors, Generation, RangeHeader, Slot, Term, Version};

/// Follower to feeder: follow these slots from these cursors on.
pub(super) const KIND_SUBSCRIBE: u8 = 16;
/// Follower to feeder: follow these slots no more.
pub(super) const KIND_UNSUBSCRIBE: u8 = 17;
/// Follower to feeder: how far it has received and synced.
pub(super) const KIND_ACK: u8 = 18;
/// Follower to feeder: what it had of these slots when it subscribed is synced.
pub(super) const KIND_CURSORS_SYNCED: u8 = 19;
/// Feeder to follower: records.
pub(super) const KIND_RANGES: u8 = 32;
/// Feeder to follower: these subscriptions are over.
pub(super) const KIND_REFUSED: u8 = 33;
/// Feeder to follower: up to where the source has acknowledged slots' writes.
pub(super) const KIND_WATERMARKS: u8 = 34;
/// Feeder to follower: what the source has discarded of slots whose ranges come next.
pub(super) const KIND_FLOORS: u8 = 35;

const SUBSCRIBE_BYTES: usize = 56;
const SUBSCRIPTION_BYTES: usize = 8;
const ACK_BYTES: usize = 16;
pub(super) const RANGES_HEADER_BYTES: usize = 16;
pub(super) const RANGE_HEADER_BYTES: usize = 48;
const REFUSED_BYTES: usize = 32;
const WATERMARK_BYTES: usize = 24;
const FLOORS_BYTES: usize = 40;

/// Why a slot is not (or no longer) followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhyRefused {
    /// The source has no data of that generation, or may not send it to this node.
    NotHere,
    /// The receiver has writes that are not in the source's history.
    Diverged {
        /// All that both have lies at or below this version: the receiver must go back to it.
        common: Version,
    },
    /// The source has discarded deletions that the receiver has not seen: the slot must start anew.
    BelowFloor,
    /// The receiver lacks writes whose successors the source does not have: the slot must start anew.
    Gaps,
    /// The receiver's own engine does not take the slot's ranges; why, in words.
    Broken(String),
}

impl std::fmt::Display for WhyRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WhyRefused::NotHere => f.write_str("the source does not have it"),
            WhyRefused::Diverged { common } => {
                write!(f, "its writes above {common} are not in the source's history")
            }
            WhyRefused::BelowFloor => f.write_str("the source has discarded deletions after its cursor"),
            WhyRefused::Gaps => f.write_str("it lacks writes whose successors the source does not have"),
            WhyRefused::Broken(reason) => write!(f, "it cannot be applied: {reason}"),
        }
    }
}

/// A message whose bytes are wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct BadMessage(&'static str);

/// One slot to be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subscribe {
    pub(super) slot: Slot,
    pub(super) subscription: u32,
    /// The receiver's.
    pub(super) generation: Generation,
    pub(super) source_generation: Generation,
    pub(super) cursor: Version,
    /// The receiver's.
    pub(super) undo_floor: Version,
}

/// A subscription by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) slot: Slot,
    pub(super) subscription: u32,
}

/// A subscription that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) slot: Slot,
    pub(super) subscription: u32,
    pub(super) generation: Generation,
    pub(super) why: WhyRefused,
}

/// Up to where a slot's writes were acknowledged at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AckedTo {
    pub(super) slot: Slot,
    pub(super) subscription: u32,
    pub(super) version: Version,
}

/// What is missing of what the source feeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Discarded {
    pub(super) slot: Slot,
    pub(super) subscription: u32,
    pub(super) floors: Floors,
}

/// How far the follower is, as numbers of Ranges messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) received: u64,
    pub(super) synced: u64,
}

/// Whose records follow, and how they are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) slot: Slot,
    pub(super) subscription: u32,
    /// The receiver's.
    pub(super) generation: Generation,
    pub(super) header: RangeHeader,
}

/// A received Ranges message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ranges<'a> {
    pub(super) sequence: u64,
    pub(super) ranges: Vec<(Range, &'a [u8])>,
}

pub(super) fn encode_subscribe(entries: &[Subscribe]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * SUBSCRIBE_BYTES);
    for entry in entries {
        put_subscription(&mut bytes, entry.slot, 0, entry.subscription);
        bytes.extend_from_slice(&entry.generation.0.to_le_bytes());
        bytes.extend_from_slice(&entry.source_generation.0.to_le_bytes());
        put_version(&mut bytes, entry.cursor);
        put_version(&mut bytes, entry.undo_floor);
    }
    bytes
}

pub(super) fn decode_subscribe(bytes: &[u8]) -> Result<Vec<Subscribe>, BadMessage> {
    entries::<SUBSCRIBE_BYTES>(bytes)?
        .map(|entry| {
            let mut fields = Fields(entry);
            let (slot, reserved, subscription) = fields.subscription()?;
            must_be_zero(reserved)?;
            let generation = Generation(fields.u64()?);
            let source_generation = Generation(fields.u64()?);
            let (cursor, undo_floor) = (fields.version()?, fields.version()?);
            Ok(Subscribe { slot, subscription, generation, source_generation, cursor, undo_floor })
        })
        .collect()
}

pub(super) fn encode_subscriptions(entries: &[Subscription]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * SUBSCRIPTION_BYTES);
    entries.iter().for_each(|entry| put_subscription(&mut bytes, entry.slot, 0, entry.subscription));
    bytes
}

pub(super) fn decode_subscriptions(bytes: &[u8]) -> Result<Vec<Subscription>, BadMessage> {
    entries::<SUBSCRIPTION_BYTES>(bytes)?
        .map(|entry| {
            let (slot, reserved, subscription) = Fields(entry).subscription()?;
            must_be_zero(reserved)?;
            Ok(Subscription { slot, subscription })
        })
        .collect()
}

pub(super) fn encode_ack(ack: Ack) -> Vec<u8> {
    [ack.received.to_le_bytes(), ack.synced.to_le_bytes()].concat()
}

pub(super) fn decode_ack(bytes: &[u8]) -> Result<Ack, BadMessage> {
    if bytes.len() != ACK_BYTES {
        return Err(BadMessage("an acknowledgement has another length"));
    }
    let mut fields = Fields(bytes);
    Ok(Ack { received: fields.u64()?, synced: fields.u64()? })
}

pub(super) fn encode_refused(entries: &[Refused]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * REFUSED_BYTES);
    for entry in entries {
        let (why, common) = match entry.why {
            WhyRefused::NotHere => (1, Version::ZERO),
            WhyRefused::Diverged { common } => (2, common),
            WhyRefused::BelowFloor => (3, Version::ZERO),
            WhyRefused::Gaps => (4, Version::ZERO),
            WhyRefused::Broken(_) => unreachable!("a receiver's own trouble is not sent"),
        };
        put_subscription(&mut bytes, entry.slot, why, entry.subscription);
        for number in [entry.generation.0, common.term.0, common.counter] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }
    bytes
}

pub(super) fn decode_refused(bytes: &[u8]) -> Result<Vec<Refused>, BadMessage> {
    entries::<REFUSED_BYTES>(bytes)?
        .map(|entry| {
            let mut fields = Fields(entry);
            let (slot, why, subscription) = fields.subscription()?;
            let generation = Generation(fields.u64()?);
            let common = fields.version()?;
            let why = match why {
                2 => WhyRefused::Diverged { common },
                1 | 3 | 4 if common != Version::ZERO => {
                    return Err(BadMessage("reserved bytes are not zero"));
                }
                1 => WhyRefused::NotHere,
                3 => WhyRefused::BelowFloor,
                4 => WhyRefused::Gaps,
                _ => return Err(BadMessage("a refusal's reason is unknown")),
            };
            Ok(Refused { slot, subscription, generation, why })
        })
        .collect()
}

pub(super) fn encode_watermarks(entries: &[AckedTo]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * WATERMARK_BYTES);
    for entry in entries {
        put_subscription(&mut bytes, entry.slot, 0, entry.subscription);
        put_version(&mut bytes, entry.version);
    }
    bytes
}

pub(super) fn decode_watermarks(bytes: &[u8]) -> Result<Vec<AckedTo>, BadMessage> {
    entries::<WATERMARK_BYTES>(bytes)?
        .map(|entry| {
            let mut fields = Fields(entry);
            let (slot, reserved, subscription) = fields.subscription()?;
            must_be_zero(reserved)?;
            Ok(AckedTo { slot, subscription, version: Version::new(Term(fields.u64()?), fields.u64()?) })
        })
        .collect()
}

pub(super) fn encode_floors(entries: &[Discarded]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * FLOORS_BYTES);
    for Discarded { slot, subscription, floors } in entries {
        put_subscription(&mut bytes, *slot, 0, *subscription);
        put_version(&mut bytes, floors.floor);
        put_version(&mut bytes, floors.undo_floor);
    }
    bytes
}

pub(super) fn decode_floors(bytes: &[u8]) -> Result<Vec<Discarded>, BadMessage> {
    entries::<FLOORS_BYTES>(bytes)?
        .map(|entry| {
            let mut fields = Fields(entry);
            let (slot, reserved, subscription) = fields.subscription()?;
            must_be_zero(reserved)?;
            let (floor, undo_floor) = (fields.version()?, fields.version()?);
            Ok(Discarded { slot, subscription, floors: Floors { floor, undo_floor } })
        })
        .collect()
}

/// The header of a Ranges message.
pub(super) fn ranges_header(sequence: u64, count: u32) -> [u8; RANGES_HEADER_BYTES] {
    let mut bytes = [0; RANGES_HEADER_BYTES];
    bytes[0..8].copy_from_slice(&sequence.to_le_bytes());
    bytes[8..12].copy_from_slice(&count.to_le_bytes());
    bytes
}

/// Appends a range's header; `length` bytes of records must follow.
pub(super) fn put_range_header(bytes: &mut Vec<u8>, range: &Range, length: usize) {
    put_subscription(bytes, range.slot, 0, range.subscription);
    let length = u32::try_from(length).expect("a range is shorter than a message");
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    // The last number is the source's acknowledged watermark (zero: not stated).
    for number in [range.generation.0, range.header.term.0, range.header.base, 0] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
}

/// Takes a Ranges message apart. The records themselves are for the engine to check.
pub(super) fn decode_ranges(bytes: &[u8]) -> Result<Ranges<'_>, BadMessage> {
    let mut fields = Fields(bytes);
    let sequence = fields.u64()?;
    let count = fields.u32()? as usize;
    must_be_zero_u32(fields.u32()?)?;
    if count > fields.0.len() / RANGE_HEADER_BYTES {
        return Err(BadMessage("it claims more ranges than fit into it"));
    }
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let (slot, flags, subscription) = fields.subscription()?;
        must_be_zero(flags)?;
        let length = fields.u32()? as usize;
        must_be_zero_u32(fields.u32()?)?;
        let generation = Generation(fields.u64()?);
        let header = RangeHeader { term: Term(fields.u64()?), base: fields.u64()? };
        let _acknowledged = fields.u64()?;
        let records = fields.take(length)?;
        ranges.push((Range { slot, subscription, generation, header }, records));
    }
    if !fields.0.is_empty() {
        return Err(BadMessage("bytes are left after its last range"));
    }
    Ok(Ranges { sequence, ranges })
}

fn put_subscription(bytes: &mut Vec<u8>, slot: Slot, second: u16, subscription: u32) {
    bytes.extend_from_slice(&slot.number().to_le_bytes());
    bytes.extend_from_slice(&second.to_le_bytes());
    bytes.extend_from_slice(&subscription.to_le_bytes());
}

fn put_version(bytes: &mut Vec<u8>, version: Version) {
    bytes.extend_from_slice(&version.term.0.to_le_bytes());
    bytes.extend_from_slice(&version.counter.to_le_bytes());
}

fn entries<const N: usize>(bytes: &[u8]) -> Result<impl Iterator<Item = &[u8]>, BadMessage> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(N) {
        return Err(BadMessage("its length is not that of whole entries"));
    }
    Ok(bytes.chunks_exact(N))
}

fn must_be_zero(reserved: u16) -> Result<(), BadMessage> {
    must_be_zero_u32(u32::from(reserved))
}

fn must_be_zero_u32(reserved: u32) -> Result<(), BadMessage> {
    if reserved == 0 { Ok(()) } else { Err(BadMessage("reserved bytes are not zero")) }
}

/// Reads numbers off the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], BadMessage> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(BadMessage("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadMessage> {
        Ok(self.take(N)?.try_into().expect("taken by that length"))
    }

    fn u16(&mut self) -> Result<u16, BadMessage> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, BadMessage> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, BadMessage> {
        self.array().map(u64::from_le_bytes)
    }

    /// A version: of a write, or zeros.
    fn version(&mut self) -> Result<Version, BadMessage> {
        let version = Version::new(Term(self.u64()?), self.u64()?);
        if version.counter == 0 && version != Version::ZERO {
            return Err(BadMessage("a version's counter is zero"));
        }
        Ok(version)
    }

    /// A slot, a number that depends on the message, and a subscription.
    fn subscription(&mut self) -> Result<(Slot, u16, u32), BadMessage> {
        let slot = Slot::new(self.u16()?).ok_or(BadMessage("it names a slot that does not exist"))?;
        Ok((slot, self.u16()?, self.u32()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot(number: u16) -> Slot {
        Slot::new(number).unwrap()
    }

    #[test]
    fn messages_come_back() {
        let subscribes = [1, 16_383].map(|number| Subscribe {
            slot: slot(number),
            subscription: 7,
            generation: Generation::new(3).next_minor(),
            source_generation: Generation::new(3),
            cursor: Version::new(Term(9), 10),
            undo_floor: Version::new(Term(11), 12),
        });
        assert_eq!(decode_subscribe(&encode_subscribe(&subscribes)).unwrap(), subscribes);
        let subscriptions = [Subscription { slot: slot(5), subscription: u32::MAX }];
        assert_eq!(decode_subscriptions(&encode_subscriptions(&subscriptions)).unwrap(), subscriptions);
        let ack = Ack { received: 9, synced: 8 };
        assert_eq!(decode_ack(&encode_ack(ack)), Ok(ack));
        let common = Version::new(Term(4), 5);
        let refused = [
            WhyRefused::NotHere,
            WhyRefused::Diverged { common },
            WhyRefused::Diverged { common: Version::ZERO },
            WhyRefused::BelowFloor,
            WhyRefused::Gaps,
        ]
        .map(|why| Refused { slot: slot(2), subscription: 1, generation: Generation::new(1), why });
        assert_eq!(decode_refused(&encode_refused(&refused)).unwrap(), refused);
    }

    #[test]
    fn watermarks_come_back() {
        let watermarks = [3, 16_383].map(|number| AckedTo {
            slot: slot(number),
            subscription: 9,
            version: Version::new(Term(2), u64::from(number)),
        });
        let bytes = encode_watermarks(&watermarks);
        assert_eq!(decode_watermarks(&bytes).unwrap(), watermarks);
        assert!(decode_watermarks(&bytes[..47]).is_err() && decode_watermarks(&[]).is_err());
        let mut reserved = bytes;
        reserved[2] = 1;
        assert!(decode_watermarks(&reserved).is_err());
    }

    #[test]
    fn floors_come_back() {
        let (floor, undo_floor) = (Version::new(Term(3), 4), Version::new(Term(5), 6));
        let floors = [Floors { floor, undo_floor }, Floors { undo_floor, ..Floors::default() }]
            .map(|floors| Discarded { slot: slot(16_383), subscription: 8, floors });
        let bytes = encode_floors(&floors);
        assert_eq!(decode_floors(&bytes).unwrap(), floors);
        assert!(decode_floors(&bytes[..79]).is_err() && decode_floors(&[]).is_err());
        for (at, byte) in [(2, 1), (16, 0), (32, 0)] {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            assert!(decode_floors(&bytes).is_err(), "reserved bytes, or a version without a counter: {at}");
        }
    }

    fn ranges() -> Vec<u8> {
        let range = |number| Range {
            slot: slot(number),
            subscription: 4,
            generation: Generation::new(2),
            header: RangeHeader { term: Term(5), base: 6 },
        };
        let mut bytes = ranges_header(11, 2).to_vec();
        put_range_header(&mut bytes, &range(1), 4);
        bytes.extend_from_slice(b"abcd");
        put_range_header(&mut bytes, &range(2), 0);
        bytes
    }

    #[test]
    fn ranges_come_back_and_nothing_else_does() {
        let bytes = ranges();
        let decoded = decode_ranges(&bytes).unwrap();
        assert_eq!((decoded.sequence, decoded.ranges.len()), (11, 2));
        assert_eq!((decoded.ranges[0].0.slot, decoded.ranges[0].1), (slot(1), &b"abcd"[..]));
        for cut in 0..bytes.len() {
            assert!(decode_ranges(&bytes[..cut]).is_err(), "cut to {cut} bytes");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(decode_ranges(&longer).is_err());
        let mut many = bytes;
        many[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode_ranges(&many), Err(BadMessage("it claims more ranges than fit into it")));
    }

    #[test]
    fn wrong_entries_are_refused() {
        assert!(decode_subscribe(&[]).is_err() && decode_subscribe(&[0; 55]).is_err());
        assert!(decode_subscriptions(&[0xff; 8]).is_err(), "no such slot");
        assert!(decode_subscriptions(&[0, 0, 1, 0, 0, 0, 0, 0]).is_err(), "reserved");
        assert!(decode_refused(&[0; 32]).is_err(), "no such reason");
        let refused = |why: u8, at: usize| {
            let mut bytes = [0; 32];
            (bytes[2], bytes[at]) = (why, 1);
            decode_refused(&bytes)
        };
        assert!(
            refused(1, 8).is_ok() && refused(2, 24).is_ok() && refused(3, 8).is_ok() && refused(4, 8).is_ok()
        );
        assert!(
            refused(1, 16).is_err() && refused(3, 24).is_err() && refused(4, 24).is_err(),
            "only who diverged has something in common"
        );
        assert!(refused(2, 16).is_err(), "a term without a counter");
        assert!(decode_ack(&[0; 15]).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (decode_subscribe(&bytes), decode_subscriptions(&bytes), decode_ack(&bytes));
            let _ = (decode_refused(&bytes), decode_ranges(&bytes), decode_watermarks(&bytes));
            let _ = decode_floors(&bytes);
        }
    }
}
