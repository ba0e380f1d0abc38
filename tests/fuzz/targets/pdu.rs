#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../pdus.rs"]
mod pdus;

fuzz_target!(|input: &[u8]| pdus::pdu(input));
