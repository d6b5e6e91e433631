//! Adapters by name.
//!
//! An adapter is known by its name and path, and loaded when it is first asked for. What is loaded has a place in the routed
//! set for as long as a request uses it. Loaded adapters stay within a budget of bytes: those that were used longest ago
//! and are not in use are evicted first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowrank_adapters::{AdapterSet, AdapterStore};
use lowrank_models::ChatTemplate;
use tokio::sync::Notify;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::host::{HeadModel, Host};
use crate::lease::{Chat, Lease, Loaded};
use crate::metrics::Metrics;
use crate::options::check_name;
use crate::random;

/// Adapters of a mixture at most.
const MAX_PARTS: usize = 16;
/// Entries of an adapters folder that are looked at.
const MAX_FOLDER: usize = 100_000;

/// What is known of an adapter.
#[derive(Clone, Debug)]
pub struct AdapterInfo {
    pub name: String,
    pub path: PathBuf,
    pub pinned: bool,
    /// Since when it is known, in seconds since 1970.
    pub created: u64,
    /// Method, rank and bytes, where it is loaded.
    pub loaded: Option<(String, Option<usize>, usize)>,
}

struct Entry {
    path: PathBuf,
    pinned: bool,
    created: u64,
    loaded: Option<Arc<Loaded>>,
    /// With its head, where it has one.
    head: Option<Arc<dyn HeadModel>>,
    /// When it was last asked for, in requests.
    used: u64,
    /// Whether it was found in the adapters folder.
    found: bool,
}

#[derive(Default)]
struct Inner {
    entries: BTreeMap<String, Entry>,
    /// By `name:weight` of each part.
    mixtures: BTreeMap<String, (Arc<Loaded>, u64)>,
    slots: Vec<Option<Arc<Loaded>>>,
    store: AdapterStore,
    clock: u64,
    next_contents: u64,
}

/// All adapters.
pub struct Registry {
    host: Arc<dyn Host>,
    engine: Engine,
    metrics: Arc<Metrics>,
    budget: usize,
    folder: Option<PathBuf>,
    inner: Mutex<Inner>,
    /// One adapter is read at a time.
    loading: tokio::sync::Mutex<()>,
    returned: Arc<Notify>,
}

