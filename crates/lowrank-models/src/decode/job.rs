//! A request on its way: its prompt's lane, then one for each text that is followed.

use super::lanes::{Lane, Lanes, Pass};
use super::request::{Constrained, Constraint, Event, Finish, Request, RequestAdapter, RequestId, Strategy};
use super::sampling::{Logprobs, Sampling};
use super::search::Search;

/// A request that joined.
pub(super) struct Job {
    pub id: RequestId,
    pub keep: bool,
    pub adapter: Option<RequestAdapter>,
    /// Virtual tokens, then the prompt.
    tokens: Vec<u32>,
    virtual_tokens: usize,
    prompt: Lane,
    /// Of each text; none where the only one goes on in the prompt's lane.
    lanes: Vec<Option<Lane>>,
    text: Text,
    /// Whether a logit was NaN.
    failed: bool,
}

/// What is chosen.
enum Text {
    Samples(Samples),
    Search(Search),
}

/// Texts sampled for one prompt.
struct Samples {
    sampling: Sampling,
    stop_tokens: Vec<u32>,
    limit: usize,
    logprobs: Option<usize>,
    choices: Vec<Choice>,
}

#[derive(Default)]
struct Choice {
    tokens: Vec<u32>,
    ended: bool,
    constraint: Option<Box<dyn Constraint>>,
}

impl Job {
    /// A request in the lanes it may need: `prompt` has the first of `tokens` already, whose first `virtual_tokens` are
    /// no words. Each text has at most `limit` tokens.
    pub fn new(
        id: RequestId,
        request: &Request,
        tokens: Vec<u32>,
        virtual_tokens: usize,
        limit: usize,
        prompt: Lane,
        lanes: &mut Lanes<'_>,
    ) -> Self {
        let branches = request.branches();
        let branches = if branches == 1 { 0 } else { branches };
        // The last token of a text is never fed.
        let lanes = (0..branches).map(|_| Some(lanes.branch(&prompt, limit - 1))).collect();
        let stop_tokens = request.stop_tokens.clone();
        let text = match &request.strategy {
            Strategy::Sample(sampling) => Text::Samples(Samples {
                sampling: sampling.clone(),
                stop_tokens,
                limit,
                logprobs: request.logprobs,
                choices: (0..request.choices).map(|_| Choice::new(request.constraint.as_ref())).collect(),
            }),
            Strategy::Search(how) => Text::Search(Search::new(how, limit, &stop_tokens)),
        };
        let (keep, adapter) = (request.keep, request.adapter);
        Self { id, keep, adapter, tokens, virtual_tokens, prompt, lanes, text, failed: false }
    }

    /// Tokens of the prompt that are still to be fed.
    pub fn waiting(&self, lanes: &Lanes<'_>) -> usize {
        self.tokens.len().saturating_sub(lanes.len(&self.prompt))
    }

    /// Whether nothing goes on.
    pub fn is_done(&self) -> bool {
        self.failed
            || match &self.text {
                Text::Samples(samples) => samples.choices.iter().all(|choice| choice.ended),
                Text::Search(search) => search.is_done(),
            }
    }

    /// Makes room for what is fed next: `take` tokens of the prompt, or the newest token of each text.
    pub fn reserve(&mut self, take: usize, lanes: &mut Lanes<'_>) {
        if self.waiting(lanes) > 0 {
            return lanes.reserve(&self.prompt, take);
        }
        if let Text::Search(search) = &mut self.text
            && !self.lanes.is_empty()
        {
            let of = |lane: usize| self.lanes[lane].as_ref().expect("open as long as the search");
            search.settle(|from, to| lanes.copy(of(from), of(to)));
        }
        self.cross(lanes);
        for (lane, _) in self.newest() {
            lanes.reserve(self.lane(lane), 1);
        }
    }

    /// Computes all keys again where the newest tokens take the texts, which are equally long, beyond the length from
    /// which on their rope is another.
    fn cross(&self, lanes: &mut Lanes<'_>) {
        let newest = self.newest();
        let Some((first, _)) = newest.first() else { return };
        let length = lanes.len(self.lane(*first)) + 1;
        if lanes.switch().is_none_or(|switch| length != switch + 1) {
            return;
        }
        lanes.clear(&self.prompt);
        lanes.refill(&self.prompt, &self.tokens, length);
        for (lane, tokens) in self.texts() {
            let lane = self.lane(lane);
            if !self.lanes.is_empty() {
                lanes.clear(lane);
            }
            lanes.refill(lane, &tokens[..tokens.len() - 1], length);
        }
    }

    /// Appends that to a pass; returns how many rows of logits are for this job.
    pub fn append(&self, take: usize, pass: &mut Pass, lanes: &mut Lanes<'_>) -> usize {
        let waiting = self.waiting(lanes);
        if waiting > 0 {
            let at = self.tokens.len() - waiting;
            if take > 0 {
                lanes.append(pass, &self.prompt, &self.tokens[at..at + take], self.tokens.len());
            }
            if take == waiting {
                pass.read_last();
            }
            return usize::from(take == waiting);
        }
        let newest = self.newest();
        for &(lane, token) in &newest {
            lanes.append(pass, self.lane(lane), &[token], 0);
            pass.read_last();
        }
        newest.len()
    }

