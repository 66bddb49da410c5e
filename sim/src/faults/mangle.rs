//! A box in the network that knows the frames of links: it drops, repeats and reorders messages of control links.
//!
//! TCP keeps its bytes in order, so that a network's own repeats and reorderings never reach a node within one connection.
//! What a protocol must survive all the same (a message that comes twice over two connections, or after a later one) is
//! done here, message by message. Frames are numbered anew, since a link refuses gaps. Streams of records pass unchanged:
//! their protocol rests on the order that a connection gives.

use std::collections::{BTreeMap, BTreeSet};

use lockgate_net::link::{FRAME_BYTES_MAX, FrameDecoder, FrameEncoder, Hello, Message, Purpose, Step};
use lockgate_runtime::sim::{Flow, Middlebox, Piece};

/// How many later messages at most overtake one.
const OVERTAKERS_MAX: u64 = 12;

/// See the module.
pub struct Mangler {
    ports: BTreeSet<u16>,
    drop_one_in: u64,
    repeat_one_in: u64,
    delay_one_in: u64,
    lanes: BTreeMap<Flow, Lane>,
}

/// One direction of one connection.
enum Lane {
    /// Passes unchanged: no control link, or one that was open before this box was there.
    Through,
    /// The messages of a control link, or what may become one.
    Messages(Box<Messages>),
}

#[derive(Default)]
struct Messages {
    received: Vec<u8>,
    decoder: FrameDecoder,
    encoder: FrameEncoder,
    passed: u64,
    /// Messages that come again, or late: after so many have passed.
    held: Vec<(u64, Message)>,
}

impl Mangler {
    /// A box that mangles the links that were opened to these ports. Each is one in so many; 0 is never.
    pub fn new(ports: BTreeSet<u16>, drop_one_in: u64, repeat_one_in: u64, delay_one_in: u64) -> Self {
        Self { ports, drop_one_in, repeat_one_in, delay_one_in, lanes: BTreeMap::new() }
    }

    /// Mangles one message: what is to be sent now.
    fn mangle(&self, lane: &mut Messages, message: Message, draw: &mut dyn FnMut() -> u64) -> Vec<Message> {
        let mut one_in = |n: u64| n != 0 && draw().is_multiple_of(n);
        let (dropped, repeated, late) =
            (one_in(self.drop_one_in), one_in(self.repeat_one_in), one_in(self.delay_one_in));
        let after = lane.passed + 1 + draw() % OVERTAKERS_MAX;
        lane.passed += 1;
        let mut now = Vec::new();
        if repeated || (late && !dropped) {
            lane.held.push((after, message.clone()));
        }
        if !late && !dropped {
            now.push(message);
        }
        let passed = lane.passed;
        let (due, held) = std::mem::take(&mut lane.held).into_iter().partition(|(after, _)| *after <= passed);
        lane.held = held;
        now.extend(Vec::into_iter(due).map(|(_, message)| message));
        now
    }
}

impl Middlebox for Mangler {
    fn pass(&mut self, flow: &Flow, bytes: Vec<u8>, draw: &mut dyn FnMut() -> u64) -> Vec<Piece> {
        if !flow.is_from_connector || !self.ports.contains(&flow.port) {
            return vec![Piece { delay_ns: 0, bytes }];
        }
        let lane = self.lanes.remove(flow).unwrap_or_else(|| Lane::Messages(Box::default()));
        let (lane, bytes) = match lane {
            Lane::Through => (Lane::Through, bytes),
            Lane::Messages(mut messages) => {
                messages.received.extend_from_slice(&bytes);
                let mut out = Vec::new();
                match self.take(&mut messages, &mut out, draw) {
                    true => (Lane::Messages(messages), out),
                    false => {
                        out.append(&mut messages.received);
                        (Lane::Through, out)
                    }
                }
            }
        };
        self.lanes.insert(flow.clone(), lane);
        if bytes.is_empty() { Vec::new() } else { vec![Piece { delay_ns: 0, bytes }] }
    }

    fn closed(&mut self, flow: &Flow) {
        self.lanes.remove(flow);
    }
}

