#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../commands.rs"]
mod commands;
#[path = "../../it/nvmf/exported.rs"]
#[allow(dead_code, reason = "the integration tests use all of it")]
mod exported;
#[path = "../../it/nvmf/host.rs"]
mod host;
#[path = "../../it/nvmf/pipe.rs"]
mod pipe;

fuzz_target!(|input: &[u8]| commands::commands(input));
