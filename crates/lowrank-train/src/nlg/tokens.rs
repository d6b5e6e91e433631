//! Text to words, in the two ways that the metrics were defined with.

use std::sync::LazyLock;

use regex::{Captures, Regex};

/// The rules of mteval-v13a for Western languages, in their order: most symbols stand alone; a period or a
/// comma does where a digit is missing on one side; so does a dash after a digit.
static RULES_13A: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
    let regex = |rule| Regex::new(rule).expect("a fixed expression");
    [
        (regex(r"[{-~\[-` -&(-+:-@/]"), " $0 "),
        (regex(r"([^0-9])([.,])"), "$1 $2 "),
        (regex(r"([.,])([^0-9])"), " $1 $2"),
        (regex(r"([0-9])(-)"), "$1 $2 "),
    ]
});

/// Words as mteval-v13a (and sacreBLEU's `13a`) cuts them.
pub fn words_13a(text: &str) -> Vec<String> {
    let mut line = text.trim_end().replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (entity, character) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        line = line.replace(entity, character);
    }
    line = format!(" {line} ");
    for (rule, replacement) in &*RULES_13A {
        line = rule.replace_all(&line, *replacement).into_owned();
    }
    line.split_whitespace().map(str::to_owned).collect()
}

/// One token of [`words_ptb`], the earliest alternative that fits: an abbreviation with its period, an
/// ellipsis or dash, a run of letters and digits with marks inside it, anything else by itself.
static TOKEN_PTB: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"(?P<abbreviation>(?:\p{L}\.)+|(?:adv|ave|blvd|corp|dr|etc|gov|inc|jr|ltd|mr|mrs|ms|mt|",
        r"prof|sen|sr|st|syst|vs)\.)(?:[\s,;:]|$)",
        r"|\.\.\.+|--+",
        r"|-?\d+(?:[.,]\d+)+|-\d+",
        r"|[\p{L}\p{N}\p{M}]+(?:[-_./&'’][\p{L}\p{N}\p{M}]+)*",
        r"|\S",
    ))
    .expect("a fixed expression")
});

/// English contractions: what stands before the mark and what goes with it.
static CONTRACTION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(.+?)(n['’]t|['’](?:s|re|ve|ll|d|m))$").expect("a fixed expression"));

/// Tokens that COCO's caption evaluation leaves out.
const PUNCTUATION: [&str; 13] = ["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"];

/// Words in lower case, without punctuation, about as the Stanford PTB tokenizer cuts them in COCO's caption
/// evaluation: contractions are two words, a pound sign is `#`, brackets are `-lrb-` and `-rrb-`. It knows far
/// fewer abbreviations: of E2E's 9365 references in the development and test sets 9 differ, of WebNLG's 2268 in the
/// development set 44.
pub fn words_ptb(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let mut words = Vec::new();
    for found in TOKEN_PTB.captures_iter(&lower) {
        push_ptb(&mut words, &found);
    }
    words.retain(|word| !PUNCTUATION.contains(&word.as_str()));
    words
}

fn push_ptb(words: &mut Vec<String>, found: &Captures<'_>) {
    if let Some(abbreviation) = found.name("abbreviation") {
        words.push(abbreviation.as_str().to_owned());
        return;
    }
    let token = &found[0];
    if let Some(parts) = CONTRACTION.captures(token) {
        words.extend([parts[1].to_owned(), parts[2].replace('’', "'")]);
        return;
    }
    words.push(match token {
        "(" => "-lrb-".into(),
        ")" => "-rrb-".into(),
        "[" => "-lsb-".into(),
        "]" => "-rsb-".into(),
        "{" => "-lcb-".into(),
        "}" => "-rcb-".into(),
        "£" => "#".into(),
        "€" => "$".into(),
        "\"" | "“" | "”" => "''".into(),
        "‘" | "’" => "'".into(),
        "–" | "—" => "--".into(),
        "…" => "...".into(),
        other if other.starts_with("...") => "...".into(),
        other if other.starts_with("--") => "--".into(),
        other => other.to_owned(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_as_mteval() {
        for (text, words) in [
            ("Hello, world.", "Hello , world ."),
            ("price: £20-25 (3.5 out of 5,000)", "price : £20 - 25 ( 3.5 out of 5,000 )"),
            ("don't &amp; won't -\n joined\nlines", "don't & won't joined lines"),
            ("a.b 1.b a.1 ,5 5,", "a . b 1 . b a . 1 , 5 5 ,"),
            ("", ""),
        ] {
            assert_eq!(words_13a(text).join(" "), words, "{text}");
        }
    }

    #[test]
    fn cuts_about_as_the_penn_treebank() {
        for (text, words) in [
            ("It's family-friendly, isn't it?", "it 's family-friendly is n't it"),
            ("Between £20-25 (cheap)...", "between # 20-25 -lrb- cheap -rrb-"),
            ("Dr. A. Smith of the U.S. has 2,702.0 m - no.", "dr. a. smith of the u.s. has 2,702.0 m no"),
            ("\"Quoted\"; it ended. Café", "quoted it ended café"),
            ("?!", ""),
        ] {
            assert_eq!(words_ptb(text).join(" "), words, "{text}");
        }
    }
}
