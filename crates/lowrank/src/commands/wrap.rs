//! Text in lines of a terminal's width, broken between words.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Wraps a text that comes piece by piece. A word is held until it is whole.
pub struct Wrap {
    width: usize,
    column: usize,
    /// Blanks since the last word.
    gap: String,
    word: String,
}

impl Wrap {
    /// Lines of at most `width` columns.
    pub fn new(width: usize) -> Self {
        Self { width: width.max(1), column: 0, gap: String::new(), word: String::new() }
    }

    /// What can be shown after this piece of text.
    pub fn push(&mut self, text: &str) -> String {
        let mut out = String::new();
        for c in text.chars() {
            match c {
                '\n' => {
                    self.end_word(&mut out);
                    self.gap.clear();
                    self.column = 0;
                    out.push('\n');
                }
                // A space that does not break is part of a word.
                c if c.is_whitespace() && c != '\u{a0}' => {
                    self.end_word(&mut out);
                    self.gap.push(c);
                }
                c => {
                    self.word.push(c);
                    // Between characters of two columns (Chinese, Japanese), a line may break.
                    if c.width() == Some(2) {
                        self.end_word(&mut out);
                    }
                }
            }
        }
        out
    }

    /// What was held.
    pub fn finish(&mut self) -> String {
        let mut out = String::new();
        self.end_word(&mut out);
        out
    }

    fn end_word(&mut self, out: &mut String) {
        if self.word.is_empty() {
            return;
        }
        let (gap, word) = (self.gap.width(), self.word.width());
        if self.column > 0 && self.column + gap + word > self.width {
            out.push('\n');
            self.column = 0;
        } else {
            out.push_str(&self.gap);
            self.column += gap;
        }
        out.push_str(&self.word);
        self.column += word;
        // The terminal itself breaks a word that is longer than a line.
        if self.column > self.width {
            self.column = (self.column - 1) % self.width + 1;
        }
        self.gap.clear();
        self.word.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text in pieces of every length gives the same.
    fn wrapped(width: usize, text: &str) -> String {
        let by = |length: usize| {
            let mut wrap = Wrap::new(width);
            let chars: Vec<char> = text.chars().collect();
            let mut out: String =
                chars.chunks(length).map(|piece| wrap.push(&piece.iter().collect::<String>())).collect();
            out += &wrap.finish();
            out
        };
        let whole = by(1000);
        for length in 1..6 {
            assert_eq!(by(length), whole);
        }
        whole
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrapped(10, "one two three four"), "one two\nthree four");
        assert_eq!(wrapped(11, "one two thr four"), "one two thr\nfour");
        assert_eq!(wrapped(10, "a\n\n  indented text"), "a\n\n  indented\ntext");
        assert_eq!(wrapped(80, "as  it is \n"), "as  it is\n");
    }

    #[test]
    fn words_longer_than_a_line_stay_whole() {
        // The terminal shows `abcde`, `fghij`, `kl mn`.
        assert_eq!(wrapped(5, "see abcdefghijkl mn op"), "see\nabcdefghijkl mn\nop");
    }

    #[test]
    fn wide_characters_take_two_columns_and_break_anywhere() {
        assert_eq!(wrapped(6, "日本語日本語"), "日本語\n日本語");
        assert_eq!(wrapped(6, "né né né"), "né né\nné");
    }

    #[test]
    fn what_is_certain_is_shown_at_once() {
        let mut wrap = Wrap::new(20);
        assert_eq!(
            (wrap.push("one tw"), wrap.push("o "), wrap.finish()),
            ("one".into(), " two".into(), String::new())
        );
    }
}
