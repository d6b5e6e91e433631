//! Files good and bad, with a tokenizer whose tokens are the bytes of the text and whose eos is 0.

use std::path::PathBuf;

use lowrank_models::heads::Reads;

use super::*;

struct Bytes;

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

impl Encode for Bytes {
    fn encode(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        if text.contains('\u{1}') { Err("no token for U+0001".into()) } else { Ok(bytes(text)) }
    }

    fn encode_chat(&self, talk: &Conversation) -> Result<(Vec<u32>, Vec<bool>), EncodeError> {
        let (mut tokens, mut mask) = (Vec::new(), Vec::new());
        for (i, message) in talk.messages.iter().enumerate() {
            let learn = match message.role() {
                "assistant" => i >= talk.prompt_turns && !talk.untrained.contains(&i),
                "user" | "system" | "tool" => false,
                other => return Err(format!("the template knows no role {other:?}").into()),
            };
            match message.fields.get("content").and_then(|content| content.as_array()) {
                Some(parts) => parts.iter().for_each(|p| tokens.extend(bytes(p["text"].as_str().unwrap()))),
                None => tokens.extend(bytes(message.content().unwrap_or_default())),
            }
            if let Some(calls) = message.fields.get("tool_calls") {
                tokens.extend(bytes(&calls.to_string()));
            }
            mask.resize(tokens.len(), learn);
        }
        Ok((tokens, mask))
    }

    fn eos(&self) -> Option<u32> {
        Some(0)
    }

    fn texts(&self, first: &str, second: Option<&str>, max: Option<usize>) -> Result<Texts, EncodeError> {
        let mut ids = bytes(first);
        let mut types = vec![0; ids.len()];
        ids.extend(bytes(second.unwrap_or_default()));
        types.resize(ids.len(), 1);
        let truncated = max.is_some_and(|max| max < ids.len());
        ids.truncate(max.unwrap_or(usize::MAX));
        types.truncate(ids.len());
        let special = vec![false; ids.len()];
        Ok(Texts { ids, types, special, words: Vec::new(), truncated })
    }

    fn words(&self, words: &[&str], _: Option<usize>) -> Result<Texts, EncodeError> {
        let mut texts = self.texts(&words.concat(), None, None)?;
        for (i, word) in (0..).zip(words) {
            texts.words.resize(texts.words.len() + word.len(), Some(i));
        }
        Ok(texts)
    }
}

/// The same without a chat template.
struct Plain;

impl Encode for Plain {
    fn encode(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        Bytes.encode(text)
    }

    fn encode_chat(&self, _: &Conversation) -> Result<(Vec<u32>, Vec<bool>), EncodeError> {
        Err("no chat template".into())
    }

    fn has_chat_template(&self) -> bool {
        false
    }

    fn eos(&self) -> Option<u32> {
        Bytes.eos()
    }

    fn texts(&self, first: &str, second: Option<&str>, max: Option<usize>) -> Result<Texts, EncodeError> {
        Bytes.texts(first, second, max)
    }

    fn words(&self, words: &[&str], max: Option<usize>) -> Result<Texts, EncodeError> {
        Bytes.words(words, max)
    }
}

pub(super) struct Case {
    dir: tempfile::TempDir,
    name: String,
    options: DataOptions,
}

pub(super) fn case(name: &str, content: impl AsRef<[u8]>) -> Case {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(name), content).unwrap();
    Case { dir, name: name.into(), options: DataOptions::default() }
}

impl Case {
    fn path(&self) -> PathBuf {
        self.dir.path().join(&self.name)
    }

    pub fn with(mut self, change: impl FnOnce(&mut DataOptions)) -> Self {
        change(&mut self.options);
        self
    }

    pub fn load(&self) -> Result<Dataset, Error> {
        read(&self.path(), &self.options, &Bytes)
    }

    /// `(prompt, rest, labels as text, line)` of every example; eos is `$`.
    fn shown(&self) -> Vec<(String, String, String, u64)> {
        self.shown_by(&Bytes)
    }

    fn shown_by(&self, encoder: &dyn Encode) -> Vec<(String, String, String, u64)> {
        let text = |tokens: &[u32]| {
            let bytes = tokens.iter().map(|&t| if t == 0 { b'$' } else { t as u8 }).collect();
            String::from_utf8(bytes).unwrap()
        };
        let data = read(&self.path(), &self.options, encoder).unwrap();
        assert_eq!(data.report.examples, data.examples.len());
        assert_eq!(data.report.tokens, data.examples.iter().map(|e| e.tokens.len()).sum::<usize>());
        let show = |e: Example| {
            assert_eq!(e.tokens.len(), e.loss_mask.len());
            assert!(e.loss_mask[..e.prompt_len].iter().all(|m| !m));
            let labels: Vec<u32> =
                e.tokens.iter().zip(&e.loss_mask).filter(|(_, m)| **m).map(|(t, _)| *t).collect();
            assert_eq!(e.id.to_string(), format!("{}:{}", self.path().display(), e.id.line));
            (text(&e.tokens[..e.prompt_len]), text(&e.tokens[e.prompt_len..]), text(&labels), e.id.line)
        };
        data.examples.iter().map(show).collect()
    }

    /// The error, which names the file; `line` 0 stands for the file as a whole.
    pub fn fails(&self, line: u64, words: &[&str]) {
        let message = self.load().map(|data| data.report).unwrap_err().to_string();
        let place = match line {
            0 => format!("{}: ", self.name),
            n => format!("{}:{n}: ", self.name),
        };
        for word in [place.as_str()].iter().chain(words) {
            assert!(message.contains(word), "{word:?} is not in: {message}");
        }
    }
}

fn shown(prompt: &str, rest: &str, labels: &str, line: u64) -> (String, String, String, u64) {
    (prompt.into(), rest.into(), labels.into(), line)
}

