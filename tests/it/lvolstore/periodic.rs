//! Commits that nobody asked for, in virtual time.

use std::time::Duration;

use lvolfs::lvol::Error;

use super::bench::{Bench, assert_valid, disk};

const INTERVAL: Duration = Duration::from_secs(5);

#[test]
fn a_changed_mapping_is_durable_after_the_interval() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let volume = pool.thin("v", 4).await;
        pool.store.commit_every(INTERVAL);
        let commits = || pool.store.counters().commits;
        let before = commits();
        pool.write(&volume, 0, 1, 7).await.unwrap();
        bench.reactor.sleep(Duration::from_secs(4)).await;
        assert_eq!(commits(), before, "too early");
        bench.reactor.sleep(Duration::from_secs(2)).await;
        assert_eq!(commits(), before + 1);
        let kept = disk.cut_keep(0);
        let reopened = bench.open(kept.channel(&bench.reactor)).await.unwrap();
        assert_eq!(reopened.blocks(&reopened.volume("v").await).await[0], 7, "nobody called fsync");
        assert_valid(&kept);
    });
}

#[test]
fn a_clean_pool_is_left_alone_and_a_closed_one_forgotten() {
    let bench = Bench::new();
    let disk = disk();
    bench.run(async {
        let pool = bench.pool(disk.channel(&bench.reactor)).await;
        let volume = pool.thin("v", 4).await;
        pool.store.commit_every(INTERVAL);
        pool.write(&volume, 0, 1, 7).await.unwrap();
        volume.flush().await.unwrap();
        let commands = disk.commands();
        bench.reactor.sleep(Duration::from_secs(3600)).await;
        assert_eq!(disk.commands(), commands, "an hour of nothing");
        pool.write(&volume, 30, 1, 8).await.unwrap();
        pool.store.close().await.unwrap();
        let commands = disk.commands();
        bench.reactor.sleep(Duration::from_secs(3600)).await;
        assert_eq!(disk.commands(), commands);
        assert_eq!(volume.flush().await, Err(Error::Closed));
    });
}
