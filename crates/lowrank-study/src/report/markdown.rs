//! The report as Markdown: for a repository or a message.

use std::fmt::Write as _;

use super::content::Report;
use super::table::Table;

pub(super) fn render(report: &Report) -> String {
    let made = &report.made;
    let mut out = format!("# {}\n\n{}\n", report.title, report.subtitle);
    let _ = write!(
        out,
        "\n{}, lowrank {}: `{}`\n",
        made.date,
        made.lowrank_version,
        made.command_line().replace('`', "'")
    );
    for section in &report.sections {
        let _ = write!(out, "\n## {}\n", section.title);
        for paragraph in &section.text {
            let _ = write!(out, "\n{paragraph}\n");
        }
        for t in &section.tables {
            out.push('\n');
            table(&mut out, t);
        }
        for figure in &section.figures {
            let (title, id) = (&figure.title, &figure.id);
            let _ = write!(out, "\n![{title}](figures/{id}.png)\n\n{title} ([numbers](data/{id}.csv))\n");
        }
        for samples in &section.samples {
            let texts = samples.texts.iter().map(|(when, text)| (when.as_str(), text));
            for (title, text) in [("Prompt", &samples.prompt)].into_iter().chain(texts) {
                let _ = write!(out, "\n{title}\n\n```text\n{}\n```\n", text.replace("```", "'''"));
            }
        }
        for (title, command) in &section.commands {
            let _ = write!(out, "\n{title}\n\n```sh\n{}\n```\n", command.replace("```", "'''"));
        }
    }
    out
}

fn table(out: &mut String, table: &Table) {
    if table.folded {
        let _ = writeln!(out, "<details><summary>{}</summary>\n", table.title);
    } else {
        let _ = writeln!(out, "{}\n", table.title);
    }
    let escape = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    let mut row = |cells: Vec<String>| {
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    };
    row(table.columns.iter().map(|c| escape(c)).collect());
    let numeric = |i: usize| table.rows.iter().any(|r| r.get(i).is_some_and(|c| c.value.is_some()));
    row((0..table.columns.len()).map(|i| if numeric(i) { "---:" } else { "---" }.to_owned()).collect());
    for cells in &table.rows {
        row(cells.iter().map(|c| escape(&c.text)).collect());
    }
    if table.folded {
        out.push_str("\n</details>\n");
    }
}