#[test]
fn jsonl_of_every_kind_in_one_file() {
    let file = case(
        "a.jsonl",
        "{\"prompt\":\"ab\",\"completion\":\"cd\",\"id\":7}\n\
         \n  \t\n\
         {\"text\":\"xyz\"}\r\n\
         {\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"rs\"},\
         {\"role\":\"user\",\"content\":\"t\"},{\"role\":\"assistant\",\"content\":\"u\"}],\"meta\":{}}\n\
         {\"prompt\":\"\",\"completion\":\"cd\"}",
    );
    assert_eq!(
        file.shown(),
        [
            shown("ab", "cd$", "cd$", 1),
            shown("", "xyz$", "yz$", 4),
            shown("q", "rstu", "rsu", 5),
            shown("", "cd$", "d$", 6),
        ]
    );
}

#[test]
fn the_template_makes_the_prompt() {
    let template = |t: &str| Some(Template::parse(t).unwrap());
    let line = "{\"mr\":\"name[A]\",\"ref\":\"A is.\",\"lang\":\"en\"}\n";
    let file = case("a.jsonl", line).with(|o| {
        o.prompt_column = Some("mr".into());
        o.completion_column = Some("ref".into());
        o.prompt_template = template("{lang}: {prompt}|{mr}\n");
    });
    assert_eq!(file.shown(), [shown("en: name[A]|name[A]\n", "A is.$", "A is.$", 1)]);
    // A prompt column that the template does not use need not be there.
    let file = case("a.csv", "q,completion\nwhy,so\n").with(|o| o.prompt_template = template("Q: {q}\n"));
    assert_eq!(file.shown(), [shown("Q: why\n", "so$", "so$", 2)]);
    let file = case("a.csv", "q,completion\nwhy,so\n").with(|o| o.prompt_template = template("{prompt} {q}"));
    file.fails(0, &["no column \"prompt\"", "\"q\", \"completion\"", "read as csv (`data_format`"]);
    let file = case("a.jsonl", line).with(|o| {
        o.completion_column = Some("ref".into());
        o.prompt_template = template("{name}");
    });
    file.fails(1, &["\"name\" is missing", "\"mr\", \"ref\", \"lang\""]);
}

#[test]
fn csv_by_column() {
    let file =
        case("a.csv", "\u{feff}mr, ref,n\r\n\"name[A], x\",\"a \"\"b\"\"\nc\",1\r\n\r\nm,\u{e9},2\r\n").with(
            |o| {
                o.prompt_column = Some("mr".into());
                o.completion_column = Some("ref".into());
            },
        );
    assert_eq!(
        file.shown(),
        [shown("name[A], x", "a \"b\"\nc$", "a \"b\"\nc$", 2), shown("m", "\u{e9}$", "\u{e9}$", 5),]
    );
    assert_eq!(case("a.csv", "prompt,completion\na,b\n").shown(), [shown("a", "b$", "b$", 2)]);
    assert_eq!(case("a.CSV", "label,text\n1,abc").shown(), [shown("", "abc$", "bc$", 2)]);
}

#[test]
fn tsv_has_no_quotes() {
    let file = case("a.tsv", "sentence\tlabel\n\"Shut up\"\t1\nhe said \"no\t0\n")
        .with(|o| o.text_column = Some("sentence".into()));
    assert_eq!(
        file.shown(),
        [shown("", "\"Shut up\"$", "Shut up\"$", 2), shown("", "he said \"no$", "e said \"no$", 3)]
    );
}

#[test]
fn cuts_from_the_right_and_counts() {
    let lines = "{\"prompt\":\"abcd\",\"completion\":\"efgh\"}\n\
                 {\"prompt\":\"abcdefgh\",\"completion\":\"i\"}\n\
                 {\"prompt\":\"a\",\"completion\":\"bcd\"}\n";
    let file = case("a.jsonl", lines).with(|o| o.max_seq_len = Some(6));
    assert_eq!(file.shown(), [shown("abcd", "ef", "ef", 1), shown("a", "bcd$", "bcd$", 3)]);
    let report = file.load().unwrap().report;
    assert_eq!((report.truncated, report.dropped, report.longest, report.labels), (1, 1, 6, 6));
    let warnings = report.warnings();
    assert!(warnings.len() == 2 && warnings[1].ends_with("(line 2)"), "{warnings:?}");
    case("a.jsonl", lines).with(|o| o.max_seq_len = Some(2)).shown();
    case("a.jsonl", "{\"prompt\":\"abcd\",\"completion\":\"e\"}")
        .with(|o| o.max_seq_len = Some(4))
        .fails(0, &["none of its 1 examples", "raise `max_seq_len`"]);
    let error = case("a.jsonl", lines).with(|o| o.max_seq_len = Some(1)).load().unwrap_err().to_string();
    assert!(error.contains("at least 2"), "{error}");
}

/// An empty answer is learned as one, and said; a row without any label is an error.
#[test]
fn empty_answers_are_counted_and_rows_without_labels_refused() {
    let pair = |completion: &str| format!("{{\"prompt\":\"ab\",\"completion\":\"{completion}\"}}\n");
    let blank = "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"\"},\
                 {\"role\":\"assistant\",\"content\":\"a\"}]}\n";
    let file = case("a.jsonl", [&pair("c"), &pair(""), &pair("  ")[..], blank].concat());
    assert_eq!(file.shown()[1], shown("ab", "$", "$", 2));
    let report = file.load().unwrap().report;
    assert_eq!((report.empty, report.first_empty.clone()), (3, vec![2, 3, 4]));
    let warnings = report.warnings();
    assert!(
        warnings[0].contains("3 examples have an empty answer") && warnings[0].contains("lines 2, 3, 4)")
    );
    let many = case("a.jsonl", pair("").repeat(7)).load().unwrap().report;
    assert!(many.warnings()[0].contains("7 examples") && many.warnings()[0].contains("4, 5, ...)"));
    case("a.csv", "prompt,completion\na,b\nc,\n").with(|o| o.skip_bad_lines = true).load().unwrap();
    // The first token has nothing before it to be predicted from.
    case("a.jsonl", format!("{}{{\"messages\":[{{\"role\":\"assistant\",\"content\":\"a\"}}]}}", pair("c")))
        .fails(2, &["no token of the assistant after the first"]);
}

