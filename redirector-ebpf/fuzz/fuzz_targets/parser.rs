#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| suite::fuzz::parser(data));
