//! Pools as the mount shows them: they come, get other names, and go.

use lvolfs::fuse::abi;
use lvolfs::fuse::errno::Errno;
use lvolfs::fuse::request::{NodeId, Operation};
use lvolfs::lvol;
use lvolfs::reservation::{Command, ExistingKey, Key, Register};
use lvolfs::units::BlockSize;
use lvolfs::volume::Error;
use lvolfs::volume::events::EventKind;

use super::fuse_operations::{Served, memory_device, named, out, reactor};

async fn in_root(served: &Served, name: &str) -> Result<NodeId, Errno> {
    let lookup = Operation::Lookup { name: named(name) };
    Ok(NodeId(out::<abi::EntryOut>(&served.ask(NodeId::ROOT, lookup).await?).nodeid))
}

fn last_event(served: &Served) -> (EventKind, String) {
    let events = served.directory.events();
    let event = events.from(events.next() - 1, 1).pop().unwrap();
    (event.kind, event.pool)
}

#[test]
fn a_renamed_pool_has_another_directory_and_the_same_files() {
    let reactor = reactor();
    reactor.block_on(async {
        let served = Served::format(&reactor, memory_device(64 << 20, BlockSize::B4096)).await;
        let node = served.volume("v", 1 << 20).await;
        served.write(node, 0, b"before").await.unwrap();
        assert_eq!(in_root(&served, "p").await, Ok(served.pool_node()));
        served.owner.rename_pool(&served.pool, "q").await.unwrap();
        assert_eq!(last_event(&served), (EventKind::PoolRenamed, "q".to_owned()));
        assert_eq!(in_root(&served, "p").await, Err(Errno::ENOENT));
        assert_eq!(in_root(&served, "q").await, Ok(served.pool_node()), "the number stays");
        assert_eq!(served.list(NodeId::ROOT, 4096, true).await, [".", "..", "q"]);
        assert_eq!(served.read(node, 0, 6).await.unwrap(), b"before");
        for (name, errno) in [("", Errno::EINVAL), ("a/b", Errno::EINVAL), (".", Errno::EINVAL)] {
            let refused = served.owner.rename_pool(&served.pool, name).await.unwrap_err();
            assert_eq!(Errno::from(refused), errno, "{name:?}");
        }
        let long = "n".repeat(64);
        let refused = served.owner.rename_pool(&served.pool, &long).await.unwrap_err();
        assert_eq!(Errno::from(refused), Errno::ENAMETOOLONG);
        served.owner.rename_pool(&served.pool, "q").await.unwrap();
        // What is said of the pool later says its new name.
        served.volume("w", 0).await;
        assert_eq!(served.directory.events().from(0, 99).last().unwrap().pool, "q");
        let served = served.reopen().await;
        assert_eq!(&*served.pool.name(), "q");
        assert_eq!(served.lookup("v").await, Ok(node));
        served.close().await;
    });
}

#[test]
fn a_pool_goes_only_when_nobody_uses_it() {
    let reactor = reactor();
    reactor.block_on(async {
        let served = Served::format(&reactor, memory_device(64 << 20, BlockSize::B4096)).await;
        let (a, b) = (served.volume("a", 1 << 20).await, served.volume("b", 1 << 20).await);
        served.write(a, 0, b"a").await.unwrap();
        let entry = served.directory.find_volume(served.pool.key(), "b").unwrap();
        let in_use = |error: Error, who: &str| {
            let said = error.to_string();
            assert!(matches!(error, Error::PoolInUse { volume, .. } if volume == "b"), "{said}");
            assert!(said.contains(who), "{said}");
        };
        // Open, deleted while open, exported, reserved.
        let handle = served.open_file(b, 1, libc::O_RDWR).await.unwrap();
        in_use(served.owner.destroy(&served.pool).await.unwrap_err(), "open");
        served.ask(b, Operation::Release { handle }).await.unwrap();
        let hold = entry.hold("nqn.of.somebody").unwrap();
        in_use(served.owner.destroy(&served.pool).await.unwrap_err(), "nqn.of.somebody");
        drop(hold);
        let local = served.directory.hosts().local();
        let register = |action| {
            let existing = ExistingKey::Ignored;
            let command = Command::Register { action, existing, persistence: None };
            std::rc::Rc::clone(&served.owner).reserve(std::sync::Arc::clone(&entry), local, command)
        };
        register(Register::Register(Key(7))).await.unwrap();
        in_use(served.owner.destroy(&served.pool).await.unwrap_err(), "reservations");
        register(Register::Unregister).await.unwrap();
        // None of that has changed anything.
        served.write(a, 0, b"A").await.unwrap();
        assert_eq!(served.read(a, 0, 1).await.unwrap(), b"A");

        served.owner.destroy(&served.pool).await.unwrap();
        assert_eq!(last_event(&served), (EventKind::PoolDeleted, "p".to_owned()));
        assert_eq!(in_root(&served, "p").await, Err(Errno::ENOENT));
        assert_eq!(served.list(NodeId::ROOT, 4096, false).await, [".", ".."]);
        assert_eq!(served.read(a, 0, 1).await, Err(Errno::ESTALE));
        let flush = Operation::FSync { data_only: false };
        assert_eq!(served.ask(a, flush).await, Err(Errno::ESTALE));
        let gone = served.owner.destroy(&served.pool).await.unwrap_err();
        assert_eq!(gone, Error::Store(lvol::Error::Closed));
    });
}
