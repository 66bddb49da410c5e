//! What operations hand back: values, receipts, and the two together.
//!
//! Invariant: none of them holds a lock. A short value is a copy; a long one pins the memory that it lies in.

use std::fmt;
use std::ops::Deref;

use arrayvec::ArrayVec;

use crate::engine::Engine;
use crate::error::WaitError;
use crate::log::LogFailed;
use crate::options::Durability;
use crate::record::Record;
use crate::segment::{PinnedRange, RecordOffset};
use crate::store::Store;
use crate::types::{Generation, LogTicket, Slot, Version};

/// Values up to this long are copied into the [`Value`] itself, which is not more than two cache lines long: up to there
/// compilers move it without a call.
const INLINE_BYTES_MAX: usize = 104;
const _: () = assert!(size_of::<Value>() == 128);
/// Values up to this long are copied; longer ones pin their segment.
const COPY_BYTES_MAX: usize = 4096;

/// A value and the version of the write that it comes from. It holds no lock and may be kept.
#[derive(Clone)]
pub struct Value {
    bytes: Bytes,
    version: Version,
}

#[derive(Clone)]
enum Bytes {
    Inline(ArrayVec<u8, INLINE_BYTES_MAX>),
    Copied(Box<[u8]>),
    Pinned(PinnedRange),
}

impl Value {
    /// The value of the live record at this place.
    pub(crate) fn of(store: &Store, place: RecordOffset) -> Value {
        Value::of_record(store, place, &store.record_at(place))
    }

    /// The value of this live record, which is at this place.
    #[inline]
    pub(crate) fn of_record(store: &Store, place: RecordOffset, record: &Record<'_>) -> Value {
        let mut value = None;
        Value::put_record(&mut value, store, place, record);
        value.expect("it was put there")
    }

    /// Puts the value of this live record, which is at this place, into `out`. A short one is copied there and nowhere
    /// else: whoever moves a value that was written just now waits for the processor to have written it.
    #[inline]
    pub(crate) fn put_record(
        out: &mut Option<Value>,
        store: &Store,
        place: RecordOffset,
        record: &Record<'_>,
    ) {
        if record.value.len() > INLINE_BYTES_MAX {
            *out = Some(Value::of_long(store, place, record));
            return;
        }
        let version = store.chain().version_of(place, record);
        let value = out.insert(Value { bytes: Bytes::Inline(ArrayVec::new()), version });
        if let Bytes::Inline(bytes) = &mut value.bytes {
            bytes.try_extend_from_slice(record.value).expect("it is short enough");
        }
    }

    #[inline(never)]
    fn of_long(store: &Store, place: RecordOffset, record: &Record<'_>) -> Value {
        let bytes = match record.value {
            value if value.len() <= COPY_BYTES_MAX => Bytes::Copied(value.into()),
            _ => Bytes::Pinned(store.pin_value(place)),
        };
        Value { bytes, version: store.chain().version_of(place, record) }
    }

    /// The bytes.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Inline(bytes) => bytes,
            Bytes::Copied(bytes) => bytes,
            Bytes::Pinned(range) => range,
        }
    }

    /// The version of the write.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The bytes as a buffer for sending, without a copy if they are pinned memory.
    pub fn into_buf(self) -> Box<dyn lockgate_runtime::IoBuf> {
        match self.bytes {
            Bytes::Inline(bytes) => Box::new(bytes.to_vec()),
            Bytes::Copied(bytes) => Box::new(bytes.into_vec()),
            Bytes::Pinned(range) => Box::new(range),
        }
    }
}

impl Deref for Value {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Value {
    fn eq(&self, other: &T) -> bool {
        self.as_bytes() == other.as_ref()
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({} bytes at {})", self.as_bytes().len(), self.version)
    }
}

/// What a read saw, with what an answer that is held back has to wait for.
#[derive(Clone, Debug)]
pub struct Read {
    /// The value, if the key is there.
    pub value: Option<Value>,
    /// The key's slot.
    pub slot: Slot,
    /// The value's version; the slot's last one when the key is absent.
    pub version: Version,
    /// The slot's last write in the log.
    pub position: LogTicket,
}

/// What a follower of a slot has of a key.
#[derive(Clone, Debug)]
pub struct Followed {
    /// The value, if the key is there.
    pub value: Option<Value>,
    /// When the key ends, by its owner's clock: milliseconds since 1970.
    pub deadline_ms: Option<u64>,
    /// The key's slot.
    pub slot: Slot,
    /// The slot's generation.
    pub generation: Generation,
    /// The value's version; the slot's last one when the key is absent.
    pub version: Version,
    /// The slot's last version.
    pub slot_version: Version,
}

/// What an [`update`](crate::Keyspace::update) makes of the old value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// Nothing.
    Keep,
    /// This value instead.
    Put(Vec<u8>),
    /// The key goes.
    Delete,
}

/// Says where a write is, and waits for it to be safe. The write itself is done.
#[must_use = "a write is in memory and appended to the log; wait on its receipt if it must survive a crash"]
#[derive(Clone)]
pub struct Receipt {
    pub(crate) engine: Engine,
    /// The slot that was written.
    pub slot: Slot,
    /// The write's version; the slot's last one when nothing was written.
    pub version: Version,
    /// What to wait for.
    pub ticket: LogTicket,
    /// How far it must have come to count as done.
    pub durability: Durability,
}

impl Receipt {
    /// Waits until the write is as durable as it was asked to be: see [`Durability`].
    pub async fn durable(&self) -> Result<(), LogFailed> {
        match self.durability {
            Durability::Memory => Ok(()),
            Durability::Written => self.written().await,
            Durability::Synced => self.synced().await,
        }
    }

    /// As [`Receipt::durable`], blocking. Not on a core's thread, unless there is nothing to wait for.
    pub fn wait_durable(&self) -> Result<(), WaitError> {
        match self.durability {
            Durability::Memory => Ok(()),
            Durability::Written => self.wait_written(),
            Durability::Synced => self.wait_synced(),
        }
    }

    /// Waits until the operating system has the write: it survives the end of the process.
    pub async fn written(&self) -> Result<(), LogFailed> {
        self.engine.wait_written(self.ticket).await
    }

    /// Waits until the disk has the write: it survives a power cut.
    pub async fn synced(&self) -> Result<(), LogFailed> {
        self.engine.wait_synced(self.ticket).await
    }

    /// As [`Receipt::written`], blocking. Not on a core's thread.
    pub fn wait_written(&self) -> Result<(), WaitError> {
        Ok(self.engine.log_of(self.ticket).wait_written_blocking(self.ticket.position)?)
    }

    /// As [`Receipt::synced`], blocking. Not on a core's thread.
    pub fn wait_synced(&self) -> Result<(), WaitError> {
        Ok(self.engine.log_of(self.ticket).wait_synced_blocking(self.ticket.position)?)
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receipt(slot {}, {}, {:?})", self.slot, self.version, self.ticket)
    }
}
