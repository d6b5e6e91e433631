//! Every reader over seeds and deterministic mutations of them: no panic, no second without an answer, no hundred
//! megabytes for a small file. `LOWRANK_READERS=N` tries N mutations a reader (default: 2000, or 3 seconds).

#[path = "../../../lowrank-models/tests/common/counting.rs"]
mod counting;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use counting::{Counting, measured};
use targets::{TARGETS, Target};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes that a small file may take.
const MEMORY: usize = 100 << 20;
/// Most time. (Debuggers and crowded machines take longer than this in all, not in processor time; hence the margin.)
const TIME: Duration = Duration::from_secs(5);

/// Xorshift: the same mutations on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

const NUMBERS: [&str; 16] = [
    "0",
    "-1",
    "1",
    "2",
    "255",
    "65536",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "1e308",
    "1e-320",
    "0.5",
    "null",
    "1000000000",
    "-9223372036854775808",
];
const PIECES: [&str; 16] =
    ["{", "}", "[", "]", "\"", ":", ",", "\\", "\n", "\0", "\u{1F600}", "(", "*", "{{", "%}", "null"];

/// A mutation of `seed`: one to four of a flipped bit, a cut, a splice, another number, a piece of syntax, a doubled part.
fn mutate(seed: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(8) {
            0 | 1 if !bytes.is_empty() => {
                let at = at.min(bytes.len() - 1);
                bytes[at] ^= 1 << random.below(8);
            }
            2 => bytes.truncate(at),
            3 => {
                let from = random.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            4 => {
                // A number in text.
                let digit = |byte: &u8| byte.is_ascii_digit();
                if let Some(from) = bytes[at..].iter().position(digit).map(|i| at + i) {
                    let end = bytes[from..].iter().position(|b| !digit(b)).map_or(bytes.len(), |i| from + i);
                    bytes.splice(from..end, NUMBERS[random.below(NUMBERS.len())].bytes());
                }
            }
            5 => {
                // One in binary.
                let value =
                    [0u64, 1, u64::MAX, 1 << 31, 1 << 32, 1 << 63, 1 << 40][random.below(7)].to_le_bytes();
                let width = [4, 8][random.below(2)];
                if at + width <= bytes.len() {
                    bytes[at..at + width].copy_from_slice(&value[..width]);
                }
            }
            6 => drop(bytes.splice(at..at, PIECES[random.below(PIECES.len())].bytes())),
            _ => {
                let end = (at + 1 + random.below(64)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

/// Runs the reader over one input; what it did wrong.
fn fault(target: &Target, bytes: &[u8]) -> Option<String> {
    let started = Instant::now();
    let (result, _, peak) = measured(|| catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))));
    let took = started.elapsed();
    let what = match result {
        Err(_) => "panicked".to_owned(),
        Ok(()) if peak > MEMORY => format!("took {} MB", peak >> 20),
        Ok(()) if took > TIME => format!("took {took:?}"),
        Ok(()) => return None,
    };
    let file = std::env::temp_dir().join(format!("lowrank-{}-fault", target.name));
    std::fs::write(&file, bytes).expect("room");
    Some(format!("{} {what}; the input is in {}", target.name, file.display()))
}

fn check(target: &Target) -> (usize, Vec<String>) {
    let asked = std::env::var("LOWRANK_READERS").ok().and_then(|n| n.parse().ok());
    let (most, time) = (asked.unwrap_or(2000), asked.map_or(Duration::from_secs(3), |_| Duration::MAX));
    let (seeds, mut faults) = ((target.seeds)(), Vec::new());
    faults.extend(seeds.iter().filter_map(|seed| fault(target, seed)));
    let (mut random, started, mut count) = (Random(0x9E37_79B9_7F4A_7C15), Instant::now(), seeds.len());
    while count < most && started.elapsed() < time && faults.len() < 3 {
        let seed = &seeds[random.below(seeds.len())];
        let other = &seeds[random.below(seeds.len())];
        faults.extend(fault(target, &mutate(seed, other, &mut random)));
        count += 1;
    }
    (count, faults)
}

#[test]
fn no_input_breaks_a_reader() {
    let only = std::env::var("LOWRANK_READER").ok();
    let mut faults = Vec::new();
    for target in TARGETS.iter().filter(|target| only.as_ref().is_none_or(|name| name == target.name)) {
        let (count, found) = check(target);
        println!("{}: {count} inputs, {} faults", target.name, found.len());
        faults.extend(found);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A target whose seeds are all refused at the first byte tests nothing.
#[test]
fn seeds_are_there() {
    for target in TARGETS {
        assert!((target.seeds)().iter().any(|seed| seed.len() > 8), "{}", target.name);
    }
}
