//! What the demo loads: keys and values, read from a file or from the bundled sample.
//!
//! A data file has one entry a line: the key, a tab, and the value as a JSON string. Invariants of a [`DataSet`]: it has
//! at least one entry, no key twice, no empty key, and every length is within the engine's limits.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use lockgate_engine::{KEY_BYTES_MAX, Slot};
use thiserror::Error;

/// The longest line of a data file, in bytes.
pub const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most entries that a data set may have.
pub const ENTRIES_MAX: usize = 10_000_000;
/// The most bytes of keys and values together: the demo keeps them in memory to compare with.
pub const DATA_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

const SAMPLE: &str = include_str!("../../assets/sample.tsv");
const SAMPLE_NAME: &str = "the bundled sample";

/// One key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataEntry {
    /// The key, as clients send it.
    pub key: Vec<u8>,
    /// The value, without the counter that the demo's writers put before it.
    pub value: Vec<u8>,
    /// The slot that the key belongs to.
    pub slot: Slot,
}

impl DataEntry {
    /// An entry; its slot follows from the key.
    pub fn new(key: Vec<u8>, value: Vec<u8>) -> DataEntry {
        let slot = Slot::of_key(&key);
        DataEntry { key, value, slot }
    }
}

/// The entries that the demo works on. A key is named by its index in here.
#[derive(Clone, Debug)]
pub struct DataSet {
    entries: Vec<DataEntry>,
    bytes: u64,
}

/// Why a data file cannot be used: where, what, and what would be right.
#[derive(Debug, Error)]
pub enum DataError {
    /// The file cannot be opened or read.
    #[error("{}: cannot be read: {source}", path.display())]
    Io {
        /// The data file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is not an entry.
    #[error("{name}, line {line}: {problem}; a line is a key, a tab, and the value as a JSON string")]
    Line {
        /// The data file.
        name: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A line or the whole is larger than the demo takes.
    #[error("{name}, line {line}: {problem}")]
    TooLarge {
        /// The data file.
        name: String,
        /// The line, from 1.
        line: usize,
        /// Which limit is passed.
        problem: String,
    },
    /// There is nothing to load.
    #[error("{name} has no entries; a line is a key, a tab, and the value as a JSON string")]
    Empty {
        /// The data file.
        name: String,
    },
}

impl DataSet {
    /// The sample that comes with the program: about a megabyte of package descriptions.
    pub fn sample() -> DataSet {
        DataSet::parse(SAMPLE.as_bytes(), SAMPLE_NAME, Path::new(SAMPLE_NAME))
            .expect("the bundled sample is checked by a test")
    }

    /// Reads a data file.
    pub fn read(path: &Path) -> Result<DataSet, DataError> {
        let file =
            std::fs::File::open(path).map_err(|source| DataError::Io { path: path.to_path_buf(), source })?;
        DataSet::parse(BufReader::with_capacity(1 << 20, file), &path.display().to_string(), path)
    }

    /// A data set of these entries. Fails on what a file with them would be refused for.
    pub fn from_entries(entries: Vec<DataEntry>) -> Result<DataSet, DataError> {
        let mut builder = Builder::new("the given entries");
        for entry in entries {
            builder.add(entry.key, entry.value)?;
        }
        builder.finish()
    }

    /// The entries in the order of the file.
    pub fn entries(&self) -> &[DataEntry] {
        &self.entries
    }

    /// How many entries there are; never zero.
    #[allow(clippy::len_without_is_empty, reason = "a data set is never empty")]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The bytes of all keys and values.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn parse(mut from: impl BufRead, name: &str, path: &Path) -> Result<DataSet, DataError> {
        let mut builder = Builder::new(name);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = from
                .by_ref()
                .take(LINE_BYTES_MAX as u64 + 1)
                .read_until(b'\n', &mut line)
                .map_err(|source| DataError::Io { path: path.to_path_buf(), source })?;
            if read == 0 {
                return builder.finish();
            }
            builder.line += 1;
            if read > LINE_BYTES_MAX {
                return Err(builder.too_large(format!("the line is longer than {LINE_BYTES_MAX} bytes")));
            }
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            if !text.is_empty() {
                builder.add_line(text)?;
            }
        }
    }
}

/// Collects entries and checks them; knows the line that it is at.
struct Builder<'a> {
    name: &'a str,
    line: usize,
    first_lines: BTreeMap<Vec<u8>, usize>,
    set: DataSet,
}

impl<'a> Builder<'a> {
    fn new(name: &'a str) -> Self {
        Builder {
            name,
            line: 0,
            first_lines: BTreeMap::new(),
            set: DataSet { entries: Vec::new(), bytes: 0 },
        }
    }

