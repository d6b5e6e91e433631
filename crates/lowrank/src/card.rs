//! The model card of an adapter folder.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use lowrank_adapters::AdapterSet;
use lowrank_files::write_atomic;
use lowrank_train::{DataReport, Summary};

use crate::Result;
use crate::options::TrainOptions;

/// Its file.
pub(crate) const FILE: &str = "README.md";
/// What is in every card, and tells it from another file.
const MADE_BY: &str = "Trained with Lowrank";

/// Who reads the folder.
const PEFTS: &str = "PEFT loads it with `PeftModel.from_pretrained`.";
const OURS: &str = "PEFT has no such method: `lowrank eval` and `generate` read it.";

/// Writes `README.md` with the run's settings and results. One that is not the run's stays; says whether it was written.
pub(crate) fn write(
    out: &Path,
    options: &TrainOptions,
    adapters: &AdapterSet,
    data: &DataReport,
    summary: &Summary,
) -> Result<bool> {
    let path = out.join(FILE);
    if fs::read_to_string(&path).is_ok_and(|text| !text.contains(MADE_BY)) {
        return Ok(false);
    }
    let base = serde_json::to_string(&options.base_name()).expect("a string is JSON");
    let config = &adapters.config;
    let kind = config.peft_type.as_str();
    let method = lowrank_adapters::method(config)?;
    let (title, loads) = (method.title(), if method.in_peft() { PEFTS } else { OURS });
    let library = if method.in_peft() { "library_name: peft\n" } else { "" };
    let mut card = format!(
        "---\nbase_model: {base}\n{library}tags:\n- {}\n- lowrank\n---\n\n# {title}\n\n\
         {MADE_BY} {}. {loads}\n\n## Adapter\n\n| | |\n|---|---|\n",
        kind.to_lowercase(),
        env!("CARGO_PKG_VERSION")
    );
    let targets = config.target_modules.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut row =
        |name: &str, value: String| writeln!(card, "| {name} | {value} |").expect("writes to a string");
    row("method", kind.to_owned());
    if adapters.layers.iter().any(|layer| layer.variant.scaling().is_some()) {
        row("r", config.r.to_string());
        row("lora_alpha", config.lora_alpha.to_string());
        row("lora_dropout", config.lora_dropout.to_string());
    }
    row("target_modules", targets);
    row("adapted layers", adapters.layers.len().to_string());
    row("trainable parameters", adapters.params.count().to_string());
    if let Some(task) = &adapters.task {
        row("task", task["task"].as_str().unwrap_or(options.task.name()).to_owned());
        if let Some(labels) = task.get("labels") {
            row("labels", labels.to_string().replace('|', "\\|"));
        }
        if let Some(outputs) = task.get("outputs") {
            row("outputs", outputs.to_string());
        }
        row("modules_to_save", format!("{:?}", config.modules_to_save.as_deref().unwrap_or_default()));
    }
    card.push_str("\n## Training\n\n| | |\n|---|---|\n");
    let mut row =
        |name: &str, value: String| writeln!(card, "| {name} | {value} |").expect("writes to a string");
    let file = options.data.title();
    row("data", format!("{file}: {} examples, {} tokens", data.examples, data.tokens));
    row("steps", summary.steps.to_string());
    row("batch_size", options.batch_size.to_string());
    row("gradient_accumulation_steps", options.gradient_accumulation_steps.to_string());
    row("learning_rate", format!("{:e}", options.learning_rate.unwrap_or_default()));
    row("lr_scheduler", format!("{:?}", options.lr_scheduler).to_lowercase());
    row("warmup_steps", options.warmup_steps.to_string());
    row("weight_decay", options.weight_decay.to_string());
    row("max_grad_norm", options.max_grad_norm.to_string());
    row("seed", options.seed.to_string());
    card.push_str("\n## Results\n\n| | |\n|---|---|\n");
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            writeln!(card, "| {name} | {value} |").expect("writes to a string");
        }
    };
    row("training loss, last steps", summary.last_loss.map(|l| format!("{l:.4}")));
    row("held-out loss", summary.eval_loss.map(|l| format!("{l:.4}")));
    for (name, value) in &summary.eval_metrics {
        row(&format!("held-out {}", name.replace('_', " ")), Some(format!("{value:.4}")));
    }
    row("best held-out loss", summary.best.map(|(step, l)| format!("{l:.4} at step {step}")));
    if summary.train_s > 0.0 {
        row("speed", Some(format!("{:.0} tokens/s", summary.tokens as f64 / summary.train_s)));
    }
    write_atomic(&path, card.as_bytes())?;
    Ok(true)
}
