//! Alpaca's rows: `instruction`, `input` and `output`.

use lowrank_models::Message;

use super::fields::Fields;

/// What stands before the instruction, with and without an input (Taori et al. 2023).
const WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides \
                          further context. Write a response that appropriately completes the request.";
const ALONE: &str = "Below is an instruction that describes a task. Write a response that appropriately \
                     completes the request.";

/// The columns of a row. An empty input or system text is none.
pub(super) struct Alpaca<'a> {
    instruction: &'a str,
    input: Option<&'a str>,
    system: Option<&'a str>,
    pub output: &'a str,
}

impl<'a> Alpaca<'a> {
    pub fn of(fields: &'a Fields<'_>) -> Result<Self, String> {
        Ok(Self {
            instruction: fields.text("instruction")?,
            input: fields.optional_text("input")?,
            system: fields.optional_text("system")?,
            output: fields.text("output")?,
        })
    }

    /// The prompt in Alpaca's own template. A system text takes the place of its first sentences.
    pub fn prompt(&self) -> String {
        let Self { instruction, input, system, .. } = self;
        let start = system.unwrap_or(if input.is_some() { WITH_INPUT } else { ALONE });
        let input = input.map(|input| format!("### Input:\n{input}\n\n")).unwrap_or_default();
        format!("{start}\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n")
    }

    /// The same as turns.
    pub fn messages(&self) -> Vec<Message> {
        let Self { instruction, input, system, output } = self;
        let input = input.map(|input| format!("\n\n{input}")).unwrap_or_default();
        let mut turns: Vec<Message> = system.map(|text| Message::new("system", text)).into_iter().collect();
        turns.push(Message::new("user", format!("{instruction}{input}")));
        turns.push(Message::new("assistant", *output));
        turns
    }
}
