//! Which of the named chat templates a template is, or is like.

use super::chat::{ChatTemplate, Message};
use super::templates::NAMED;

/// What the turns of each are marked with, the telling ones first.
const MARKS: [(&str, &str); 8] = [
    ("chatml", "<|im_start|>"),
    ("gemma", "<start_of_turn>"),
    ("llama3", "<|start_header_id|>"),
    ("llama2", "<<SYS>>"),
    ("mistral", "[INST]"),
    ("phi3", "<|end|>"),
    ("zephyr", "<|user|>"),
    ("alpaca", "### Instruction"),
];

/// The style of a template in words: `chatml` where it writes conversations as the one of that name, `like chatml` where it has
/// its marks, else `its own`.
pub fn style(template: &ChatTemplate) -> String {
    let turns = |list: &[(&str, &str)]| -> Vec<Message> {
        list.iter().map(|(role, text)| Message::new(*role, *text)).collect()
    };
    let talk = [("user", "red"), ("assistant", "blue"), ("user", "green")];
    let with_system = [&[("system", "Be brief.")][..], &talk].concat();
    let same = |other: &ChatTemplate, talk: &[(&str, &str)]| {
        let text = |template: &ChatTemplate| template.render(&turns(talk), true).ok();
        text(template)
            .is_some_and(|own| text(other).is_some_and(|other| other.trim_start() == own.trim_start()))
    };
    // A system message that is there by default is no matter of style.
    let named = NAMED.iter().find(|(_, source)| {
        let other = template.with_source(source);
        other.is_ok_and(|other| same(&other, &with_system) || same(&other, &talk))
    });
    if let Some((name, _)) = named {
        return (*name).to_owned();
    }
    let marked = MARKS.iter().find(|(_, mark)| template.source().contains(mark));
    marked.map_or_else(|| "its own".to_owned(), |(name, _)| format!("like {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_recognised_by_what_they_write() {
        let of = |source: &str| style(&ChatTemplate::new(source, "<s>", "</s>").unwrap());
        for (name, source) in NAMED {
            assert_eq!(of(source), name);
        }
        // As SmolLM2 has it: with a system message by default.
        let default = "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\\nHelp.\
                       <|im_end|>\\n' }}{% endif %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + \
                       '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
        assert_eq!(of(default), "chatml");
        assert_eq!(of("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"), "like chatml");
        assert_eq!(of("{{ messages[0].content }}"), "its own");
        assert_eq!(of("{{ raise_exception('[INST]') }}"), "like mistral");
    }
}
