//! One file of a log, with frames of the input's choice and damage of the input's choice: recovery gives out the frames as
//! they were written, none that were not, and all of them where nothing is damaged. It never panics.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lockgate_engine::log::format::{BATCH_HEADER_BYTES, BatchHeader, FileHeader, Frames, name_hash};
use lockgate_engine::log::{FrameHeader, FrameKind, RecoverError, RecoveredEnd, recover};
use lockgate_runtime::fs;
use lockgate_runtime::sim::Sim;

const DIR: &str = "/log";
const NAME: &str = "core-0";
const BOOT: u64 = 1;
const SALT: u64 = 0x5a17;
const BATCHES_MAX: usize = 8;

type Frame = (FrameHeader, Vec<u8>);

/// What is left of the input; what is missing is zero.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn frame(&mut self) -> Frame {
        let header = FrameHeader {
            kind: FrameKind(self.byte()),
            slot: self.byte().into(),
            generation: self.byte().into(),
            term: self.byte().into(),
            base: self.byte().into(),
        };
        let payload = (0..self.byte()).map(|_| self.byte()).collect();
        (header, payload)
    }

    /// A file with some batches of frames, and the frames.
    fn file(&mut self) -> (Vec<u8>, Vec<Frame>) {
        let header =
            FileHeader { name_hash: name_hash(NAME), boot: BOOT, seq: 0, chain_start: 0, salt: SALT };
        let (mut file, mut frames, mut position) = (header.encode(), Vec::new(), 0);
        for _ in 0..usize::from(self.byte()) % BATCHES_MAX {
            let of_batch: Vec<Frame> = (0..1 + self.byte() % 4).map(|_| self.frame()).collect();
            let mut bytes = vec![0; BATCH_HEADER_BYTES];
            for (header, payload) in &of_batch {
                bytes.extend(header.encode(payload.len()));
                bytes.extend(payload);
            }
            let payload_bytes = (bytes.len() - BATCH_HEADER_BYTES) as u32;
            let synced = position * u64::from(self.byte() % 2);
            let header = BatchHeader {
                salt: SALT,
                boot: BOOT,
                position,
                synced,
                payload_bytes,
                frames: of_batch.len() as u32,
            };
            header.seal(&mut bytes);
            file.extend(bytes);
            frames.extend(of_batch);
            position += u64::from(payload_bytes);
        }
        let unused_sectors = usize::from(self.byte() % 4);
        file.resize(file.len() + unused_sectors * 512, 0);
        (file, frames)
    }

    /// Changes some bytes, and may cut the end off. True: something is different.
    fn damage(&mut self, file: &mut Vec<u8>) -> bool {
        let whole = file.clone();
        for _ in 0..self.byte() % 4 {
            let at = usize::from(self.byte()) << 8 | usize::from(self.byte());
            let (length, at) = (file.len(), at % file.len());
            if self.byte() == u8::MAX {
                file.truncate((at + 1).min(length));
            } else {
                file[at] ^= self.byte();
            }
        }
        *file != whole
    }
}

async fn recovered(ends: &[(u64, u64)]) -> (Result<RecoveredEnd, RecoverError>, Vec<Frame>) {
    let mut seen = Vec::new();
    let end = recover(DIR.as_ref(), NAME, None, ends, |header, payload| {
        seen.push((*header, payload.to_vec()));
        Ok(())
    });
    (end.await, seen)
}

fuzz_target!(|input: &[u8]| {
    // As headers and frames of their own, too.
    let _ = FileHeader::decode(input);
    let _ = BatchHeader::decode(input).and_then(|header| header.end());
    let _ = BatchHeader::verify(input);
    assert!(Frames::new(input).count() <= input.len());

    let mut bytes = Bytes(input);
    let (mut file, frames) = bytes.file();
    let is_damaged = bytes.damage(&mut file);
    let sim = Sim::new(1);
    sim.node("a", 1).block_on(0, move || async move {
        fs::create_dir_all(DIR.as_ref()).await.unwrap();
        let path = format!("{DIR}/{NAME}.{BOOT:016x}.{:08x}.log", 0);
        fs::write_atomic(path.as_ref(), file).await.unwrap();
        let (end, seen) = recovered(&[]).await;
        assert!(frames.starts_with(&seen), "what was not written was found");
        match end {
            Ok(end) => {
                assert!(is_damaged || seen == frames, "what is whole is found");
                let (again, seen_again) = recovered(&end.ends).await;
                assert_eq!(
                    (again.unwrap().position, seen_again),
                    (end.position, seen),
                    "an end that is known"
                );
            }
            Err(error) => assert!(is_damaged, "{error}"),
        }
    });
});