    /// Goes one token further, given the logits `[rows, V]`.
    pub fn advance(&mut self, logits: &[f32], vocab: usize) -> Vec<Event> {
        if logits.iter().any(|logit| logit.is_nan()) {
            (self.failed, self.keep) = (true, false);
            return vec![Event::NotFinite];
        }
        let prompt = &self.tokens[self.virtual_tokens..];
        match &mut self.text {
            Text::Samples(samples) => samples.advance(prompt, logits, vocab),
            Text::Search(search) => {
                search.advance(prompt, logits);
                if search.is_done() { vec![Event::Found(search.best())] } else { Vec::new() }
            }
        }
    }

    /// Ends one text, of which nothing more is heard.
    pub fn end(&mut self, choice: usize) {
        if let Text::Samples(samples) = &mut self.text
            && let Some(choice) = samples.choices.get_mut(choice)
        {
            choice.ended = true;
        }
    }

    /// Frees the rows of texts that have ended.
    pub fn free_ended(&mut self, lanes: &mut Lanes<'_>) {
        let Text::Samples(samples) = &self.text else { return };
        for (lane, choice) in self.lanes.iter_mut().zip(&samples.choices) {
            if choice.ended
                && let Some(lane) = lane.take()
            {
                lanes.close(lane);
            }
        }
    }

    /// Frees everything but the rows of the prompt and the only text, if these are to be kept: returns their tokens.
    pub fn leave(mut self, lanes: &mut Lanes<'_>) -> Option<(Vec<u32>, Lane)> {
        let alone = self.lanes.is_empty();
        for lane in self.lanes.into_iter().flatten() {
            lanes.close(lane);
        }
        match self.text {
            Text::Samples(mut samples) if self.keep && alone => {
                self.tokens.append(&mut samples.choices[0].tokens);
                self.tokens.truncate(lanes.len(&self.prompt));
                Some((self.tokens, self.prompt))
            }
            _ => {
                lanes.close(self.prompt);
                None
            }
        }
    }

    fn lane(&self, text: usize) -> &Lane {
        match self.lanes.get(text) {
            Some(lane) => lane.as_ref().expect("open as long as the text goes on"),
            None => &self.prompt,
        }
    }

    /// The newest token of every text that goes on, and the text's lane.
    fn newest(&self) -> Vec<(usize, u32)> {
        let newest = |(lane, tokens): (usize, &[u32])| (lane, *tokens.last().expect("a token was chosen"));
        self.texts().into_iter().map(newest).collect()
    }

    /// The lane and the chosen tokens of every text that goes on.
    fn texts(&self) -> Vec<(usize, &[u32])> {
        match &self.text {
            Text::Samples(samples) => {
                let all = samples.choices.iter().enumerate();
                all.filter(|(_, choice)| !choice.ended).map(|(i, choice)| (i, &choice.tokens[..])).collect()
            }
            Text::Search(search) => search.beams().iter().map(|beam| (beam.lane, &beam.tokens[..])).collect(),
        }
    }
}

impl Choice {
    fn new(constraint: Option<&Constrained>) -> Self {
        Self { constraint: constraint.map(|Constrained(constraint)| constraint.start()), ..Self::default() }
    }
}

impl Samples {
    fn advance(&mut self, prompt: &[u32], logits: &[f32], vocab: usize) -> Vec<Event> {
        let mut events = Vec::new();
        let going = self.choices.iter_mut().enumerate().filter(|(_, choice)| !choice.ended);
        // The logits behind the prompt are those of all its texts.
        for ((i, choice), logits) in going.zip(logits.chunks_exact(vocab).cycle()) {
            let seed = self.sampling.seed.wrapping_add(i as u64);
            let mut complete = false;
            let token = match &mut choice.constraint {
                None => self.sampling.choose(prompt, &choice.tokens, logits, seed),
                Some(constraint) => {
                    let mut allowed = logits.to_vec();
                    constraint.mask(&mut allowed);
                    let token = self.sampling.choose(prompt, &choice.tokens, &allowed, seed);
                    complete = constraint.accept(token);
                    token
                }
            };
            choice.tokens.push(token);
            let logprobs = self.logprobs.map(|count| Logprobs::new(logits, token, count));
            events.push(Event::Token { choice: i, token, logprobs });
            let reason = if complete || self.stop_tokens.contains(&token) {
                Finish::Stop
            } else if choice.tokens.len() == self.limit {
                Finish::Length
            } else {
                continue;
            };
            choice.ended = true;
            events.push(Event::Finished { choice: i, reason });
        }
        events
    }
}
