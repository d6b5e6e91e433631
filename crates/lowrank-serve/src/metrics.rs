//! Counters, in Prometheus' text format.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that goes up, or up and down.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds to it.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets it.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! metrics {
    ($($name:ident: $kind:literal, $help:literal;)*) => {
        /// All of them.
        #[derive(Default)]
        pub struct Metrics {
            $(#[doc = $help] pub $name: Count,)*
        }

        impl Metrics {
            /// Prometheus' text format, version 0.0.4.
            pub fn text(&self) -> String {
                let mut text = String::new();
                $({
                    let suffix = if $kind == "counter" { "_total" } else { "" };
                    let name = concat!("lowrank_", stringify!($name));
                    let value = self.$name.get();
                    let _ = writeln!(text, "# HELP {name}{suffix} {}\n# TYPE {name}{suffix} {}\n{name}{suffix} {value}",
                        $help, $kind);
                })*
                text
            }
        }
    };
}

metrics! {
    requests: "counter", "Requests answered.";
    errors: "counter", "Requests answered with an error.";
    prompt_tokens: "counter", "Tokens of prompts.";
    cached_tokens: "counter", "Tokens of prompts whose keys and values were in the cache.";
    generated_tokens: "counter", "Tokens generated.";
    steps: "counter", "Forward passes of the decoder.";
    step_microseconds: "counter", "Time of these.";
    running: "gauge", "Requests that are being decoded.";
    waiting: "gauge", "Requests that wait for room.";
    cache_rows: "gauge", "Rows of the cache that requests may come to use.";
    cache_capacity_rows: "gauge", "Rows of the cache at most.";
    adapters: "gauge", "Adapters that are loaded, mixtures included.";
    adapter_bytes: "gauge", "Bytes of these.";
    adapter_loads: "counter", "Adapters loaded.";
    adapter_evictions: "counter", "Adapters evicted to stay within the budget.";
}
