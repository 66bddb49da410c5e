//! Lives of an engine against a plain map. The interpreter is that of the engine's own tests.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../engine/tests/all/common/mod.rs"]
#[allow(dead_code)]
mod common;
#[path = "../../engine/tests/all/life/mod.rs"]
mod life;

fuzz_target!(|bytes: &[u8]| {
    if std::env::var_os("FUZZ_PRINT").is_some() {
        life::steps::decode(bytes).iter().for_each(|step| eprintln!("{step:?}"));
    }
    life::live(1, bytes);
});
