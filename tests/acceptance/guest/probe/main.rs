//! Tries the VFIO transport on a real kernel, step by step, and says what it saw.
//!
//!     vfio_probe ADDRESS SERIAL [group | iommufd]    every step, then exit 0
//!     vfio_probe ADDRESS release                     waits until the kernel wants the device back
//!
//! It drives the controller by its registers alone, so that what it shows is the transport's work.
//! It writes to no namespace.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

mod admin;

use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use lvolfs::hw::dma::DmaArena;
use lvolfs::hw::pci::PciAddress;
use lvolfs::hw::transport::Transport;
use lvolfs::hw::vfio::{VfioAccess, VfioOptions, VfioTransport};
use lvolfs::spec::register::{CC, CSTS, ControllerStatus, GONE32, GONE64};
use lvolfs::units::{ByteCount, Iova};

use self::admin::AdminQueue;

/// A device address below the arena's.
const UNMAPPED: Iova = Iova(0x7654_3000);
const COMMAND: u16 = 4;
const MEMORY_DECODING: u8 = 1 << 1;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FAILED {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let [address, what, rest @ ..] = arguments else {
        bail!("use: vfio_probe ADDRESS (SERIAL [group | iommufd] | release)");
    };
    let address = address.parse()?;
    let access = match rest.first().map(String::as_str) {
        None => VfioAccess::Any,
        Some("group") => VfioAccess::Group,
        Some("iommufd") => VfioAccess::Iommufd,
        Some(other) => bail!("no way called {other}"),
    };
    let transport = VfioTransport::open(address, VfioOptions { vectors: 2, access })?;
    println!("opened {} through {:?}", transport.name(), transport.access());
    if what == "release" {
        return wait_for_release(&transport);
    }
    try_everything(&transport, address, what)
}

fn try_everything(transport: &VfioTransport, address: PciAddress, serial: &str) -> Result<()> {
    let identity = transport.identity().context("it does not say who made it")?;
    let mut vendor = [0; 2];
    transport.read_configuration(0, &mut vendor)?;
    ensure!(u16::from_le_bytes(vendor) == identity.vendor, "sysfs and the device disagree");
    println!("identity {:04x}:{:04x}", identity.vendor, identity.device);
    println!("the IOMMU translates {}", transport.ranges()?);
    ensure!(transport.vectors() == 2, "{} vectors, not 2", transport.vectors());

    let options = VfioOptions { vectors: 1, access: transport.access() };
    let Err(busy) = VfioTransport::open(address, options) else {
        bail!("the device was opened twice");
    };
    println!("a second opening: {busy}");

    let arena = DmaArena::new(ByteCount(8 << 20), true)?;
    transport.map(&arena)?;
    transport.map(&arena)?;
    let other = DmaArena::new(ByteCount(8 << 20), false)?;
    println!("a second arena: {}", transport.map(&other).err().context("it was mapped")?);

    let interrupt = transport.interrupt(0)?;
    let mut queue = AdminQueue::enable(transport, &arena)?;
    queue.identify(&arena, serial, std::hint::spin_loop)?;
    println!("IDENTIFY by polling: serial {serial}");
    ensure!(interrupt.consume(), "no interrupt came with the completion");
    queue.identify(&arena, serial, || interrupt.wait(Some(5000)))?;
    ensure!(interrupt.consume(), "no interrupt came with the second completion");
    println!("IDENTIFY by interrupt: serial {serial}");
    ensure!(transport.interrupt(2).is_err(), "there is a vector past the last");
    ensure!(!transport.interrupt(1)?.consume(), "an interrupt on a vector that nobody uses");

    let status = queue.identify_to(UNMAPPED)?;
    println!("IDENTIFY to {:#x}, which is not mapped: status {status:#x}", UNMAPPED.get());

    transport.reset()?;
    let status = ControllerStatus(transport.read32(CSTS));
    ensure!(!status.ready(), "ready after a reset of the function: {:#x}", status.0);
    let mut queue = AdminQueue::enable(transport, &arena)?;
    queue.identify(&arena, serial, || interrupt.wait(Some(5000)))?;
    println!("reset, enabled again, IDENTIFY by interrupt again");
    drop(queue);
    survive_without_registers(transport)
}

/// Switches memory decoding off, as the loss of a device does: the kernel takes the mapping away.
fn survive_without_registers(transport: &VfioTransport) -> Result<()> {
    let bell = transport.doorbell(0x1000)?;
    let mut command = [0; 1];
    transport.read_configuration(COMMAND, &mut command)?;
    transport.write_configuration(COMMAND, &[command[0] & !MEMORY_DECODING])?;
    ensure!(!transport.is_gone(), "gone before anybody looked");
    bell.ring(1);
    ensure!(transport.read32(CSTS) == GONE32, "the registers still answer");
    ensure!(transport.read64(0) == GONE64, "the registers still answer");
    transport.write32(CC, 0);
    ensure!(transport.read32(CC) == GONE32, "a dead register was written");
    ensure!(transport.is_gone(), "the loss was not noticed");
    println!("registers taken away: reads give all ones, a doorbell is lost, nobody died");
    Ok(())
}

/// For unplugging and unbinding: leaves as the kernel asks.
fn wait_for_release(transport: &VfioTransport) -> Result<()> {
    println!("waiting");
    transport.release_wanted().wait(Some(60_000));
    ensure!(transport.release_wanted().consume(), "nobody wanted the device back");
    println!("the kernel wants the device back");
    Ok(())
}