#[test]
fn a_template_names_a_column() {
    let template = |text: &str| {
        let lines = "{\"prompt\":\"a\",\"completion\":\"b\"}\n";
        case("a.jsonl", lines).with(|o| o.prompt_template = Some(Template::parse(text).unwrap()))
    };
    for text in ["", "Question:", "{{prompt}}"] {
        let error = template(text).load().unwrap_err().to_string();
        assert!(error.contains("`prompt_template`") && error.contains("write {prompt}"), "{error}");
        let error = read_groups(&template(text).path(), &template(text).options).unwrap_err().to_string();
        assert!(error.contains("names no column"), "{error}");
    }
    assert_eq!(template("Q {prompt}:").shown(), [shown("Q a:", "b$", "b$", 1)]);
    template("{question}").fails(1, &["\"question\" is missing; there is \"prompt\", \"completion\""]);
    template("{question}")
        .with(|o| o.skip_bad_lines = true)
        .fails(0, &["no example", "\"question\" is missing"]);
}

#[test]
fn examples_are_known_by_their_checksum() {
    let sum = |lines: &str| case("a.jsonl", lines).load().unwrap().examples.checksum();
    let one = sum("{\"text\":\"ab\"}\n{\"text\":\"c\"}\n");
    assert_eq!(one, sum("{\"text\": \"ab\"}\n{\"text\":\"c\"}"));
    for other in [
        "{\"text\":\"ab\"}\n{\"text\":\"d\"}\n",
        "{\"text\":\"ab\"}\n",
        "{\"text\":\"c\"}\n{\"text\":\"ab\"}\n",
    ] {
        assert_ne!(one, sum(other), "{other}");
    }
}

#[test]
fn bad_lines_name_file_line_reason_and_fix() {
    let good = "{\"text\":\"ok\"}\n";
    let cases: [(&[u8], &[&str]); 19] = [
        (b"{\"text\":\"a\\u0001\"}", &["no token for U+0001"]),
        (b"{\"prompt\":\"a\",\"completion\":\"\\u0001\"}", &["no token for U+0001"]),
        (
            b"{\"prompt\":\"a\",\"completions\":\"b\"}",
            &["\"completion\" is missing", "\"prompt\", \"completions\""],
        ),
        (b"{\"prompt\":\"a\",\"completion\":3}", &["\"completion\" is a number, expected a string"]),
        (b"{\"prompt\":null,\"completion\":\"b\"}", &["\"prompt\" is null"]),
        (b"{\"text\":[\"a\"]}", &["\"text\" is a list"]),
        (b"{\"text\":\"a\",\"prompt\":\"b\",\"completion\":\"c\"}", &["more than one", "`text_column`"]),
        (
            b"{\"input\":\"a\"}",
            &[
                "neither",
                "there is \"input\"",
                "`prompt_column`",
                "`text_column`",
                "read as jsonl (`data_format`",
            ],
        ),
        (b"{}", &["neither", "there is nothing"]),
        (b"{\"text\":\"\"}", &["nothing to learn"]),
        (b"{\"text\":\"a\"", &["not JSON: EOF", "at column 11"]),
        (b"{\"text\":\"a\"} {\"text\":\"b\"}", &["not JSON: trailing characters at column 14"]),
        (b"[1]", &["a list stands here, expected an object"]),
        (b"{\"text\":\"\xe9t\xe9\"}", &["not UTF-8 from byte 10", "save the file as UTF-8"]),
        (b"{\"messages\":[]}", &["\"messages\" is empty"]),
        (b"{\"messages\":\"hi\"}", &["\"messages\" is a string, expected a list"]),
        (b"{\"messages\":[{\"role\":\"user\",\"content\":null}]}", &["messages[0].content is null"]),
        (b"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", &["no turn of the assistant"]),
        (b"{\"messages\":[{\"role\":\"bot\",\"content\":\"a\"}]}", &["no role \"bot\""]),
    ];
    for (line, words) in cases {
        let file = case("bad.jsonl", [good.as_bytes(), line, b"\n", good.as_bytes()].concat());
        file.fails(2, words);
        file.fails(2, &["`skip_bad_lines`"]);
        let file = file.with(|o| o.skip_bad_lines = true);
        let report = file.load().unwrap().report;
        assert_eq!((report.examples, report.bad_lines, report.first_bad[0].line), (2, 1, 2));
        // A warning names the line; how the file is read is said of the file.
        let mut of_line = words.iter().filter(|word| !word.starts_with("read as"));
        assert!(of_line.all(|word| report.warnings()[1].contains(word)), "{:?}", report.warnings());
    }
    let deep = "[".repeat(100_000);
    case("deep.jsonl", format!("{good}{{\"text\":{deep}")).fails(2, &["not JSON", "recursion"]);
}

#[test]
fn skipping_reports_the_first_few() {
    let file = case("a.jsonl", format!("{{\"text\":\"ok\"}}\n{}", "oops\n".repeat(9)));
    let report = file.with(|o| o.skip_bad_lines = true).load().unwrap().report;
    let lines: Vec<u64> = report.first_bad.iter().map(|bad| bad.line).collect();
    assert_eq!((report.bad_lines, lines), (9, vec![2, 3, 4, 5, 6]));
    case("b.jsonl", "oops\n")
        .with(|o| o.skip_bad_lines = true)
        .fails(0, &["1 bad lines, the first: not JSON"]);
}

