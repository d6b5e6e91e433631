//! The decoder: requests that join, are computed together step by step, and leave.

use std::collections::VecDeque;

use lowrank_engine::{ActiveAdapters, Device, Params};
use rayon::prelude::*;

use super::job::Job;
use super::lanes::{Lane, Lanes, PREFILL_CHUNK, Pass};
use super::request::{Event, Finish, Request, RequestAdapter, RequestId, Strategy};
use super::search::Decoded;
use crate::model::Model;
use crate::{Error, Result};

/// What a decoder may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecoderOptions {
    /// Rows (tokens of prompts and texts) of the cache at most. `usize::MAX`: as many as requests need.
    pub cache_rows: usize,
    /// Tokens of prompts that one step computes at most: texts go on between the chunks of a long prompt.
    pub prefill_chunk: usize,
}

impl Default for DecoderOptions {
    /// No bound on rows; 512 tokens a chunk, enough for full speed.
    fn default() -> Self {
        Self { cache_rows: usize::MAX, prefill_chunk: PREFILL_CHUNK }
    }
}

/// Requests over one base model with its adapters.
pub struct Decoder<'m> {
    lanes: Lanes<'m>,
    options: DecoderOptions,
    /// In the order they joined.
    jobs: Vec<Job>,
    /// Sequences whose rows are kept, oldest first.
    kept: VecDeque<Kept>,
    /// What is said in the next step.
    events: Vec<(RequestId, Event)>,
    next: u64,
}

/// A sequence whose keys and values are kept, with what they were computed under.
struct Kept {
    tokens: Vec<u32>,
    /// [`RequestAdapter::contents`], of a request that had an adapter.
    contents: Option<u64>,
    lane: Lane,
}

/// Lengths that follow from a request.
struct Plan {
    /// Virtual tokens, then the prompt.
    tokens: Vec<u32>,
    /// Tokens of a text at most.
    limit: usize,
    /// Texts followed at once.
    branches: usize,
}

impl Plan {
    /// Rows of the prompt's lane at most.
    fn prompt_rows(&self) -> usize {
        // The only text goes on in the prompt's lane. The last token of a text is never fed.
        let own = if self.branches == 1 { self.limit.saturating_sub(1) } else { 0 };
        self.tokens.len().saturating_add(own)
    }

    /// Rows of all lanes at most.
    fn rows(&self) -> usize {
        let branches = if self.branches == 1 { 0 } else { self.branches };
        self.prompt_rows().saturating_add(branches.saturating_mul(self.limit.saturating_sub(1)))
    }
}

impl<'m> Decoder<'m> {
    /// A decoder on `model` with the adapters `adapters` (whose values are in `params`).
    ///
    /// # Errors
    /// Where the model has no language-model head.
    pub fn new(
        model: &'m dyn Model,
        device: &'m Device,
        params: &'m Params,
        adapters: &ActiveAdapters,
        options: DecoderOptions,
    ) -> Result<Self> {
        let lanes = Lanes::new(model, device, params, adapters, options.cache_rows)?;
        let (jobs, kept, events) = (Vec::new(), VecDeque::new(), Vec::new());
        Ok(Self { lanes, options, jobs, kept, events, next: 0 })
    }

    /// From now on each request has the adapter that it names among those of the routed set `adapters` (whose values are in
    /// the set), or the base alone. Requests that go on must find theirs at the same place.
    ///
    /// # Panics
    /// Where a request joined before the first set: it has no adapter of its own.
    pub fn set_adapters(&mut self, adapters: ActiveAdapters) {
        assert!(
            self.lanes.is_routed() || self.jobs.is_empty() && self.kept.is_empty(),
            "requests have adapters or not"
        );
        self.lanes.route(adapters);
    }

    /// Rows of the cache that a request needs at most: `P + n - 1` for a prompt of `P` tokens and one text of `n`,
    /// `P + c (n - 1)` for `c` samples or beams.
    ///
    /// # Errors
    /// Where the request makes no sense for this model.
    pub fn rows_needed(&self, request: &Request) -> Result<usize> {
        Ok(self.plan(request)?.rows())
    }

