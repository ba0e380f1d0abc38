//! A random workload, a power cut at each of its device commands, and the questions of `run.rs`.
//!
//! A failure prints its seed and its command; `SEED=n cargo test --test it power_cut` runs one seed.

use std::rc::Rc;

use lvolfs::block::Discard;
use lvolfs::lvol::Error;
use lvolfs::sim::{SimDisk, SimOptions};
use lvolfs::units::{BlockSize, ByteCount};

use super::bench::{Bench, assert_valid};
use super::run::{Run, RunOptions, examine};

/// Small clusters, so that little data makes many mappings.
const CLUSTER: u64 = 16 << 10;
const DISK: u64 = 2 << 20;

fn options(seed: u64) -> RunOptions {
    let mut rng = fastrand::Rng::with_seed(seed);
    let delays = rng.bool().then(|| rng.u64(..));
    let discard = if rng.bool() { Discard::Zeroes } else { Discard::Unspecified };
    let (atomic_unit, block_size) = match rng.u8(0..4) {
        0 => (512, BlockSize::B512),
        1 => (1024, BlockSize::B512),
        _ => (4096, BlockSize::B4096),
    };
    let disk =
        SimOptions { delays, discard, atomic_unit, block_size, ..SimOptions::new(ByteCount(DISK)) };
    // Half of the seeds have zeroed clusters ready.
    let zeroed_ready = rng.bool();
    RunOptions { seed, disk, cluster: CLUSTER, metadata_ratio_percent: 100, zeroed_ready }
}

async fn step(run: &Run) {
    match run.random(26) {
        0 | 1 => {
            let thin = run.random(3) > 0;
            run.create(thin, run.random(10)).await;
        }
        2 => {
            if let Some(any) = run.any() {
                run.delete(any).await;
            }
        }
        3 => {
            if let Some(any) = run.any_writable() {
                run.rename(any).await;
            }
        }
        4 | 5 => {
            if let Some(any) = run.any_writable() {
                run.resize(any, run.random(14)).await;
            }
        }
        6 if run.random(2) == 0 => {
            run.close().await;
            run.open().await;
        }
        7..=9 => {
            if let Some(any) = run.any() {
                run.fsync(any).await;
            }
        }
        10 | 11 => {
            if let Some(any) = run.any_writable() {
                run.snapshot(any).await;
            }
        }
        12 => {
            if let Some(any) = run.any_read_only() {
                run.clone(any).await;
            }
        }
        inflate @ 13..=14 => {
            if let Some(any) = run.any_writable() {
                run.leave_parent(any, inflate == 13).await;
            }
        }
        _ => run.batch().await,
    }
}

fn run(seed: u64, steps: usize, cuts_each: u64) {
    let bench = Rc::new(Bench::new());
    let print = format!("seed {seed}");
    let run = bench.run(async {
        let run = Run::new(Rc::clone(&bench), options(seed)).await;
        for _ in 0..steps {
            step(&run).await;
        }
        run
    });
    let model = run.model.borrow();
    let formatted = run.disk.recorded();
    let mut examined = 0;
    for (command, moment) in formatted {
        // Before the super block is there, there is no pool to ask.
        let mut first = [0; 8];
        moment.cut_keep(0).read_at(0, &mut first);
        if &first != b"SPDKBLOB" {
            continue;
        }
        let undecided = moment.undecided();
        let small = undecided <= 2;
        let masks = if small { 1 << undecided } else { cuts_each };
        for choice in 0..masks {
            let disk = match (small, choice) {
                (true, _) | (_, 0) => moment.cut_keep(choice),
                _ => moment.cut(seed ^ command << 20 ^ choice),
            };
            let told = Told(format!("{print}, command {command}, cut {choice}"));
            let answer = bench.run(examine(&bench, &model, command, &disk));
            assert_eq!(answer, Ok(()), "{print}, command {command}, cut {choice}");
            drop(told);
            examined += 1;
        }
    }
    assert!(examined > 0);
}

/// Says where it happened, if it does.
struct Told(String);

impl Drop for Told {
    #[expect(clippy::print_stderr, reason = "a failing test says where it failed")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed at {}", self.0);
        }
    }
}

#[test]
fn a_power_cut_at_any_command_loses_nothing_that_was_flushed() {
    if let Ok(seed) = std::env::var("SEED") {
        return run(seed.parse().unwrap(), 40, 8);
    }
    for seed in 0..12 {
        run(seed, 40, 2);
    }
}

/// Making a pool is all or nothing.
#[test]
fn a_power_cut_while_formatting_leaves_nothing_or_a_pool() {
    let bench = Bench::new();
    for atomic_unit in [512, 4096] {
        format_and_cut(&bench, atomic_unit);
    }
}

fn format_and_cut(bench: &Bench, atomic_unit: usize) {
    let disk = SimDisk::new(SimOptions { atomic_unit, ..SimOptions::new(ByteCount(4 << 20)) });
    disk.record();
    bench.run(bench.format(&disk.channel(&bench.reactor)));
    let mut pools = 0;
    for (command, moment) in disk.recorded() {
        for seed in 0..20 {
            let cut = moment.cut(seed);
            let opened = bench.run(bench.open(cut.channel(&bench.reactor)));
            match opened {
                Ok(pool) => {
                    assert_valid(&cut);
                    assert_eq!(pool.store.info().name, "pool");
                    pools += 1;
                }
                Err(Error::SuperBlock(_)) => {
                    bench.run(bench.format(&cut.channel(&bench.reactor)));
                }
                Err(error) => panic!("command {command}, seed {seed}: {error}"),
            }
        }
    }
    assert!(pools > 0);
}
