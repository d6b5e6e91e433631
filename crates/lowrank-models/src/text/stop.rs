//! Texts that end an answer.

/// Holds back text that may be the beginning of a stop string.
#[derive(Clone, Debug, Default)]
pub struct StopFilter {
    stop: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopFilter {
    /// A filter that ends at the first of `stop`, which is no part of the answer.
    pub fn new(stop: &[String]) -> Self {
        let stop = stop.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stop, ..Self::default() }
    }

    /// Takes more text; gives the part of the answer that is now certain.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        if let Some(at) = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        // The longest end of the text that begins a stop string stays.
        let begins = |at: &usize| self.stop.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let keep = self.held.char_indices().map(|(at, _)| at).find(begins).unwrap_or(self.held.len());
        self.held.drain(..keep).collect()
    }

    /// The rest of an answer that no stop string ended.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Whether a stop string ended the answer.
    pub fn stopped(&self) -> bool {
        self.stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stop: &[&str], pieces: &[&str]) -> (String, Vec<String>) {
        let stop: Vec<String> = stop.iter().map(ToString::to_string).collect();
        let mut filter = StopFilter::new(&stop);
        let mut shown: Vec<String> = pieces.iter().map(|piece| filter.push(piece)).collect();
        shown.push(filter.finish());
        shown.retain(|text| !text.is_empty());
        (shown.concat(), shown)
    }

    #[test]
    fn stop_strings_end_the_text_even_across_pieces() {
        assert_eq!(run(&["\n\n"], &["one\n", "two\n", "\nthree"]).0, "one\ntwo");
        assert_eq!(run(&["END", "ENOUGH"], &["a EN", "OU", "GH b"]).0, "a ");
        assert_eq!(run(&["END"], &["a E", "N"]).0, "a EN");
        assert_eq!(run(&[], &["é", "è"]).1, ["é", "è"]);
        assert_eq!(run(&["x"], &["héllo ", "wörld"]).0, "héllo wörld");
        assert_eq!(run(&["", "x"], &["ax", "b"]).0, "a");
    }

    #[test]
    fn certain_text_is_shown_at_once() {
        assert_eq!(run(&["STOP"], &["a", "S", "o"]).1, ["a", "So"]);
    }
}
