//! The keys of clients.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use axum::http::{HeaderMap, HeaderValue, header};

use crate::error::{Error, Result};
use crate::options::ServeOptions;

/// The keys, and how many requests of each are here.
pub struct Access {
    keys: Vec<String>,
    most: usize,
    here: Mutex<HashMap<usize, usize>>,
}

impl Access {
    /// The keys of the options.
    pub fn new(options: &ServeOptions) -> Self {
        Self { keys: options.api_keys.clone(), most: options.max_requests_per_key, here: Mutex::default() }
    }

    /// The place of the key that the headers have. All keys are compared, in a time that does not depend on the bytes.
    pub fn find(&self, headers: &HeaderMap) -> Option<usize> {
        let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
        let same = |key: &String| {
            let key = key.as_bytes();
            let differ = given.iter().zip(key).fold(0, |differ, (a, b)| differ | std::hint::black_box(a ^ b));
            differ == 0 && given.len() == key.len()
        };
        self.keys.iter().enumerate().fold(None, |found, (at, key)| if same(key) { Some(at) } else { found })
    }

    /// Whether no key is needed.
    pub fn is_open(&self) -> bool {
        self.keys.is_empty()
    }

    /// Counts one more request of a key.
    ///
    /// # Errors
    /// Where it has as many as it may have.
    pub fn begin(&self, key: usize) -> Result<()> {
        let most = self.most;
        match self.change(key, |count| (most == 0 || count < most).then_some(count + 1)) {
            true => Ok(()),
            false => {
                Err(Error::busy(format!("this key has {most} requests already: wait for one of them to end")))
            }
        }
    }

    /// Counts one less.
    pub fn end(&self, key: usize) {
        self.change(key, |count| Some(count.saturating_sub(1)));
    }

    fn change(&self, key: usize, by: impl FnOnce(usize) -> Option<usize>) -> bool {
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        let count = here.entry(key).or_default();
        by(*count).map(|new| *count = new).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_whole() {
        let options =
            ServeOptions { api_keys: vec!["one".into(), "another".into()], ..ServeOptions::default() };
        let access = Access::new(&options);
        let find = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(text).unwrap());
            access.find(&headers)
        };
        assert_eq!([find("Bearer one"), find("Bearer another")], [Some(0), Some(1)]);
        for wrong in ["", "one", "Bearer ", "Bearer on", "Bearer onex", "Bearer two", "bearer one"] {
            assert_eq!(find(wrong), None, "{wrong}");
        }
        assert_eq!(access.find(&HeaderMap::new()), None);
    }
}
