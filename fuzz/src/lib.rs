//! The fuzzer's side of the readers that `crates/lowrank/tests/readers` runs over mutations. `make fuzz` gives each of them
//! to libFuzzer.

#[path = "../../crates/lowrank/tests/readers/targets.rs"]
#[allow(missing_docs)]
pub mod targets;
