//! The fuzz targets of `tests/fuzz` on their corpus and on mutations of it: so that what fuzzing has
//! found stays mended without a fuzzer. `SEED=n cargo test --test it fuzz` runs one seed;
//! `FUZZ_SECONDS=n` goes on with further seeds for so long.

use std::path::Path;
use std::time::{Duration, Instant};

use super::nvmf::commands;
use super::power::Told;

#[path = "../fuzz/entries.rs"]
mod entries;
#[path = "../fuzz/pdus.rs"]
mod pdus;

/// Mutations of the corpus that each target gets.
const SEEDS: u64 = 300;
/// The longest input.
const LIMIT: usize = 8192;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Changes one thing.
fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut fastrand::Rng) {
    let at = rng.usize(0..=input.len());
    match rng.u8(0..6) {
        0 => input.insert(at, rng.u8(..)),
        1 => drop(input.splice(at..input.len().min(at + rng.usize(0..16)), [])),
        2 => {
            let other = &corpus[rng.usize(0..corpus.len())];
            let (from, length) = (rng.usize(0..=other.len()), rng.usize(0..64));
            let part = &other[from..other.len().min(from + length)];
            drop(input.splice(at..at, part.iter().copied()));
        }
        3 => {
            // A number that means something.
            let number = [0, 1, 5, 511, 512, 4096, u32::MAX, 1 << 31, 1 << 16][rng.usize(0..9)];
            let end = input.len().min(at + 4);
            input[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
        }
        _ => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << rng.u8(0..8);
            }
        }
    }
    input.truncate(LIMIT);
}

fn run(target: &str, entry: fn(&[u8])) {
    let corpus = corpus(target);
    assert!(!corpus.is_empty(), "{target} has no corpus");
    for input in &corpus {
        entry(input);
    }
    let one = std::env::var("SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let more = std::env::var("FUZZ_SECONDS").ok().map(|seconds| seconds.parse::<u64>().unwrap());
    let end = more.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let seeds = one.map_or(0..u64::MAX, |seed| seed..seed + 1);
    for seed in seeds {
        let ended = end.map_or(seed >= SEEDS, |end| Instant::now() > end);
        if one.is_none() && ended {
            break;
        }
        let told = Told(format!("{target}, SEED={seed}"));
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut input = corpus[rng.usize(0..corpus.len())].clone();
        for _ in 0..=rng.u8(0..8) {
            mutate(&mut input, &corpus, &mut rng);
        }
        entry(&input);
        drop(told);
    }
}

#[test]
fn super_blocks_are_survived() {
    run("super_block", entries::super_block);
}

#[test]
fn bitmaps_are_survived() {
    run("bitmap", entries::bitmap);
}

#[test]
fn pages_are_survived() {
    run("page", entries::page);
}

#[test]
fn images_are_checked_without_a_panic() {
    run("check", entries::check);
}

#[test]
fn images_are_opened_without_a_panic() {
    run("open", entries::open);
}

#[test]
fn pdus_are_read_the_same_in_any_pieces() {
    run("pdu", pdus::pdu);
}

#[test]
fn hosts_get_answers_and_leave_nothing_behind() {
    run("commands", commands::commands);
}