    /// Bytes of a row of the cache: keys and values of all layers in f32.
    pub fn row_bytes(&self) -> usize {
        self.lanes.row_bytes()
    }

    /// Rows of the cache that no request may come to use. Those kept for later prompts count as free.
    pub fn free_rows(&self) -> usize {
        let kept = self.kept.iter().map(|kept| self.lanes.len(&kept.lane)).sum::<usize>();
        self.lanes.rows.capacity().saturating_sub(self.lanes.rows.committed() - kept)
    }

    /// Whether no request is here.
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.events.is_empty()
    }

    /// Accepts a request. All rows that it may need are set aside, so that it never fails on its way.
    ///
    /// # Errors
    /// Where the request makes no sense for this model ([`Error::Request`]) or needs more rows than are free
    /// ([`Error::NoRoom`]).
    pub fn join(&mut self, request: &Request) -> Result<RequestId> {
        let plan = self.plan(request)?;
        let (needed, free) = (plan.rows(), self.free_rows());
        if needed > free {
            return Err(Error::NoRoom { needed, free, capacity: self.lanes.rows.capacity() });
        }
        let id = RequestId(self.next);
        self.next += 1;
        if plan.limit == 0 {
            match request.strategy {
                Strategy::Sample(_) => {
                    let finished = |choice| (id, Event::Finished { choice, reason: Finish::Length });
                    self.events.extend((0..request.choices).map(finished));
                }
                Strategy::Search(_) => self.events.push((id, Event::Found(Decoded::default()))),
            }
            return Ok(id);
        }
        let known = self.take_kept(&plan.tokens, request.adapter);
        let reused = known.as_ref().map_or(0, |(_, lane)| self.lanes.len(lane));
        let capacity = self.lanes.rows.capacity();
        while self.lanes.rows.committed() - reused > capacity - needed && !self.kept.is_empty() {
            self.drop_oldest_kept();
        }
        let prompt = match known {
            Some((len, lane)) => {
                self.lanes.truncate(&lane, len, plan.prompt_rows());
                lane
            }
            None => self.lanes.open(plan.prompt_rows(), request.adapter.map(|adapter| adapter.index)),
        };
        let virtual_tokens = plan.tokens.len() - request.prompt.len();
        let job = Job::new(id, request, plan.tokens, virtual_tokens, plan.limit, prompt, &mut self.lanes);
        self.jobs.push(job);
        Ok(id)
    }

    /// Ends a request, of which nothing more is heard. Its rows are free.
    pub fn leave(&mut self, id: RequestId) {
        self.events.retain(|(of, _)| *of != id);
        if let Some(at) = self.jobs.iter().position(|job| job.id == id) {
            let job = self.jobs.remove(at);
            self.retire(job);
        }
    }

    /// Ends one of a request's sampled texts, of which nothing more is heard.
    pub fn end_choice(&mut self, id: RequestId, choice: usize) {
        let same = |event: &Event| match event {
            Event::Token { choice: of, .. } | Event::Finished { choice: of, .. } => *of == choice,
            Event::Found(_) | Event::NotFinite => false,
        };
        self.events.retain(|(of, event)| *of != id || !same(event));
        if let Some(at) = self.jobs.iter().position(|job| job.id == id) {
            self.jobs[at].end(choice);
            self.jobs[at].free_ended(&mut self.lanes);
            if self.jobs[at].is_done() {
                self.leave(id);
            }
        }
    }

    /// Tokens of the request's prompt whose keys and values would be used again if it joined now.
    pub fn cached(&self, request: &Request) -> usize {
        self.plan(request)
            .ok()
            .and_then(|plan| self.find_kept(&plan.tokens, request.adapter))
            .map_or(0, |(_, len)| len)
    }

    /// Frees the rows that are kept under adapter contents that no later request has.
    pub fn forget(&mut self, contents: u64) {
        let (forgotten, kept): (Vec<Kept>, Vec<Kept>) =
            self.kept.drain(..).partition(|kept| kept.contents == Some(contents));
        self.kept = kept.into();
        forgotten.into_iter().for_each(|kept| self.lanes.close(kept.lane));
    }

    /// Frees the rows that are kept for later prompts.
    pub fn drop_kept(&mut self) {
        while !self.kept.is_empty() {
            self.drop_oldest_kept();
        }
    }

    /// One forward pass: the newest token of every text that goes on, and the next chunk of prompts.
    pub fn step(&mut self) -> Vec<(RequestId, Event)> {
        let mut events = std::mem::take(&mut self.events);
        let mut left = self.options.prefill_chunk.max(1);
        let mut take = |job: &Job, lanes: &Lanes<'_>| {
            let take = job.waiting(lanes).min(left);
            left -= take;
            take
        };
        let takes: Vec<usize> = self.jobs.iter().map(|job| take(job, &self.lanes)).collect();
        for (job, take) in self.jobs.iter_mut().zip(&takes) {
            job.reserve(*take, &mut self.lanes);
        }
        let mut pass = Pass::default();
        let mut rows = Vec::new();
        for (job, take) in self.jobs.iter().zip(&takes) {
            rows.push(job.append(*take, &mut pass, &mut self.lanes));
        }
        if pass.is_empty() {
            return events;
        }
        let logits = self.lanes.run(pass);
        let vocab = self.lanes.vocab();
        let mut rest = &logits[..];
        let mut parts = Vec::new();
        for (job, rows) in self.jobs.iter_mut().zip(rows) {
            let (own, others) = rest.split_at(rows * vocab);
            rest = others;
            if rows > 0 {
                parts.push((job, own));
            }
        }
        let advance = |(job, logits): (&mut Job, &[f32])| {
            let id = job.id;
            job.advance(logits, vocab).into_iter().map(move |event| (id, event)).collect::<Vec<_>>()
        };
        if parts.len() > 1 {
            let said: Vec<_> = parts.into_par_iter().map(advance).collect();
            events.extend(said.into_iter().flatten());
        } else {
            events.extend(parts.into_iter().flat_map(advance));
        }
        for job in std::mem::take(&mut self.jobs) {
            if job.is_done() {
                self.retire(job);
            } else {
                self.jobs.push(job);
            }
        }
        for job in &mut self.jobs {
            job.free_ended(&mut self.lanes);
        }
        events
    }

    /// Continues all requests to their ends, at most `at_once` of them at a time and as many as there is room for. New
    /// ones join when half of these have ended: prompts are computed faster several at a time.
    /// `done` gets each request's number and texts as soon as they have ended.
    ///
    /// # Errors
    /// As [`Decoder::join`].
    pub fn complete(
        &mut self,
        requests: &[Request],
        at_once: usize,
        mut done: impl FnMut(usize, Vec<Decoded>) -> Result<()>,
    ) -> Result<()> {
        let mut waiting = requests.iter().enumerate().peekable();
        // Number, texts, and how many have not ended.
        let mut going: Vec<(RequestId, usize, Vec<Decoded>, usize)> = Vec::new();
        loop {
            let refill = going.len() <= at_once / 2;
            while refill
                && going.len() < at_once.max(1)
                && let Some((number, request)) = waiting.peek().copied()
            {
                match self.join(request) {
                    Ok(id) => {
                        let texts =
                            if matches!(request.strategy, Strategy::Search(_)) { 1 } else { request.choices };
                        going.push((id, number, vec![Decoded::default(); texts], texts));
                        waiting.next();
                    }
                    Err(Error::NoRoom { .. }) if !going.is_empty() => break,
                    Err(e) => return Err(e),
                }
            }
            if going.is_empty() {
                return Ok(());
            }
            for (id, event) in self.step() {
                let Some(at) = going.iter().position(|(of, ..)| *of == id) else { continue };
                let (_, _, texts, left) = &mut going[at];
                match event {
                    Event::Token { choice, token, .. } => texts[choice].tokens.push(token),
                    Event::Finished { .. } => *left -= 1,
                    Event::Found(text) => {
                        texts[0] = text;
                        *left = 0;
                    }
                    Event::NotFinite => return Err(Error::NotFinite),
                }
                if *left == 0 {
                    let (_, number, texts, _) = going.remove(at);
                    done(number, texts)?;
                }
            }
        }
    }

    /// The texts behind one prompt.
    ///
    /// # Errors
    /// As [`Decoder::join`].
    pub fn generate(&mut self, request: &Request) -> Result<Vec<Decoded>> {
        let mut out = Vec::new();
        self.complete(std::slice::from_ref(request), 1, |_, texts| {
            out = texts;
            Ok(())
        })?;
        Ok(out)
    }

    fn plan(&self, request: &Request) -> Result<Plan> {
        let wrong = |what: String| Err(Error::Request(what));
        match &request.strategy {
            Strategy::Sample(sampling) => sampling.check()?,
            Strategy::Search(search) => search.check()?,
        }
        if request.choices == 0 {
            return wrong("choices must be at least 1".into());
        }
        if request.prompt.is_empty() {
            return wrong("the prompt is empty: it must have at least one token".into());
        }
        let vocab = self.lanes.vocab();
        if let Some(token) = request.prompt.iter().find(|token| **token as usize >= vocab) {
            return wrong(format!("the prompt has token {token}; the vocabulary has {vocab}"));
        }
        let virtual_tokens = match (self.lanes.is_routed(), request.adapter) {
            (false, None) => self.lanes.virtual_tokens(),
            (true, adapter) => adapter.map_or(0, |adapter| adapter.virtual_tokens),
            (false, Some(_)) => return wrong("this decoder has one adapter for all requests".into()),
        };
        let (n, most) = (request.prompt.len(), self.lanes.position_limit(virtual_tokens));
        if n > most {
            return wrong(format!("the prompt has {n} tokens; the model's positions end at {most}"));
        }
        let tokens = [&self.lanes.virtual_ids(virtual_tokens), &request.prompt[..]].concat();
        let limit = request.max_new_tokens.min(most.saturating_add(1) - n);
        Ok(Plan { tokens, limit, branches: request.branches() })
    }

    /// Of the sequences kept under the same adapter the one that begins like `tokens` for longest, and for how many tokens:
    /// at least one token of the prompt has to be computed, to give the logits of what follows.
    fn find_kept(&self, tokens: &[u32], adapter: Option<RequestAdapter>) -> Option<(usize, usize)> {
        let long = |tokens: &[u32]| self.lanes.switch().is_some_and(|switch| tokens.len() > switch);
        let common = |kept: &[u32]| kept.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        // Where a long sequence is rotated otherwise, its keys are none of a short one.
        let same = |kept: &Kept| {
            kept.contents == adapter.map(|adapter| adapter.contents) && long(&kept.tokens) == long(tokens)
        };
        let usable = |kept: &Kept| if same(kept) { common(&kept.tokens).min(tokens.len() - 1) } else { 0 };
        let lengths = self.kept.iter().map(usable);
        lengths.enumerate().max_by_key(|(_, len)| *len).filter(|(_, len)| *len > 0)
    }

    /// Takes that sequence and its length.
    fn take_kept(&mut self, tokens: &[u32], adapter: Option<RequestAdapter>) -> Option<(usize, Lane)> {
        let (at, len) = self.find_kept(tokens, adapter)?;
        let mut lane = self.kept.remove(at)?.lane;
        self.lanes.set_adapter(&mut lane, adapter.map(|adapter| adapter.index));
        Some((len, lane))
    }

    fn drop_oldest_kept(&mut self) {
        if let Some(kept) = self.kept.pop_front() {
            self.lanes.close(kept.lane);
        }
    }

    fn retire(&mut self, job: Job) {
        let contents = job.adapter.map(|adapter| adapter.contents);
        if let Some((tokens, lane)) = job.leave(&mut self.lanes) {
            self.lanes.truncate(&lane, tokens.len(), tokens.len());
            self.kept.push_back(Kept { tokens, contents, lane });
        }
    }
}