#[test]
fn bad_rows_of_tables() {
    let head = "prompt,completion\n";
    case("a.csv", format!("{head}a,b\nc\n")).fails(3, &["1 fields, the header has 2", "quotes"]);
    case("a.tsv", "text\na\tb\n").fails(2, &["2 fields, the header has 1"]);
    case("a.csv", format!("{head}a,b\nc,\"d\ne,f\n")).fails(3, &["a quote opens here and is never closed"]);
    case("a.csv", format!("\u{feff}{head}a,b\nc,\"d\ne,f\n")).fails(3, &["never closed"]);
    case("a.csv", [head.as_bytes(), b"a,\xff\n"].concat())
        .fails(2, &["column \"completion\": not UTF-8 from byte 1"]);
    let skipped = case("a.csv", format!("{head}a,b\nc\nd,e\n")).with(|o| o.skip_bad_lines = true);
    assert_eq!(skipped.shown(), [shown("a", "b$", "b$", 2), shown("d", "e$", "e$", 4)]);
    // The last field of a file may close its quote at the very end.
    assert_eq!(case("a.csv", format!("{head}a,\"b\nc\"")).shown(), [shown("a", "b\nc$", "b\nc$", 2)]);
}

#[test]
fn bad_files() {
    case("a.jsonl", "").fails(0, &["the file is empty"]);
    case("a.jsonl", "\n \r\n").fails(0, &["the file is empty"]);
    case("a.jsonl", "\u{feff}").fails(0, &["the file is empty"]);
    case("a.csv", "").fails(0, &["the file is empty"]);
    case("a.csv", "text\n").fails(0, &["holds no example"]);
    case("a.jsonl", b"\xff\xfe{\0").fails(0, &["UTF-16", "iconv"]);
    case("a.arrow", "x").fails(0, &["unknown file extension", "`data_format`"]);
    case("a.csv", "source,ref\na,b\n").fails(0, &["neither", "\"source\", \"ref\"", "`prompt_column`"]);
    let named = |prompt: &str, content: &str| {
        case("a.csv", content).with(|o| {
            o.prompt_column = Some(prompt.into());
            o.completion_column = Some("ref".into());
        })
    };
    named("MR", "mr,ref\na,b\n").fails(0, &["no column \"MR\": there is \"mr\", \"ref\""]);
    named("mr", "mr,ref,mr\na,b,c\n").fails(0, &["2 columns are called \"mr\""]);
    named("mr", "").fails(0, &["empty"]);
    let mut gone = case("a.jsonl", "");
    gone.name = "b.jsonl".into();
    gone.fails(0, &["No such file"]);
    let both = named("mr", "mr,ref\n").with(|o| o.text_column = Some("ref".into()));
    assert!(both.load().unwrap_err().to_string().contains("`text_column` trains on a text without prompt"));
}

#[test]
fn the_format_can_be_named() {
    let file = case("a.txt", "{\"text\":\"abc\"}").with(|o| o.format = Some(DataFormat::Jsonl));
    assert_eq!(file.shown(), [shown("", "abc$", "bc$", 1)]);
    assert!("xls".parse::<DataFormat>().unwrap_err().to_string().contains("jsonl, csv, tsv"));
}

#[test]
fn order_survives_chunks_and_long_lines() {
    let mut content = String::new();
    let lines = 3 * CHUNK_LINES + 5;
    for i in 0..lines {
        content.push_str(&format!("{{\"prompt\":\"{i}\",\"completion\":\"x\"}}\n"));
    }
    let long = "y".repeat(CHUNK_BYTES + 3);
    content.push_str(&format!("{{\"text\":\"{long}\"}}\n{{\"text\":\"end\"}}\n"));
    let data = case("a.jsonl", content).load().unwrap();
    assert_eq!(data.examples.len(), lines + 2);
    for (i, example) in data.examples.iter().take(lines).enumerate() {
        assert_eq!(example.tokens[..example.prompt_len], bytes(&i.to_string())[..]);
        assert_eq!(example.id.line, i as u64 + 1);
    }
    assert_eq!(data.report.longest, CHUNK_BYTES + 4);
    assert_eq!(data.examples.get(lines + 1).tokens.len(), 4);
}

#[test]
fn a_text_is_read_at_its_last_token_that_is_no_padding() {
    let read = |text: &str, reads: Reads| -> Vec<(u32, u32)> {
        let row = serde_json::json!({"text": text, "label": "y"});
        let file = case("a.jsonl", row.to_string()).with(|o| {
            (o.task, o.reads) = (Task::Classification, reads);
            o.labels = vec!["x".into(), "y".into()];
        });
        match file.load().unwrap().examples.get(0).target {
            Target::Classes(labels) => labels.iter().map(|label| (label.row, label.target)).collect(),
            other => panic!("{other:?}"),
        }
    };
    let last = Reads::Last(Some(u32::from(b'.')));
    for (text, row) in [("abc", 2), ("ab..", 1), (".a.b.", 3), ("...", 0), (".", 0)] {
        assert_eq!(read(text, last), [(row, 1)], "{text}");
        assert_eq!(read(text, Reads::Last(None)), [(text.len() as u32 - 1, 1)], "{text}");
        assert_eq!(read(text, Reads::First), [(0, 1)], "{text}");
    }
}

/// The names of the classes in rows of `label`s, and what the labels of the first row are then.
fn found(task: Task, rows: &[serde_json::Value], known: &[&str]) -> Result<(Vec<String>, Vec<u32>), Error> {
    let lines = rows.iter().map(|label| format!("{}\n", serde_json::json!({"text": "a", "label": label})));
    let known: Vec<String> = known.iter().map(ToString::to_string).collect();
    let mut file = case("a.jsonl", lines.collect::<String>()).with(|o| o.task = task);
    file.options.labels = labels(&file.path(), &file.options, &known)?;
    let first = match file.load()?.examples.get(0).target {
        Target::Classes(labels) => labels.iter().map(|label| label.target).collect(),
        Target::ClassSet { classes, .. } => classes,
        other => panic!("{other:?}"),
    };
    Ok((file.options.labels, first))
}

