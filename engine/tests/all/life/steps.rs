//! Steps of an engine's life, decoded from bytes.
//!
//! Decoding is total: any bytes are some steps, and what is missing at the end counts as zero. It knows nothing of what the
//! steps lead to, so that the same bytes are always the same steps.

pub const TAGS: [&str; 3] = ["a", "b", "c"];
pub const KEYSPACES: u8 = 3;
pub const NUMBERS: u8 = 8;

/// One key of one keyspace. There are few, so that most are written often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub tag: usize,
    pub keyspace: u8,
    pub number: u8,
}

/// What a value is to be.
#[derive(Clone, Copy, Debug)]
pub enum Content {
    /// This many bytes that no other step writes, as long as there are at least four.
    Fresh(usize),
    /// The same for every step.
    Same(u8),
    /// Decimal text.
    Number(i64),
    /// Over 64 KiB; of the first few of a life only.
    Huge,
}

/// When a key is to end.
#[derive(Clone, Copy, Debug)]
pub enum Ends {
    Clear,
    Keep,
    /// Milliseconds from now on; negative: it has been.
    At(i64),
    After(u64),
    AtTheLast,
    AfterTheLast,
}

/// What a conditional write asks for. `true`: what is there.
#[derive(Clone, Copy, Debug)]
pub enum When {
    Always,
    IfAbsent,
    IfPresent,
    IfEqual(bool),
    IfVersion(bool),
}

/// What an update makes of a key.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    Keep,
    Put(Content),
    Delete,
}

/// One entry of a batch; without a content it deletes.
pub type Entry = (Place, Option<(Content, Ends)>);

#[derive(Clone, Debug)]
pub enum Step {
    Set(Place, Content),
    SetWith(Place, Content, When, Ends, bool),
    /// With what is there as the expected value, or with another one.
    CompareAndSet(Place, bool, Content),
    Update(Place, Change),
    Increment(Place, i64),
    Append(Place, Content),
    Delete(Place),
    Take(Place),
    Expire(Place, Option<i64>),
    ExpireIfLater(Place, Ends),
    GetAndExpire(Place, Ends),
    /// Of one slot, with several keyspaces.
    Batch(usize, Vec<Entry>),
    ClearKeyspaceInSlot(u8, usize),
    ClearSlot(usize),
    ClearKeyspace(u8),
    Get(Place),
    GetMany(u8),
    /// Of one slot and keyspace, in pages of so many.
    Scan(u8, usize, usize),
    /// Looks at everything, and counts it.
    Count,
    /// Keeps a value for a while.
    Hold(Place),
    Sleep(u64),
    /// In the background, while the life goes on.
    Checkpoint,
    Reopen(usize),
}

/// The steps that these bytes are.
pub fn decode(bytes: &[u8]) -> Vec<Step> {
    let mut bytes = Bytes(bytes);
    std::iter::from_fn(|| (!bytes.0.is_empty()).then(|| bytes.step())).collect()
}

/// What is left to be decoded.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn flag(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    fn tag(&mut self) -> usize {
        usize::from(self.byte()) % TAGS.len()
    }

    fn keyspace(&mut self) -> u8 {
        self.byte() % KEYSPACES
    }

    fn place(&mut self) -> Place {
        let byte = self.byte();
        let (tags, spaces) = (TAGS.len() as u8, KEYSPACES);
        Place {
            tag: usize::from(byte % tags),
            keyspace: byte / tags % spaces,
            number: byte / tags / spaces % NUMBERS,
        }
    }

    fn content(&mut self) -> Content {
        match self.byte() {
            byte @ 0..=99 => Content::Fresh(usize::from(byte)),
            byte @ 100..=179 => Content::Fresh(usize::from(byte - 100) * 12),
            byte @ 180..=219 => Content::Number(i64::from(byte) - 200),
            byte @ 220..=239 => Content::Fresh(3_900 + usize::from(byte - 220) * 300),
            byte @ 240..=251 => Content::Same(byte % 4),
            252 => Content::Number(i64::MAX - 20),
            253 => Content::Number(i64::MIN + 20),
            _ => Content::Huge,
        }
    }

    fn time_ms(&mut self) -> i64 {
        i64::from(self.byte()) - 2
    }

    fn ends(&mut self) -> Ends {
        match self.byte() % 16 {
            0..=3 => Ends::Clear,
            4..=6 => Ends::Keep,
            7..=10 => Ends::At(self.time_ms()),
            11..=13 => Ends::After(u64::from(self.byte())),
            14 => Ends::AtTheLast,
            _ => Ends::AfterTheLast,
        }
    }

    fn when(&mut self) -> When {
        match self.byte() % 8 {
            0..=1 => When::Always,
            2 => When::IfAbsent,
            3 => When::IfPresent,
            4 => When::IfEqual(true),
            5 => When::IfEqual(false),
            6 => When::IfVersion(true),
            _ => When::IfVersion(false),
        }
    }

    fn change(&mut self) -> Change {
        match self.byte() % 6 {
            0 => Change::Keep,
            1 => Change::Delete,
            _ => Change::Put(self.content()),
        }
    }

    fn expire_in_ms(&mut self) -> Option<i64> {
        let is_some = self.flag();
        is_some.then(|| self.time_ms())
    }

    fn batch(&mut self) -> Step {
        let tag = self.tag();
        let count = self.byte() % 10;
        let entry = |_| {
            let place = Place { tag, ..self.place() };
            let sets = !self.byte().is_multiple_of(4);
            (place, sets.then(|| (self.content(), self.ends())))
        };
        Step::Batch(tag, (0..count).map(entry).collect())
    }

    /// Reopening, clearing, and looking at everything are rare; what writes is not.
    fn step(&mut self) -> Step {
        match self.byte() {
            0..=59 => Step::Set(self.place(), self.content()),
            60..=99 => Step::SetWith(self.place(), self.content(), self.when(), self.ends(), self.flag()),
            100..=109 => Step::CompareAndSet(self.place(), self.flag(), self.content()),
            110..=119 => Step::Update(self.place(), self.change()),
            120..=129 => Step::Increment(self.place(), i64::from(self.byte()) - 128),
            130..=139 => Step::Append(self.place(), self.content()),
            140..=154 => Step::Delete(self.place()),
            155..=159 => Step::Take(self.place()),
            160..=166 => Step::Expire(self.place(), self.expire_in_ms()),
            167..=172 => Step::ExpireIfLater(self.place(), self.ends()),
            173..=179 => Step::GetAndExpire(self.place(), self.ends()),
            180..=199 => self.batch(),
            200..=201 => Step::ClearKeyspaceInSlot(self.keyspace(), self.tag()),
            202 => Step::ClearSlot(self.tag()),
            203 => Step::ClearKeyspace(self.keyspace()),
            204..=219 => Step::Get(self.place()),
            220..=224 => Step::GetMany(self.keyspace()),
            225..=230 => Step::Scan(self.keyspace(), self.tag(), usize::from(self.byte() % 12)),
            231..=232 => Step::Count,
            233..=237 => Step::Hold(self.place()),
            238..=239 => Step::Checkpoint,
            240..=252 => Step::Sleep(u64::from(self.byte())),
            _ => Step::Reopen(1 + usize::from(self.byte() % 3)),
        }
    }
}
