//! What a plugin declares: stores, outputs, metrics, and the configuration it takes.
//!
//! **Invariant:** the description that the host gets and the handles that the plugin works with come from
//! the same calls. **Invariant:** nothing is declared after the configuration was read, so declarations
//! cannot depend on it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::call::Call;
use crate::metrics::{CounterCell, GaugeCell};
use crate::output::OutputBuffer;
use crate::store_cache::StoreCache;
use crate::{Counter, Error, Format, Gauge, Key, Output, Result, Store};

/// Where a plugin declares what it is made of; see [`Plugin::new`](crate::Plugin::new).
pub struct Setup {
    call: Rc<Call>,
    /// The deployment's configuration; `None` while the plugin is only being described.
    config: Option<String>,
    config_was_read: bool,
    config_schema: Value,
    stores: Vec<Value>,
    outputs: Vec<Value>,
    problem: Option<String>,
}

impl Setup {
    pub(crate) fn new(call: Rc<Call>, config: Option<String>) -> Self {
        Self {
            call,
            config,
            config_was_read: false,
            config_schema: json!({}),
            stores: Vec::new(),
            outputs: Vec::new(),
            problem: None,
        }
    }

    /// Declares a store, of schema version 1.
    pub fn store<K: Key, V: Format>(&mut self, name: &str) -> Store<K, V> {
        self.store_version(name, 1)
    }

    /// Declares a store whose keys or values changed their meaning since an earlier version of the
    /// plugin: a new generation takes over a store only if the versions are equal.
    pub fn store_version<K: Key, V: Format>(&mut self, name: &str, version: u32) -> Store<K, V> {
        self.check_new("store", name, Self::stores_of);
        let mut types = Vec::new();
        K::part_types(&mut types);
        let key: Vec<_> = types.iter().map(|t| t.as_str()).collect();
        let store = json!({"name": name, "version": version, "key": key, "value": V::NAME});
        self.stores.push(store);
        let cache = StoreCache::new(name, &types, Rc::clone(&self.call.host));
        let cache = Rc::new(RefCell::new(cache));
        self.call.stores.borrow_mut().push(Rc::clone(&cache));
        Store::new(cache, Rc::clone(&self.call))
    }

    /// Declares an output whose records are events, each one standing for itself.
    pub fn stream<K: Format, V: Format>(&mut self, name: &str) -> Output<K, V> {
        self.output(name, "stream")
    }

    /// Declares an output whose records are rows: the newest of each key is what holds.
    pub fn table<K: Format, V: Format>(&mut self, name: &str) -> Output<K, V> {
        self.output(name, "table")
    }

    fn output<K: Format, V: Format>(&mut self, name: &str, kind: &str) -> Output<K, V> {
        self.check_new("output", name, Self::outputs_of);
        self.outputs.push(json!({"name": name, "kind": kind}));
        let buffer = Rc::new(RefCell::new(OutputBuffer::new(name)));
        self.call.outputs.borrow_mut().push(Rc::clone(&buffer));
        Output::new(buffer, Rc::clone(&self.call))
    }

    /// Declares that the plugin never looks at the values of what comes in, as one that counts by key: the
    /// host does not decompress them then, nor copy them to the plugin. Whoever reads one all the same gets
    /// an error, and a panic where there is no error to give. Dead letters have them.
    pub fn ignore_values(&mut self) {
        self.check_not_read("that values are ignored");
        self.call.ignores_values.set(true);
    }

    /// A counter of the host's metrics; the name is `[a-z][a-z0-9_]{0,63}`.
    pub fn counter(&mut self, name: &str) -> Counter {
        let cell = Rc::new(CounterCell { name: name.to_owned(), delta: Cell::new(0) });
        self.call.counters.borrow_mut().push(Rc::clone(&cell));
        Counter(cell)
    }

    /// A gauge of the host's metrics; the name is `[a-z][a-z0-9_]{0,63}`.
    pub fn gauge(&mut self, name: &str) -> Gauge {
        let cell = Rc::new(GaugeCell { name: name.to_owned(), value: Cell::new(None) });
        self.call.gauges.borrow_mut().push(Rc::clone(&cell));
        Gauge(cell)
    }

    /// Gives the JSON Schema that the host checks a deployment's configuration against.
    pub fn config_schema(&mut self, schema: Value) {
        self.check_not_read("the configuration's schema");
        self.config_schema = schema;
    }

    /// The deployment's configuration. Return its error with `?`: while the plugin is only being
    /// described there is no configuration, and `new` ends here.
    pub fn config<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.config_was_read = true;
        let config = self.config.as_deref().ok_or_else(|| {
            Error::new("the plugin is being described and has no configuration yet")
        })?;
        let config = if config.trim().is_empty() { "{}" } else { config };
        serde_json::from_str(config)
            .map_err(|e| Error::new(format_args!("the configuration is not as expected: {e}")))
    }

    /// The document that `describe` returns.
    pub(crate) fn description(self, name: &str, version: &str) -> String {
        let mut document = json!({
            "anabranch": "0.1",
            "name": name,
            "version": version,
            "stores": self.stores,
            "outputs": self.outputs,
            "config": self.config_schema,
        });
        // Hosts of earlier versions do not know it.
        if self.call.ignores_values.get() {
            document["ignores_values"] = json!(true);
        }
        document.to_string()
    }

    /// An error if the declarations make no sense.
    pub(crate) fn check(&self) -> Result<()> {
        self.problem.as_ref().map_or(Ok(()), |problem| Err(Error::new(problem)))
    }

    fn stores_of(&self) -> &[Value] {
        &self.stores
    }

    fn outputs_of(&self) -> &[Value] {
        &self.outputs
    }

    fn check_new(&mut self, what: &str, name: &str, declared: fn(&Self) -> &[Value]) {
        self.check_not_read(&format!("the {what} {name:?}"));
        if declared(self).iter().any(|d| d["name"] == name) {
            self.problem.get_or_insert(format!("the {what} {name:?} is declared twice"));
        }
    }

    fn check_not_read(&mut self, what: &str) {
        if self.config_was_read {
            self.problem.get_or_insert(format!(
                "{what} is declared after the configuration was read: declare it before"
            ));
        }
    }
}
