//! How much memory the real model's files take apart from their map.

mod common;

use common::counting::{Counting, measured};
use lowrank_models::Base;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_real_model_and_its_tokenizer_are_small() {
    let Some(path) = lowrank_testing::smollm2() else { return };
    let (base, kept, _) = measured(|| Base::open_path(&path).unwrap());
    assert!(kept < 1 << 20, "an open base keeps {kept} bytes");
    let (tokenizer, kept, peak) = measured(|| base.tokenizer().unwrap());
    eprintln!("tokenizer: keeps {kept} bytes, took {peak}");
    assert!(kept < 16 << 20, "the tokenizer keeps {kept} bytes");
    assert!(peak < 25 << 20, "the tokenizer took {peak} bytes");
    let text = "name[The Vaults], eatType[pub], priceRange[more than £30]\n".repeat(200);
    let (_, kept, peak) = measured(|| tokenizer.encode(&text).unwrap());
    eprintln!("encoding {} bytes: keeps {kept}, took {peak}", text.len());
    assert!(peak < 16 << 20, "encoding took {peak} bytes");
}