    fn add_line(&mut self, text: &[u8]) -> Result<(), DataError> {
        let Some(tab) = text.iter().position(|byte| *byte == b'\t') else {
            return Err(self.wrong("there is no tab"));
        };
        let (key, json) = (&text[..tab], &text[tab + 1..]);
        let value: String = serde_json::from_slice(json)
            .map_err(|error| self.wrong(format!("the value is not a JSON string ({error})")))?;
        self.check_and_push(key.to_vec(), value.into_bytes())
    }

    fn add(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), DataError> {
        self.line += 1;
        self.check_and_push(key, value)
    }

    fn check_and_push(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), DataError> {
        if key.is_empty() {
            return Err(self.wrong("the key is empty"));
        }
        if key.len() > KEY_BYTES_MAX {
            return Err(self.too_large(format!("the key has {} bytes; at most {KEY_BYTES_MAX}", key.len())));
        }
        if self.set.entries.len() == ENTRIES_MAX {
            return Err(self.too_large(format!("there are more than {ENTRIES_MAX} entries")));
        }
        self.set.bytes += (key.len() + value.len()) as u64;
        if self.set.bytes > DATA_BYTES_MAX {
            return Err(self.too_large(format!("keys and values are more than {DATA_BYTES_MAX} bytes")));
        }
        if let Some(first) = self.first_lines.insert(key.clone(), self.line) {
            return Err(self.wrong(format!("the key of line {first} comes again")));
        }
        self.set.entries.push(DataEntry::new(key, value));
        Ok(())
    }

    fn finish(self) -> Result<DataSet, DataError> {
        if self.set.entries.is_empty() {
            return Err(DataError::Empty { name: self.name.to_string() });
        }
        Ok(self.set)
    }

    fn wrong(&self, problem: impl Into<String>) -> DataError {
        DataError::Line { name: self.name.to_string(), line: self.line, problem: problem.into() }
    }

    fn too_large(&self, problem: String) -> DataError {
        DataError::TooLarge { name: self.name.to_string(), line: self.line, problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[u8]) -> Result<DataSet, DataError> {
        DataSet::parse(text, "test.tsv", Path::new("test.tsv"))
    }

    #[test]
    fn the_sample_is_small_and_sound() {
        const { assert!(SAMPLE.len() < 1 << 20) };
        let sample = DataSet::sample();
        assert!(sample.len() > 2_000, "{} entries", sample.len());
        assert!(!SAMPLE.contains("Description:"));
        assert!(sample.entries()[0].value.starts_with(b"Package: "));
    }

    #[test]
    fn entries_are_unescaped_and_blank_lines_skipped() {
        let set = parse(b"a\t\"x\\ny\"\r\n\nb c\t\"\\u00e9\"").unwrap();
        assert_eq!(set.len(), 2);
        assert_eq!(set.entries()[0], DataEntry::new(b"a".to_vec(), b"x\ny".to_vec()));
        assert_eq!(set.entries()[1], DataEntry::new(b"b c".to_vec(), "\u{e9}".into()));
        assert_eq!(set.bytes(), 4 + 3 + 2);
    }

    #[test]
    fn errors_name_file_and_line() {
        let cases: &[(&[u8], &str)] = &[
            (b"a\t\"x\"\nb \"y\"\n", "test.tsv, line 2: there is no tab"),
            (b"\t\"x\"\n", "test.tsv, line 1: the key is empty"),
            (b"a\tx\n", "test.tsv, line 1: the value is not a JSON string"),
            (b"a\t\"x\" \"y\"\n", "test.tsv, line 1: the value is not a JSON string"),
            (b"a\t\"x\"\n\na\t\"y\"\n", "test.tsv, line 3: the key of line 1 comes again"),
            (b"a\t\"\xff\"\n", "test.tsv, line 1: the value is not a JSON string"),
            (b"\n\n", "test.tsv has no entries"),
        ];
        for (text, expected) in cases {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message:?} should start with {expected:?}");
        }
        let missing = DataSet::read(Path::new("/nonexistent/file.tsv")).unwrap_err().to_string();
        assert!(missing.starts_with("/nonexistent/file.tsv: cannot be read: "), "{missing}");
    }

    #[test]
    fn lengths_are_bounded() {
        let long_key = [vec![b'k'; KEY_BYTES_MAX + 1], b"\t\"v\"".to_vec()].concat();
        assert!(matches!(parse(&long_key), Err(DataError::TooLarge { line: 1, .. })));
        let long_line = vec![b'k'; LINE_BYTES_MAX + 10];
        assert!(matches!(parse(&long_line), Err(DataError::TooLarge { line: 1, .. })));
    }
}