impl Mangler {
    /// Takes the whole messages among what was received; `false` if this is not a control link from its beginning on.
    fn take(&self, lane: &mut Messages, out: &mut Vec<u8>, draw: &mut dyn FnMut() -> u64) -> bool {
        loop {
            let Ok(step) = lane.decoder.decode(&lane.received) else {
                assert!(lane.passed == 0, "a link that began well goes on well");
                return false;
            };
            let (bytes, message) = match step {
                Step::Need(_) => return true,
                Step::Part(bytes) => (bytes, None),
                Step::Message(bytes, message) => (bytes, Some(message)),
            };
            // The first message says what link this is, and is never touched.
            if lane.passed == 0 {
                let purpose = message.as_ref().and_then(Hello::of_message).map(|hello| hello.purpose);
                if purpose != Some(Purpose::Control) {
                    return false;
                }
            }
            lane.received.drain(..bytes);
            let Some(message) = message else { continue };
            let sent = match lane.passed {
                0 => {
                    lane.passed = 1;
                    vec![message]
                }
                _ => self.mangle(lane, message, draw),
            };
            for message in sent {
                encode(&mut lane.encoder, &message, out);
            }
        }
    }
}

fn encode(encoder: &mut FrameEncoder, message: &Message, out: &mut Vec<u8>) {
    let mut rest = &message.payload[..];
    loop {
        let (frame, after) = rest.split_at(rest.len().min(FRAME_BYTES_MAX));
        out.extend_from_slice(&encoder.header(message.kind, !after.is_empty(), std::iter::once(frame)));
        out.extend_from_slice(frame);
        if after.is_empty() {
            return;
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn flow() -> Flow {
        let (from, to) = (Arc::from("a"), Arc::from("b"));
        Flow { connection: 1, is_from_connector: true, from, to, port: 7000 }
    }

    fn hello(purpose: Purpose) -> Vec<u8> {
        let hello = Hello {
            cluster: [1; 16],
            node: 1,
            directory: [2; 16],
            boot: 1,
            purpose,
            format: lockgate_net::link::FORMAT,
        };
        let message = hello.to_message();
        FrameEncoder::new().whole(message.kind, &message.payload)
    }

    fn send(mangler: &mut Mangler, bytes: Vec<u8>, next: &mut u64) -> Vec<u8> {
        let mut draw = || {
            *next += 1;
            *next
        };
        mangler.pass(&flow(), bytes, &mut draw).into_iter().flat_map(|piece| piece.bytes).collect()
    }

    #[test]
    fn messages_are_dropped_repeated_and_reordered_and_still_frames_of_a_link() {
        let mut mangler = Mangler::new(BTreeSet::from([7000]), 7, 3, 5);
        let (mut next, mut encoder) = (0, FrameEncoder::new());
        let mut stream = hello(Purpose::Control);
        encoder.whole(1, &[]);
        for number in 0..200u8 {
            stream.extend(encoder.whole(20, &[number; 3]));
        }
        // In uneven pieces, as a network has them.
        let out: Vec<u8> =
            stream.chunks(29).flat_map(|chunk| send(&mut mangler, chunk.to_vec(), &mut next)).collect();
        let (mut decoder, mut at, mut numbers) = (FrameDecoder::new(), 0, Vec::new());
        while let Step::Message(bytes, message) = decoder.decode(&out[at..]).expect("frames of a link") {
            at += bytes;
            numbers.push(message.payload[0]);
        }
        let numbers = &numbers[1..];
        let unique: BTreeSet<u8> = numbers.iter().copied().collect();
        assert!(unique.len() < 200 && unique.len() > 100, "{} of 200 arrived", unique.len());
        assert!(numbers.len() > unique.len(), "some came twice");
        assert!(numbers.windows(2).any(|pair| pair[0] > pair[1]), "some were overtaken");
    }

    #[test]
    fn other_links_pass_unchanged() {
        let mut mangler = Mangler::new(BTreeSet::from([7000]), 1, 1, 1);
        for stream in [hello(Purpose::Bulk), b"no frames at all, and long enough".to_vec()] {
            let mut bytes = stream;
            bytes.extend_from_slice(b"whatever follows");
            assert_eq!(send(&mut mangler, bytes.clone(), &mut 0), bytes);
            mangler.closed(&flow());
        }
    }
}
