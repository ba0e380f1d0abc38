//! Hosts that come over real sockets, on loopback.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;

use lvolfs::nvmf::model::Listener;
use lvolfs::nvmf::pdu::Digests;
use lvolfs::nvmf::stream::Socket;
use lvolfs::reactor::Reactor;
use lvolfs::spec::command::SubmissionEntry;
use lvolfs::units::BlockSize;

use super::host::Host;
use super::io::{pattern, read, write};
use super::rig::{BLOCK, ONE, Rig, SUBSYSTEM, real_reactor};
use crate::fuse_operations::memory_device;

async fn connect(reactor: &Rc<Reactor>, address: SocketAddr, digests: Digests) -> Host<Socket> {
    let stream = TcpStream::connect(address).unwrap();
    let socket = Socket::new(reactor.ring(), stream).unwrap();
    Host::initialize(socket, digests, 0).await
}

#[test]
fn hosts_come_over_ipv4_and_ipv6() {
    let reactor = real_reactor();
    reactor.block_on(async {
        let device = memory_device(64 << 20, BlockSize::B4096);
        let rig = Rig::new(&reactor, device).await;
        for (bits, text) in (0..).zip(["127.0.0.1:0", "[::1]:0", "127.0.0.1:0", "[::1]:0"]) {
            let address = match rig.target.listen(text.parse().unwrap()) {
                Ok(address) => address,
                // A machine without IPv6.
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => continue,
                Err(error) => panic!("{text}: {error}"),
            };
            let (state, groups) = Default::default();
            rig.model.add_listener(SUBSYSTEM, Listener { address, state, groups }).unwrap();
            let digests = Digests::from_bits(bits);
            let mut admin = connect(&reactor, address, digests).await;
            let id = admin.connect_admin(&rig.identity(), 0).await;
            let mut io = connect(&reactor, address, digests).await;
            io.connect_io(&rig.identity(), id, 1, 128, bits & 1 == 0).await.ok();
            // In the capsule, on request, and as long as a command may be.
            for blocks in [1, 7, 256] {
                let data = pattern(blocks as u64, blocks);
                io.run(write(9, blocks), &data, 0).await.ok();
                let found = io.run(read(9, blocks), &[], (blocks * BLOCK) as u32).await.ok();
                assert!(found.data == data, "{address}: {blocks} blocks");
            }
            assert!(rig.target.stop_listening(address));
            // Those that are there stay.
            io.plain(SubmissionEntry::flush(ONE)).await.ok();
        }
        rig.service.drain().await;
        assert!(rig.target.controllers().is_empty());
    });
}
