#![no_main]

use lowrank_models::{ChatTemplate, Message};

libfuzzer_sys::fuzz_target!(|source: &str| {
    if let Ok(template) = ChatTemplate::new(source, "<s>", "</s>") {
        let _ = template
            .render_with_spans(&[Message::new("user", "a"), Message::new("assistant", "b")][..].into());
    }
});
