//! The first message of each direction: who one is, and whether the other is welcome.
//!
//! The connecting node says Hello; the accepting one answers Welcome (its own Hello) or Refused. All three begin with the
//! same magic and format version, and Refused keeps its layout in every format, so that nodes of different formats can
//! tell each other what is wrong.
//!
//! Invariant: nothing of a Hello is believed before magic, format, length and checksum have matched.

use std::fmt;

use super::frame::Message;

/// The format version of links and of all messages on them.
pub const FORMAT: u16 = 1;
/// Kinds below this one are the link's own.
pub const KIND_USER_MIN: u8 = 16;
/// Bytes of a Hello.
pub const HELLO_BYTES: usize = 56;

pub(super) const KIND_HELLO: u8 = 1;
pub(super) const KIND_WELCOME: u8 = 2;
pub(super) const KIND_REFUSED: u8 = 3;
/// Says nothing: the sender is there.
pub(super) const KIND_PING: u8 = 4;
/// The most that is taken from a peer before it is known.
pub(super) const HANDSHAKE_BYTES_MAX: usize = 1024;

const MAGIC: [u8; 4] = *b"LGLK";
const REFUSED_HEADER_BYTES: usize = 8;
const WORDS_BYTES_MAX: usize = 512;

const _: () = assert!(HELLO_BYTES <= HANDSHAKE_BYTES_MAX);
const _: () = assert!(REFUSED_HEADER_BYTES + WORDS_BYTES_MAX <= HANDSHAKE_BYTES_MAX);

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// The control log's messages, and requests between nodes.
    Control,
    /// Slot streams.
    Bulk,
    /// Tools that form a cluster or look into one; they need not know its id.
    Admin,
}

impl Purpose {
    fn code(self) -> u8 {
        match self {
            Purpose::Control => 1,
            Purpose::Bulk => 2,
            Purpose::Admin => 3,
        }
    }

    fn of_code(code: u8) -> Option<Self> {
        [Purpose::Control, Purpose::Bulk, Purpose::Admin].into_iter().find(|purpose| purpose.code() == code)
    }
}

/// Who one end of a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The cluster; zeros when the node belongs to none yet.
    pub cluster: [u8; 16],
    /// The node's id in the cluster.
    pub node: u32,
    /// The id of its data directory.
    pub directory: [u8; 16],
    /// How often that directory was opened.
    pub boot: u64,
    /// What the link is for; both ends say the same.
    pub purpose: Purpose,
    /// The format that the node speaks: [`FORMAT`].
    pub format: u16,
}

impl Hello {
    /// Refuses a peer of another cluster. Admin links need not belong to one.
    pub fn check_cluster(&self, peer: &Hello) -> Result<(), Refusal> {
        if self.cluster == peer.cluster || peer.purpose == Purpose::Admin {
            return Ok(());
        }
        Err(Refusal::cluster_mismatch(&self.cluster, &peer.cluster))
    }

    /// The first message of a link from its connecting side, for who makes links by hand.
    pub fn to_message(&self) -> Message {
        Message { kind: KIND_HELLO, payload: self.encode() }
    }

    /// What the first message of a link from its connecting side says; `None` if it is no hello.
    pub fn of_message(message: &Message) -> Option<Hello> {
        (message.kind == KIND_HELLO).then(|| Self::decode(&message.payload).ok())?
    }

    /// The bytes of a Hello or Welcome. The table is in `docs/formats.md`.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HELLO_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.format.to_le_bytes());
        bytes.extend_from_slice(&[self.purpose.code(), 0]);
        bytes.extend_from_slice(&self.node.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.boot.to_le_bytes());
        bytes.extend_from_slice(&self.cluster);
        bytes.extend_from_slice(&self.directory);
        debug_assert_eq!(bytes.len(), HELLO_BYTES);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HelloError> {
        let format = read_preface(bytes).ok_or(HelloError::NotOurs)?;
        if format != FORMAT {
            return Err(HelloError::Format(format));
        }
        let bytes: &[u8; HELLO_BYTES] =
            bytes.try_into().map_err(|_| HelloError::Damaged("its length is wrong"))?;
        if bytes[7] != 0 || bytes[12..16] != [0; 4] {
            return Err(HelloError::Damaged("reserved bytes are not zero"));
        }
        let (boot, rest) = bytes[16..].split_first_chunk().expect("length checked");
        let (cluster, rest) = rest.split_first_chunk().expect("length checked");
        Ok(Self {
            cluster: *cluster,
            node: u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
            directory: rest.try_into().expect("length checked"),
            boot: u64::from_le_bytes(*boot),
            purpose: Purpose::of_code(bytes[6]).ok_or(HelloError::Damaged("its purpose is unknown"))?,
            format,
        })
    }
}

/// Why bytes are not a Hello that this node understands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HelloError {
    NotOurs,
    Format(u16),
    Damaged(&'static str),
}

impl fmt::Display for HelloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HelloError::NotOurs => f.write_str("its first message does not begin as a link does"),
            HelloError::Format(format) => {
                write!(f, "it speaks format {format}, this node speaks format {FORMAT}")
            }
            HelloError::Damaged(what) => write!(f, "its hello is damaged: {what}"),
        }
    }
}