#[test]
fn classes_are_found() {
    use serde_json::json;
    let is = |task: Task, rows: &[serde_json::Value], known: &[&str], names: &[&str], first: &[u32]| {
        let (got, classes) = found(task, rows, known).unwrap();
        assert_eq!(
            (got.iter().map(String::as_str).collect::<Vec<_>>(), &classes[..]),
            (names.to_vec(), first)
        );
    };
    let (one, many) = (Task::Classification, Task::MultiLabelClassification);
    is(one, &[json!("b"), json!("a")], &[], &["a", "b"], &[1]);
    is(one, &[json!(10), json!(9)], &[], &["9", "10"], &[1]);
    // A head's names: by name, and by number.
    is(one, &[json!("b"), json!("a")], &["b", "a", "c"], &["b", "a", "c"], &[0]);
    is(one, &[json!(2), json!(0)], &["b", "a", "c"], &["b", "a", "c"], &[2]);
    is(one, &[json!(3), json!(0)], &["b", "a", "c"], &["0", "3"], &[1]);
    is(one, &[json!(1), json!(0)], &["LABEL_0", "LABEL_1"], &["LABEL_0", "LABEL_1"], &[1]);
    is(one, &[json!(1), json!(0)], &["LABEL_0", "LABEL_1", "LABEL_2"], &["0", "1"], &[1]);
    is(one, &[json!(2), json!(1)], &["1", "2", "3"], &["1", "2", "3"], &[1]);
    is(one, &[json!(0), json!(1)], &["1", "2", "3"], &["0", "1"], &[0]);
    is(many, &[json!(["b", "c", "b"]), json!([]), json!(["a"])], &[], &["a", "b", "c"], &[1, 2]);
    is(many, &[json!([1, 0, 1]), json!([0, 0, 0])], &[], &["LABEL_0", "LABEL_1", "LABEL_2"], &[0, 2]);
    is(many, &[json!([false, true]), json!([true, true])], &["b", "a"], &["b", "a"], &[1]);
    is(many, &[json!([2, 0]), json!([1])], &["b", "a", "c"], &["b", "a", "c"], &[0, 2]);
    is(many, &[json!([27, 2]), json!([3])], &[], &["2", "3", "27"], &[0, 2]);
    let fails = |task: Task, rows: &[serde_json::Value], what: &str| {
        let message = found(task, rows, &[]).unwrap_err().to_string();
        assert!(message.contains(what), "{what:?} in {message}");
    };
    fails(one, &[json!(["a", "b"])], "a.jsonl:1: \"label\" is a list");
    fails(one, &[json!("a"), json!("a")], "one label only");
    fails(many, &[json!("a")], "a.jsonl:1: \"label\" is a string, expected a list of labels");
    fails(many, &[json!([0, 1, 1]), json!([0, 1])], "a vector of 3 entries for 2 classes");
}

#[test]
fn numbers_of_a_text() {
    let load = |name: &str, content: &str| {
        let mut file = case(name, content).with(|o| o.task = Task::Regression);
        file.options.outputs = outputs(&file.path(), &file.options).unwrap();
        file
    };
    let values = |file: &Case| match file.load().unwrap().examples.get(0).target {
        Target::Values { values, .. } => values,
        other => panic!("{other:?}"),
    };
    assert_eq!(values(&load("a.jsonl", "{\"text\":\"a\",\"score\":2}")), [2.0]);
    assert_eq!(values(&load("a.jsonl", "{\"text\":\"a\",\"labels\":[2,-0.5]}")), [2.0, -0.5]);
    assert_eq!(values(&load("a.tsv", "text\tlabel\na\t[2, -0.5]\n")), [2.0, -0.5]);
    load("a.csv", "text,label\na,\"2,5\"\n").fails(2, &["\"2,5\" is not a number", "[1, 2.5]"]);
    load("a.jsonl", "{\"text\":\"a\",\"label\":[1,2]}\n{\"text\":\"a\",\"label\":[]}")
        .fails(2, &["\"label\" is an empty list"]);
    load("a.jsonl", "{\"text\":\"a\",\"label\":[1,2]}\n{\"text\":\"a\",\"label\":3}")
        .fails(2, &["holds 1 numbers, and 2 are predicted"]);
}

/// One list of objects is read as lines are, entry by entry, with the line that each begins in.
#[test]
fn a_json_list_is_read_entry_by_entry() {
    let list = "\n [\n {\"text\":\"a[]{}\\\"b,\"},\n\n {\n  \"prompt\": \"ab\",\n  \"completion\": \"c\" },{\"text\":\"yx\"}\n]\n";
    let file = case("a.json", list);
    let text = "a[]{}\"b,$";
    assert_eq!(
        file.shown(),
        [shown("", text, &text[1..], 3), shown("ab", "c$", "c$", 5), shown("", "yx$", "x$", 7)]
    );
}

#[test]
fn a_broken_json_list_is_refused_at_its_line() {
    let row = "{\"text\":\"ab\"}";
    case("a.json", format!("[{row},\n{row}")).fails(0, &["line 2", "not closed"]);
    case("a.json", format!("[{row},\n{{\"text\":\"a")).fails(0, &["line 2", "not closed"]);
    case("a.json", format!("[{row}\n{row}]")).fails(0, &["line 2", "a comma or ] follows"]);
    case("a.json", format!("[{row}]\n{row}")).fails(0, &["line 2", "nothing follows"]);
    case("a.json", format!("[{row},]")).fails(0, &["line 1", "an entry of a list is an object"]);
    case("a.json", format!("[{row},\n1]")).fails(2, &["a number stands here"]);
    case("a.json", format!("[{row},\n{{\n\"text\": x}}]")).fails(2, &["not JSON", "of line 2 of the object"]);
    case("a.json", "[]").fails(0, &["no example"]);
    let long = format!("[{row},\n{{\"text\":\"{}\"}}]", "a".repeat(100));
    case("a.json", &long).with(|o| o.max_row_bytes = Some(50)).fails(2, &["`max_row_bytes`"]);
    let bad = case("a.json", format!("[{row},\n1]")).with(|o| o.skip_bad_lines = true);
    assert_eq!(bad.load().unwrap().report.bad_lines, 1);
}