impl Registry {
    /// No adapters but those of `folder`.
    pub fn new(
        host: Arc<dyn Host>,
        engine: Engine,
        metrics: Arc<Metrics>,
        budget: usize,
        folder: Option<PathBuf>,
    ) -> Self {
        let (inner, loading, returned) = Default::default();
        Self { host, engine, metrics, budget, folder, inner, loading, returned }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks into the adapters folder: what is new becomes known, what is gone is forgotten.
    pub fn scan(&self) {
        let Some(folder) = &self.folder else { return };
        let Ok(files) = std::fs::read_dir(folder) else { return };
        let mut here = BTreeMap::new();
        for file in files.take(MAX_FOLDER).flatten() {
            let path = file.path();
            let name = match path.is_dir() {
                true => path.join("adapter_config.json").exists().then(|| path.file_name()).flatten(),
                false => path.extension().is_some_and(|e| e == "gguf").then(|| path.file_stem()).flatten(),
            };
            let name = name.and_then(|name| name.to_str()).filter(|name| check_name(name).is_ok());
            if let Some(name) = name.filter(|name| *name != self.host.id()) {
                here.insert(name.to_owned(), path);
            }
        }
        let mut inner = self.lock();
        inner.entries.retain(|name, entry| !entry.found || here.contains_key(name));
        for (name, path) in here {
            inner.entries.entry(name).or_insert_with(|| Entry::new(path, false, true));
        }
        self.collect(&mut inner);
    }

    /// Makes an adapter known. Its files are read when it is first asked for, or now if `pinned`.
    ///
    /// # Errors
    /// Where the name is taken or cannot be one, or it is no adapter for this base.
    pub async fn add(self: &Arc<Self>, name: &str, path: &Path, pinned: bool) -> Result<()> {
        check_name(name).map_err(Error::request)?;
        if name == self.host.id() {
            return Err(Error::conflict(format!("{name:?} is the name of the base model")));
        }
        if self.lock().entries.contains_key(name) {
            return Err(Error::conflict(format!("there is an adapter {name:?} already: unload it first")));
        }
        let entry = Entry::new(path.to_owned(), pinned, false);
        self.lock().entries.insert(name.to_owned(), entry);
        let loaded = match self.host.has_head(path) {
            true => self.head(name).await.map(|_| ()),
            false => self.lease(name).await.map(|_| ()),
        };
        if loaded.is_err() {
            self.lock().entries.remove(name);
        }
        loaded
    }

    /// Makes an adapter known whose files are read when it is first asked for.
    pub fn offer(&self, name: &str, path: &Path) {
        self.lock()
            .entries
            .entry(name.to_owned())
            .or_insert_with(|| Entry::new(path.to_owned(), false, false));
    }

    /// Forgets an adapter. Requests that use it go on; returns when the last of them has ended.
    ///
    /// # Errors
    /// Where there is none of that name.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let entry = {
            let mut inner = self.lock();
            let known = inner.names(self.host.id());
            let entry = inner.entries.remove(name).ok_or_else(|| Error::no_model(name, &known))?;
            let uses =
                |key: &String| key.split(',').any(|part| part.rsplit_once('=').is_some_and(|p| p.0 == name));
            inner.mixtures.retain(|key, _| !uses(key));
            entry
        };
        let Some(loaded) = entry.loaded.map(|loaded| Arc::downgrade(&loaded)) else { return Ok(()) };
        loop {
            self.collect(&mut self.lock());
            if loaded.strong_count() == 0 {
                return Ok(());
            }
            // Leases that were returned meanwhile may have woken another waiter.
            let wait = std::time::Duration::from_millis(50);
            let _ = tokio::time::timeout(wait, self.returned.notified()).await;
        }
    }

    /// What is known of all adapters, by name.
    pub fn list(&self) -> Vec<AdapterInfo> {
        let info = |(name, entry): (&String, &Entry)| AdapterInfo {
            name: name.clone(),
            path: entry.path.clone(),
            pinned: entry.pinned,
            created: entry.created,
            loaded: entry.loaded.as_ref().map(|loaded| (loaded.kind.clone(), loaded.rank, loaded.bytes)),
        };
        self.lock().entries.iter().map(info).collect()
    }

    /// The adapter `name`, loaded.
    ///
    /// # Errors
    /// Where there is none, it cannot be read, or the budget is full of adapters in use.
    pub async fn lease(self: &Arc<Self>, name: &str) -> Result<Lease> {
        if let Some(lease) = self.loaded(name)? {
            return Ok(lease);
        }
        let _one = self.loading.lock().await;
        if let Some(lease) = self.loaded(name)? {
            return Ok(lease);
        }
        let path = self.lock().entries.get(name).map(|entry| entry.path.clone());
        let path = path.ok_or_else(|| self.unknown(name))?;
        let host = self.host.clone();
        let read = tokio::task::spawn_blocking(move || host.load_adapter(&path).map_err(|e| e.to_string()));
        let read = read.await.map_err(|e| Error::failed(format!("reading adapter {name:?} failed: {e}")))?;
        let set = read.map_err(|e| Error::request(format!("adapter {name:?}: {e}")))?;
        let mut inner = self.lock();
        let loaded = self.insert(&mut inner, set)?;
        self.metrics.adapter_loads.add(1);
        let now = inner.tick();
        // Where it was removed while it was read, this request is its last.
        if let Some(entry) = inner.entries.get_mut(name) {
            (entry.loaded, entry.used) = (Some(loaded.clone()), now);
        }
        Ok(self.lend(loaded))
    }

    /// Adapters with weights, as one.
    ///
    /// # Errors
    /// As [`Registry::lease`], and where they cannot be mixed.
    pub async fn mix(self: &Arc<Self>, parts: &[(String, f32)]) -> Result<Lease> {
        if let [(name, 1.0)] = parts {
            return self.lease(name).await;
        }
        if parts.len() > MAX_PARTS {
            return Err(Error::field("adapters", format!("a mixture has {MAX_PARTS} adapters at most")));
        }
        let mut leases = Vec::new();
        for (name, _) in parts {
            leases.push(self.lease(name).await?);
        }
        let contents = leases
            .iter()
            .zip(parts)
            .map(|(lease, (name, weight))| format!("{name}={weight:?}#{}", lease.loaded().contents));
        let key = contents.collect::<Vec<_>>().join(",");
        let mut inner = self.lock();
        let now = inner.tick();
        if let Some((loaded, used)) = inner.mixtures.get_mut(&key) {
            *used = now;
            return Ok(self.lend(loaded.clone()));
        }
        let keys: Vec<String> = leases.iter().map(|lease| lease.loaded().contents.to_string()).collect();
        let named: Vec<(&str, f32)> =
            keys.iter().zip(parts).map(|(key, (_, weight))| (key.as_str(), *weight)).collect();
        let mut set = inner.store.mix(&named).map_err(|e| Error::field("adapters", e.to_string()))?;
        set.config.peft_type = "MIXTURE".into();
        let loaded = self.insert(&mut inner, set)?;
        inner.mixtures.insert(key, (loaded.clone(), now));
        Ok(self.lend(loaded))
    }

    /// Whether the adapter has a head of its own, for classes or values.
    ///
    /// # Errors
    /// Where there is none of that name.
    pub fn is_head(&self, name: &str) -> Result<bool> {
        Ok(self.host.has_head(&self.path(name)?))
    }

    /// The base with the adapter `name` and its head.
    ///
    /// # Errors
    /// Where there is none, or it has no head for classes or values.
    pub async fn head(self: &Arc<Self>, name: &str) -> Result<Arc<dyn HeadModel>> {
        let path = self.path(name)?;
        let _one = self.loading.lock().await;
        {
            let mut inner = self.lock();
            let now = inner.tick();
            if let Some(entry) = inner.entries.get_mut(name) {
                entry.used = now;
                if let Some(head) = &entry.head {
                    return Ok(head.clone());
                }
            }
        }
        let host = self.host.clone();
        let read = tokio::task::spawn_blocking(move || host.head(&path).map_err(|e| e.to_string())).await;
        let read = read.map_err(|e| Error::failed(format!("reading adapter {name:?} failed: {e}")))?;
        let head: Arc<dyn HeadModel> =
            read.map_err(|e| Error::request(format!("adapter {name:?}: {e}")))?.into();
        let mut inner = self.lock();
        self.make_room(&mut inner, head.bytes())?;
        self.metrics.adapter_loads.add(1);
        if let Some(entry) = inner.entries.get_mut(name) {
            entry.head = Some(head.clone());
        }
        self.metrics.adapter_bytes.set(inner.bytes() as u64);
        Ok(head)
    }

    /// Where the adapter `name` is.
    fn path(&self, name: &str) -> Result<PathBuf> {
        let path = |inner: &Inner| inner.entries.get(name).map(|entry| entry.path.clone());
        if let Some(path) = path(&self.lock()) {
            return Ok(path);
        }
        // It may be new in the folder.
        self.scan();
        let found = path(&self.lock());
        found.ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> Error {
        Error::no_model(name, &self.lock().names(self.host.id()))
    }

    fn lend(&self, loaded: Arc<Loaded>) -> Lease {
        Lease::new(loaded, self.returned.clone())
    }

    /// The adapter, if it is loaded; an error where it is not known.
    fn loaded(&self, name: &str) -> Result<Option<Lease>> {
        let mut inner = self.lock();
        let now = inner.tick();
        let Some(entry) = inner.entries.get_mut(name) else {
            drop(inner);
            return Err(self.unknown(name));
        };
        entry.used = now;
        Ok(entry.loaded.clone().map(|loaded| self.lend(loaded)))
    }

    /// Gives `set` a place, and makes room for it.
    fn insert(&self, inner: &mut Inner, mut set: AdapterSet) -> Result<Arc<Loaded>> {
        let bytes = set.params.iter().map(|(_, p)| size_of::<f32>() * p.rows * p.cols).sum();
        self.make_room(inner, bytes)?;
        let chat = set.chat_template.take().map(|source| self.chat(&source)).transpose()?;
        let rank = set.layers.iter().find_map(|layer| layer.variant.rank());
        let (kind, virtual_tokens) = (set.config.peft_type.clone(), set.active.virtual_tokens);
        let slot = inner.slots.iter().position(Option::is_none).unwrap_or(inner.slots.len());
        let contents = inner.next_contents;
        inner.next_contents += 1;
        inner.store.insert(&contents.to_string(), set);
        let loaded = Arc::new(Loaded { contents, slot, virtual_tokens, bytes, rank, kind, chat });
        if slot == inner.slots.len() {
            inner.slots.push(None);
        }
        inner.slots[slot] = Some(loaded.clone());
        self.publish(inner);
        Ok(loaded)
    }

    /// Evicts adapters until `bytes` more are within the budget.
    fn make_room(&self, inner: &mut Inner, bytes: usize) -> Result<()> {
        self.collect(inner);
        while inner.bytes() + bytes > self.budget {
            // In use is what a request holds beside its entry and its place.
            let idle = |loaded: &Arc<Loaded>| Arc::strong_count(loaded) == 2;
            let mixture = inner.mixtures.iter().filter(|(_, (loaded, _))| idle(loaded));
            let mixture = mixture.min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            let head_idle = |head: &Arc<dyn HeadModel>| Arc::strong_count(head) == 1;
            let whole = |entry: &&mut Entry| {
                !entry.pinned
                    && (entry.loaded.as_ref().is_some_and(idle) || entry.head.as_ref().is_some_and(head_idle))
            };
            if let Some(key) = mixture {
                inner.mixtures.remove(&key);
            } else if let Some(entry) =
                inner.entries.values_mut().filter(whole).min_by_key(|entry| entry.used)
            {
                entry.loaded.take_if(|loaded| idle(loaded));
                entry.head.take_if(|head| head_idle(head));
            } else {
                let (have, budget) = (inner.bytes(), self.budget);
                return Err(Error::busy(format!(
                    "the adapter needs {bytes} bytes, and adapters in use or pinned have {have} of {budget}: try again later, \
                     or give adapters more memory"
                )));
            }
            self.metrics.adapter_evictions.add(1);
            self.collect(inner);
        }
        Ok(())
    }

    /// Frees the places of what nobody uses any more.
    fn collect(&self, inner: &mut Inner) {
        let mut freed = false;
        for slot in &mut inner.slots {
            if let Some(loaded) = slot.take_if(|loaded| Arc::strong_count(loaded) == 1) {
                inner.store.remove(&loaded.contents.to_string());
                self.engine.forget(loaded.contents);
                freed = true;
            }
        }
        if freed {
            self.publish(inner);
        }
    }

    /// Tells the engine.
    fn publish(&self, inner: &Inner) {
        let names = inner.slot_names();
        let names: Vec<Option<&str>> = names.iter().map(Option::as_deref).collect();
        let adapters = inner.store.route_slots(&names).expect("what has a place is in the store");
        self.engine.route(adapters);
        self.metrics.adapters.set(names.iter().flatten().count() as u64);
        self.metrics.adapter_bytes.set(inner.bytes() as u64);
    }

    /// The routed set as it is now.
    pub fn routed(&self) -> lowrank_engine::ActiveAdapters {
        let inner = self.lock();
        inner
            .store
            .route_slots(&inner.slot_names().iter().map(Option::as_deref).collect::<Vec<_>>())
            .unwrap_or_default()
    }

    /// What a chat template means for this base.
    pub fn chat(&self, source: &str) -> Result<Chat> {
        let tokenizer = self.host.tokenizer();
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id)).unwrap_or_default();
        let template = ChatTemplate::new(source, &text(tokenizer.bos()), &text(tokenizer.eos()))
            .map_err(|e| Error::request(format!("the adapter's chat template: {e}")))?;
        let mut stop_tokens = self.host.stop_tokens().to_vec();
        let end = template.turn_end();
        stop_tokens.extend(end.as_deref().and_then(|end| tokenizer.token_to_id(end)));
        let stops = end.filter(|end| tokenizer.token_to_id(end).is_none()).into_iter().collect();
        Ok(Chat { template, stop_tokens, stops })
    }

    /// Frees places whenever leases are returned, for ever.
    pub async fn collect_returned(self: Arc<Self>) {
        loop {
            self.returned.notified().await;
            self.collect(&mut self.lock());
        }
    }
}

impl Entry {
    fn new(path: PathBuf, pinned: bool, found: bool) -> Self {
        Self { path, pinned, created: random::now(), loaded: None, head: None, used: 0, found }
    }
}

impl Inner {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn bytes(&self) -> usize {
        let heads = self.entries.values().filter_map(|entry| entry.head.as_ref()).map(|head| head.bytes());
        self.slots.iter().flatten().map(|loaded| loaded.bytes).sum::<usize>() + heads.sum::<usize>()
    }

    fn slot_names(&self) -> Vec<Option<String>> {
        self.slots.iter().map(|slot| slot.as_ref().map(|loaded| loaded.contents.to_string())).collect()
    }

    fn names(&self, base: &str) -> Vec<String> {
        let entries = self.entries.keys().cloned();
        std::iter::once(base.to_owned()).chain(entries).take(20).collect()
    }
}