/// Why a peer is not welcome, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefusalReason {
    /// It speaks another format.
    FormatMismatch,
    /// It belongs to another cluster.
    ClusterMismatch,
    /// It is not (or no longer) a member of the cluster, or another node than expected.
    UnknownNode,
    /// A later boot, or another data directory, of that node is known.
    StaleIncarnation,
    /// Links of this purpose are not taken (now).
    Purpose,
    /// Its generation of the cluster is over.
    OldGeneration,
    /// Anything else: see the words.
    Other,
}

impl RefusalReason {
    const ALL: [Self; 7] = [
        Self::FormatMismatch,
        Self::ClusterMismatch,
        Self::UnknownNode,
        Self::StaleIncarnation,
        Self::Purpose,
        Self::OldGeneration,
        Self::Other,
    ];

    fn code(self) -> u16 {
        match self {
            Self::FormatMismatch => 1,
            Self::ClusterMismatch => 2,
            Self::UnknownNode => 3,
            Self::StaleIncarnation => 4,
            Self::Purpose => 5,
            Self::Other => 6,
            Self::OldGeneration => 7,
        }
    }
}

/// Why a peer is not welcome: for programs and in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub reason: RefusalReason,
    /// For people.
    pub words: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl Refusal {
    /// A refusal in the caller's words.
    pub fn new(reason: RefusalReason, words: impl Into<String>) -> Self {
        Self { reason, words: words.into() }
    }

    /// The peer belongs to another cluster.
    pub fn cluster_mismatch(ours: &[u8; 16], theirs: &[u8; 16]) -> Self {
        let words =
            format!("cluster mismatch: this node belongs to {}, the peer to {}", hex(ours), hex(theirs));
        Self::new(RefusalReason::ClusterMismatch, words)
    }

    pub(super) fn format_mismatch(theirs: u16) -> Self {
        let words = format!("format mismatch: this node speaks format {FORMAT}, the peer format {theirs}");
        Self::new(RefusalReason::FormatMismatch, words)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut end = self.words.len().min(WORDS_BYTES_MAX);
        while !self.words.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = Vec::with_capacity(REFUSED_HEADER_BYTES + end);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&self.reason.code().to_le_bytes());
        bytes.extend_from_slice(&self.words.as_bytes()[..end]);
        bytes
    }

    /// None if these are not a refusal's bytes. An unknown reason of a later format is `Other`.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        read_preface(bytes)?;
        let (header, words) = bytes.split_at_checked(REFUSED_HEADER_BYTES)?;
        let code = u16::from_le_bytes([header[6], header[7]]);
        let reason = RefusalReason::ALL.into_iter().find(|reason| reason.code() == code);
        // What a stranger sends ends up in this node's own log: one line of it, without control characters.
        let words =
            String::from_utf8_lossy(words).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Some(Self { reason: reason.unwrap_or(RefusalReason::Other), words })
    }
}

/// The format version, if the bytes begin as a handshake message does.
fn read_preface(bytes: &[u8]) -> Option<u16> {
    let rest = bytes.strip_prefix(&MAGIC)?;
    rest.first_chunk().map(|format| u16::from_le_bytes(*format))
}

fn hex(id: &[u8; 16]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            cluster: [1; 16],
            node: 0x0203_0405,
            directory: [9; 16],
            boot: 77,
            purpose: Purpose::Bulk,
            format: FORMAT,
        }
    }

    #[test]
    fn hellos_come_back_and_damage_is_named() {
        let bytes = hello().encode();
        assert_eq!(Hello::decode(&bytes), Ok(hello()));
        for cut in 0..bytes.len() {
            assert!(Hello::decode(&bytes[..cut]).is_err());
        }
        let mut other = bytes.clone();
        other[4] = 9;
        assert_eq!(
            Hello::decode(&other[..6]),
            Err(HelloError::Format(9)),
            "known before the rest is looked at"
        );
        other[0] = b'*';
        assert_eq!(Hello::decode(&other), Err(HelloError::NotOurs));
        let mut other = bytes;
        other[6] = 200;
        assert!(matches!(Hello::decode(&other), Err(HelloError::Damaged(_))));
    }

    #[test]
    fn refusals_come_back_cut_to_their_limit() {
        let refusal = Refusal::cluster_mismatch(&[1; 16], &[0xab; 16]);
        assert!(refusal.words.starts_with("cluster mismatch: this node belongs to 0101"));
        assert_eq!(Refusal::decode(&refusal.encode()), Some(refusal));
        let long = Refusal::new(RefusalReason::Other, "\u{e9}".repeat(WORDS_BYTES_MAX));
        let back = Refusal::decode(&long.encode()).unwrap();
        assert_eq!(back.words.len(), WORDS_BYTES_MAX);
        let mut later = long.encode();
        later[4..8].copy_from_slice(&[99, 0, 99, 0]);
        assert_eq!(Refusal::decode(&later).unwrap().reason, RefusalReason::Other);
        assert_eq!(Refusal::decode(b"LGLK"), None);
    }

    #[test]
    fn only_admins_may_come_from_elsewhere() {
        let mut stranger = Hello { cluster: [2; 16], ..hello() };
        assert_eq!(hello().check_cluster(&stranger).unwrap_err().reason, RefusalReason::ClusterMismatch);
        stranger.purpose = Purpose::Admin;
        assert_eq!(hello().check_cluster(&stranger), Ok(()));
        assert_eq!(hello().check_cluster(&hello()), Ok(()));
    }
}