const ALPACA: &str = r#"[
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"instruction": "Hi", "input": "", "output": "Ho", "text": "all of it"},
    {"instruction": "Hi", "output": "Ho", "system": "Be brief."}
]"#;

#[test]
fn alpaca_rows_are_turns_where_there_is_a_chat_template() {
    let file = case("a.json", ALPACA);
    assert_eq!(
        file.shown(),
        [shown("Add.\n\n1 2", "3", "3", 2), shown("Hi", "Ho", "Ho", 3), shown("Be brief.Hi", "Ho", "Ho", 4)]
    );
    assert!(
        file.load()
            .unwrap()
            .report
            .to_string()
            .ends_with("read as Alpaca's rows, as turns of the chat template")
    );
}

#[test]
fn alpaca_rows_have_alpacas_template_without_one() {
    let file = case("a.json", ALPACA);
    let start = "Below is an instruction that describes a task";
    let end = "Write a response that appropriately completes the request.\n\n### Instruction:\n";
    let with = format!(
        "{start}, paired with an input that provides further context. {end}Add.\n\n### Input:\n1 2\n\n### Response:\n"
    );
    let without = format!("{start}. {end}Hi\n\n### Response:\n");
    let system = "Be brief.\n\n### Instruction:\nHi\n\n### Response:\n";
    assert_eq!(
        file.shown_by(&Plain),
        [shown(&with, "3$", "3$", 2), shown(&without, "Ho$", "Ho$", 3), shown(system, "Ho$", "Ho$", 4)]
    );
    let report = read(&file.path(), &file.options, &Plain).unwrap().report;
    assert!(report.to_string().ends_with("read as Alpaca's rows, in Alpaca's template"), "{report}");
    let table = case("a.csv", "instruction,input,output\nHi,,Ho\n");
    assert_eq!(table.shown_by(&Plain), [shown(&without, "Ho$", "Ho$", 2)]);
    case("a.jsonl", r#"{"instruction": 3, "output": "a"}"#).fails(
        1,
        &["\"instruction\" is a number, expected a string", "Alpaca's instruction", "`prompt_column`"],
    );
    case("a.jsonl", r#"{"instruction": "a", "output": "b", "messages": []}"#).fails(1, &["more than one of"]);
}

#[test]
fn sharegpt_turns_are_messages() {
    let talk = |turns: &str| format!("{{\"conversations\": [{turns}]}}");
    let two = r#"{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}"#;
    assert_eq!(case("a.jsonl", talk(two)).shown(), [shown("q", "a", "a", 1)]);
    let system = format!(r#"{{"from": "system", "value": "s"}}, {two}"#);
    assert_eq!(case("a.jsonl", talk(&system)).shown(), [shown("sq", "a", "a", 1)]);
    let named = talk(two).replace("[", "[ ").replacen('{', "{\"system\": \"s\", ", 1);
    assert_eq!(case("a.jsonl", named).shown(), [shown("sq", "a", "a", 1)]);
    let roles = r#"{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}"#;
    for key in ["conversations", "conversation", "dialogue", "chat"] {
        let row = format!("{{\"{key}\": [{roles}]}}");
        assert_eq!(case("a.jsonl", row).shown(), [shown("q", "a", "a", 1)]);
    }
    let call = r#"{"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"}"#;
    let tools =
        format!(r#"{two}, {call}, {{"from": "observation", "value": "r"}}, {{"from": "gpt", "value": "b"}}"#);
    let called = r#"[{"type":"function","function":{"name":"f","arguments":{"x":1}}}]"#;
    let (rest, labels) = (format!("a{called}rb"), format!("a{called}b"));
    assert_eq!(case("a.jsonl", talk(&tools)).shown(), [shown("q", &rest, &labels, 1)]);
    case("a.jsonl", talk(r#"{"from": "bot", "value": "q"}"#))
        .fails(1, &["conversations[0].from", "\"bot\"", "human", "conversation \"conversations\""]);
    case("a.jsonl", talk(r#"{"from": "human", "value": 1}"#))
        .fails(1, &["conversations[0].value is a number"]);
    case("a.jsonl", talk(r#"{"value": "a"}"#)).fails(1, &["conversations[0] has no \"role\""]);
    case("a.jsonl", talk("")).fails(1, &["\"conversations\" is empty"]);
}

/// As TRL's conversational prompt-completion form; loss on what the assistant says in the completion.
#[test]
fn prompts_and_completions_may_be_turns() {
    let row = r#"{"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
        {"role": "user", "content": "r"}], "completion": [{"role": "assistant", "content": "b"}]}"#
        .replace('\n', " ");
    assert_eq!(case("a.jsonl", &row).shown(), [shown("qar", "b", "b", 1)]);
    let all = case("a.jsonl", &row).with(|o| o.loss_on_prompt = true);
    assert_eq!(all.shown(), [shown("", "qarb", "arb", 1)]);
    case("a.jsonl", r#"{"prompt": [{"role": "user", "content": "q"}], "completion": "b"}"#)
        .fails(1, &["\"completion\" is a string, expected a list of turns"]);
    case(
        "a.jsonl",
        r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "user", "content": "b"}]}"#,
    )
    .fails(1, &["the completion has no turn of the assistant"]);
    // A prompt that repeats what the turns say is left out.
    let row = r#"{"prompt": "q", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#;
    assert_eq!(case("a.jsonl", row).shown(), [shown("q", "a", "a", 1)]);
}

#[test]
fn contents_may_be_parts_of_text() {
    let row = |part: &str| {
        format!(
            r#"{{"messages": [{{"role": "user", "content": [{{"type": "text", "text": "q"}}{part}]}},
            {{"role": "assistant", "content": [{{"type": "text", "text": "a"}}]}}]}}"#
        )
        .replace('\n', " ")
    };
    assert_eq!(case("a.jsonl", row("")).shown(), [shown("q", "a", "a", 1)]);
    for image in [r#", {"type": "image"}"#, r#", {"type": "image_url", "image_url": {"url": "x"}}"#] {
        case("a.jsonl", row(image))
            .fails(1, &["messages[0].content[1] is an image, and images are not trained"]);
    }
    case("a.jsonl", row(r#", {"type": "audio"}"#)).fails(1, &["of the type \"audio\""]);
    case("a.jsonl", row(r#", {"type": "text"}"#)).fails(1, &["no string \"text\""]);
    case("a.jsonl", row(r#", "x""#)).fails(1, &["content[1] has no \"type\""]);
}

#[test]
fn loss_on_prompts_is_loss_on_all_but_the_first_token() {
    let lines = "{\"prompt\":\"ab\",\"completion\":\"cd\"}\n\
                 {\"messages\":[{\"role\":\"user\",\"content\":\"qr\"}]}\n\
                 {\"text\":\"xyz\"}\n";
    case("a.jsonl", lines).fails(2, &["no turn of the assistant to learn"]);
    let file = case("a.jsonl", lines).with(|o| o.loss_on_prompt = true);
    assert_eq!(
        file.shown(),
        [shown("", "abcd$", "bcd$", 1), shown("", "qr", "r", 2), shown("", "xyz$", "yz$", 3)]
    );
    assert_eq!(file.load().unwrap().report.forms, ["prompts and completions", "conversations", "texts"]);
}

/// Every example of docs/data.md, which stands in a block with its format and, where it is not `lm`, its task.
#[test]
fn the_examples_of_the_docs_are_read() {
    let page = include_str!("../../../../docs/data.md");
    let mut blocks = 0;
    for block in page.split("\n```").skip(1).step_by(2) {
        let (head, content) = block.split_once('\n').unwrap();
        let (format, task) = head.split_once(' ').unwrap_or((head, "lm"));
        if format == "sh" || format == "toml" {
            continue;
        }
        let mut file = case(&format!("a.{format}"), content);
        file.options.task = serde_json::from_value(task.into()).unwrap();
        if file.options.task.has_labels() {
            file.options.labels = labels(&file.path(), &file.options, &[]).unwrap();
        }
        let data = file.load().unwrap_or_else(|error| panic!("{error}\n{block}"));
        assert!(data.report.warnings().is_empty(), "{block}");
        blocks += 1;
    }
    assert!(blocks > 10, "{blocks}");
}

#[test]
fn several_files_have_their_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.jsonl"), dir.path().join("b.json"));
    let rows: String = (0..10).map(|i| format!("{{\"text\":\"a{i}\"}}\n")).collect();
    std::fs::write(&a, rows + "{\"prompt\":\"x\",\"completion\":\"\"}\n").unwrap();
    std::fs::write(&b, ALPACA).unwrap();
    let load = |weights: [f64; 2], seed| {
        let files = [(a.clone(), weights[0]), (b.clone(), weights[1])];
        read_files(&files, seed, &DataOptions::default(), &Bytes)
    };
    let lines = |weights, seed| -> Vec<u64> {
        load(weights, seed).unwrap().examples.iter().map(|example| example.id.line).collect()
    };
    assert_eq!(lines([1.0, 1.0], 1), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3, 4]);
    assert_eq!(lines([0.01, 2.0], 1), [2, 3, 4, 2, 3, 4]);
    let half = lines([0.5, 1.0], 1);
    assert_eq!(half.len(), 6 + 3);
    assert!(half[..6].windows(2).all(|pair| pair[0] < pair[1]));
    assert!(half == lines([0.5, 1.0], 1) && (2..9).any(|seed| half != lines([0.5, 1.0], seed)));
    let report = load([1.0, 2.0], 1).unwrap().report;
    assert_eq!(report.examples, 17);
    let warnings = report.warnings();
    assert!(warnings[0].ends_with("a.jsonl: 11 of 11 examples"), "{warnings:?}");
    assert!(warnings[1].starts_with("  1 examples have an empty answer"), "{warnings:?}");
    assert!(warnings[2].ends_with("b.json: 6 of 3 examples"), "{warnings:?}");
    assert!(load([0.01, 0.01], 1).unwrap_err().to_string().contains("leave no example"));
    assert!(load([1.0, 1.0], 1).unwrap().examples.iter().any(|example| example.id.file.ends_with("b.json")));
    let options = DataOptions { task: Task::Classification, ..DataOptions::default() };
    for (name, label) in [("c.jsonl", "x"), ("d.jsonl", "y")] {
        std::fs::write(dir.path().join(name), format!("{{\"text\":\"a\",\"label\":\"{label}\"}}")).unwrap();
    }
    let paths = ["c.jsonl", "d.jsonl"].map(|name| dir.path().join(name));
    assert_eq!(labels_of(&paths, &options, &[]).unwrap(), ["x", "y"]);
}

/// Files that pyarrow wrote, with each codec.
#[cfg(feature = "parquet")]
#[test]
fn parquet_rows_are_objects() {
    let fixture = |name: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("tests/fixtures/parquet/{name}.parquet"));
        case(&format!("{name}.parquet"), std::fs::read(path).unwrap())
    };
    assert_eq!(fixture("messages.zstd").shown(), [shown("q", "a", "a", 1), shown("r", "b", "b", 2)]);
    assert_eq!(
        fixture("alpaca.snappy").shown(),
        [shown("Add.\n\n1 2", "3", "3", 1), shown("Hi", "Ho", "Ho", 2)]
    );
    let labelled = fixture("labels.gzip").with(|o| o.task = Task::Classification);
    assert_eq!(labels(&labelled.path(), &labelled.options, &[]).unwrap(), ["0", "1"]);
    let score = fixture("messages.zstd").with(|o| {
        o.task = Task::Regression;
        (o.text_column, o.label_column) = (Some("note".into()), Some("score".into()));
    });
    score.fails(1, &["\"note\" is missing"]);
    let skipped = score.with(|o| o.skip_bad_lines = true).load().unwrap();
    assert_eq!(skipped.examples.get(0).target, Target::Values { row: 0, values: vec![2.5] });
    fixture("messages.zstd").with(|o| o.max_row_bytes = Some(20)).fails(1, &["`max_row_bytes`"]);
    let bytes = std::fs::read(fixture("messages.zstd").path()).unwrap();
    case("a.parquet", b"PAR1").fails(0, &["not Parquet"]);
    case("a.parquet", &bytes[..bytes.len() - 9]).fails(0, &["not Parquet, or damaged"]);
    // Damage ends in an error or in rows, never in a panic.
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x55;
        let _ = case("a.parquet", bytes).load();
    }
}

#[cfg(not(feature = "parquet"))]
#[test]
fn parquet_needs_its_feature() {
    case("a.parquet", "PAR1").fails(0, &["feature `parquet`"]);
}

/// A page that says its bytes unpack to what no compression gives: the parser would make room for that.
#[cfg(feature = "parquet")]
#[test]
fn parquet_pages_that_lie_about_their_size_are_refused() {
    use ::parquet::basic::{Compression, ZstdLevel};
    use ::parquet::data_type::{ByteArray, ByteArrayType};
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;

    let schema =
        ::parquet::schema::parser::parse_message_type("message row { required binary text (UTF8); }")
            .unwrap();
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_dictionary_enabled(false)
        .build();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema.into(), properties.into()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let text = ByteArray::from("a".repeat(1_100_000).as_str());
    column.typed::<ByteArrayType>().write_batch(&[text], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    assert!(bytes.len() < 4000, "{}", bytes.len());
    assert_eq!(case("a.parquet", &bytes).load().unwrap().examples.len(), 1);

    // Behind the magic number: type, then the unpacked size in four bytes of seven bits.
    let size = bytes[4..].iter().position(|&byte| byte == 0x15).unwrap() + 4 + 3;
    assert_eq!((bytes[size - 1], bytes[size + 3] & 0x80), (0x15, 0), "{:?}", &bytes[..16]);
    bytes[size..size + 4].copy_from_slice(&[0xfe, 0xff, 0xff, 0x7f]);
    case("a.parquet", &bytes).fails(0, &["the page at byte 4 says", "unpack to 134217727"]);
}

#[test]
fn rows_have_weights() {
    let weights = |name: &str, content: &str, task| {
        let case = case(name, content).with(|o| (o.task, o.weight_column) = (task, Some("w".into())));
        case.load().unwrap().examples.iter().map(|example| example.weight).collect::<Vec<_>>()
    };
    let rows = "{\"prompt\":\"a\",\"completion\":\"b\",\"w\":0.5}\n{\"prompt\":\"a\",\"completion\":\"b\",\"w\":2}\n";
    assert_eq!(weights("a.jsonl", rows, Task::Lm), [Some(0.5), Some(2.0)]);
    assert_eq!(weights("a.csv", "text,label,w\nx,1.5,0\n", Task::Regression), [Some(0.0)]);
    let pair = "{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\",\"w\":3}";
    assert_eq!(weights("a.jsonl", pair, Task::Preference), [Some(3.0)]);
    for (row, words) in [
        (r#"{"text":"a"}"#, "\"w\" is missing, which `weight_column` names"),
        (r#"{"text":"a","w":-1}"#, "expected a weight from 0"),
        (r#"{"text":"a","w":"much"}"#, "expected a number"),
    ] {
        case("a.jsonl", row).with(|o| o.weight_column = Some("w".into())).fails(1, &[words]);
    }
}

/// Turns that say of themselves whether they are trained, and the choice of the last one.
#[test]
fn turns_are_trained_or_not() {
    let row = |marks: [&str; 2]| {
        let [first, second] = marks;
        format!(
            r#"{{"messages":[{{"role":"user","content":"u"}},{{"role":"assistant","content":"aa"{first}}},{{"role":"user","content":"v"}},{{"role":"assistant","content":"bb"{second}}}]}}"#
        )
    };
    let learned = |rows: &str, which: TrainOnTurns| -> Result<Vec<String>, String> {
        let data =
            case("a.jsonl", rows).with(|o| o.train_on_turns = which).load().map_err(|e| e.to_string())?;
        let text = |example: Example| {
            let learned = example.tokens.iter().zip(&example.loss_mask).filter(|(_, mask)| **mask);
            learned.map(|(token, _)| *token as u8 as char).collect()
        };
        Ok(data.examples.iter().map(text).collect())
    };
    let all = |marks| learned(&row(marks), TrainOnTurns::All);
    assert_eq!(all(["", ""]).unwrap(), ["aabb"]);
    assert_eq!(all([r#","weight":0"#, r#","weight":1"#]).unwrap(), ["bb"]);
    assert_eq!(all([r#","train":true"#, r#","train":false"#]).unwrap(), ["aa"]);
    assert_eq!(all([r#","training":false"#, ""]).unwrap(), ["bb"]);
    assert_eq!(learned(&row(["", ""]), TrainOnTurns::Last).unwrap(), ["bb"]);
    assert_eq!(learned(&row(["", r#","weight":0"#]), TrainOnTurns::Last).unwrap(), ["aa"]);
    let error = all([r#","weight":0"#, r#","weight":0"#]).unwrap_err();
    assert!(error.contains("no turn of the assistant to learn"), "{error}");
    let error = all([r#","weight":0.5"#, ""]).unwrap_err();
    assert!(error.contains("\"weight\" of turn 2 is 0.5, expected 0 or 1"), "{error}");
    let sharegpt = r#"{"conversations":[{"from":"human","value":"u"},{"from":"gpt","value":"aa","weight":0},{"from":"gpt","value":"bb"}]}"#;
    assert_eq!(learned(sharegpt, TrainOnTurns::All).unwrap(), ["bb"]);
    let user =
        r#"{"messages":[{"role":"user","content":"u","train":true},{"role":"assistant","content":"aa"}]}"#;
    assert!(learned(user, TrainOnTurns::All).unwrap_err().contains("`loss_on_prompt` only"));
}
