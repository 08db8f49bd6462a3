//! The engine that all plugins share, and plugins compiled for it.
//!
//! **Invariant:** [`engine_config`] is the only place that configures wasmtime, and everything in it
//! serves determinism or containment. No plugin ever sees WASI, threads, or a wall clock.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, OptLevel, Store, Trap};

use super::cache::Cache;
use super::call::CallError;
use super::compile::{Children, CompileError, Compiler, Turn, Turns, Work};
use super::contract::{ColumnPlugin, ColumnPluginPre, RecordPluginPre, rows};
use super::description::{Description, DescriptionError};
use super::imports::{CallScope, HostState, Imports, reason};
use super::instance::{Guest, Instance, arm, call_error, drive, new_store};
use super::limits::{Cancel, Limits};
use crate::clock::{SharedClock, SystemClock};
use crate::config::Plugins;
use crate::types::Digest;

/// The stack of a guest in bytes. Recursion beyond it traps, the same on every machine.
const MAX_WASM_STACK_BYTES: usize = 512 << 10;

/// Why plugins cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine cannot be made: a fault of this build or machine.
    #[error("the WebAssembly engine does not start: {0}")]
    Engine(String),
    /// The directory for compiled plugins cannot be used.
    #[error("the directory for compiled plugins, {directory}, cannot be used: {source}")]
    Cache {
        /// The directory.
        directory: String,
        /// Why.
        source: std::io::Error,
    },
    /// A stored plugin is not what was admitted.
    #[error("plugin {digest} does not load: {reason}; push it again")]
    Load {
        /// The plugin.
        digest: Digest,
        /// Why.
        reason: String,
    },
}

/// The configuration of the engine, whole.
pub(super) fn engine_config() -> Config {
    let mut config = Config::new();
    config
        // Containment: work is counted, the stack is bounded. Time is looked at between slices of fuel.
        .consume_fuel(true)
        .max_wasm_stack(MAX_WASM_STACK_BYTES)
        // A fresh memory a batch must cost microseconds: map on demand, copy on write.
        .allocation_strategy(InstanceAllocationStrategy::OnDemand)
        .memory_init_cow(true)
        // Determinism: one result for every NaN and every relaxed instruction on every machine.
        .cranelift_nan_canonicalization(true)
        .wasm_relaxed_simd(true)
        .relaxed_simd_deterministic(true)
        // Plugins are synchronous; without this a call costs twice as much.
        .concurrency_support(false)
        .wasm_component_model(true)
        .wasm_memory64(false)
        .cranelift_opt_level(OptLevel::Speed)
        // Errors carry the trap alone: guests are stripped, and a backtrace is no one line.
        .wasm_backtrace_max_frames(None);
    config
}

struct Shared {
    engine: Engine,
    /// What deadlines go by.
    clock: SharedClock,
    linker: Linker<HostState>,
    cache: Cache,
    compiler: Compiler,
    turns: Turns,
    /// The limits of a plugin that has no deployment yet.
    describe_limits: Limits,
    max_bytes: usize,
    engine_hash: String,
}

/// The engine and its compile cache. Cheap to clone.
#[derive(Clone)]
pub struct Runtime(Arc<Shared>);

impl Runtime {
    /// Starts an engine that keeps compiled plugins in `cache_dir` and compiles them in this process,
    /// without limits: for tests and tools whose plugins are their own.
    ///
    /// # Errors
    /// When the engine cannot be made or the directory cannot be used.
    pub fn new(cache_dir: &Path) -> Result<Self, Error> {
        Self::start(cache_dir, Compiler::Here, &Plugins::default())
    }

    /// The same for plugins of strangers: they are compiled in children of this program, whose
    /// `main` hands [`super::SUBCOMMAND`] to [`super::child`], under `limits`.
    ///
    /// # Errors
    /// As [`Runtime::new`], and when the system does not say which program this is.
    pub fn contained(cache_dir: &Path, limits: &Plugins) -> Result<Self, Error> {
        let children = Children::new(limits.clone())
            .map_err(|error| Error::Engine(format!("which program is this? {error}")))?;
        Self::start(cache_dir, Compiler::Children(children), limits)
    }

    fn start(cache_dir: &Path, compiler: Compiler, limits: &Plugins) -> Result<Self, Error> {
        let failed = |error: wasmtime::Error| Error::Engine(format!("{error:#}"));
        let engine = Engine::new(&engine_config()).map_err(failed)?;
        let mut linker = Linker::new(&engine);
        ColumnPlugin::add_to_linker::<_, Imports>(&mut linker, |host| host).map_err(failed)?;
        rows::add_to_linker::<_, Imports>(&mut linker, |host| host).map_err(failed)?;
        let cache = Cache::open(cache_dir).map_err(|source| Error::Cache {
            directory: cache_dir.display().to_string(),
            source,
        })?;
        let engine_hash = compatibility_hash(&engine);
        let (turns, max_bytes) = (Turns::new(limits.compile_jobs), limits.max_bytes);
        let describe_limits = Limits { fuel_per_start: limits.fuel_per_start, ..Limits::default() };
        let shared = Shared {
            engine,
            clock: SystemClock::shared(),
            linker,
            cache,
            compiler,
            turns,
            describe_limits,
            max_bytes,
            engine_hash,
        };
        Ok(Self(Arc::new(shared)))
    }

    /// Compiles an admitted component, or takes it from the cache, and asks it what it is.
    ///
    /// `digest` names the plugin (the bytes that were pushed); the cache goes by the component's own.
    pub fn load(&self, digest: Digest, component: &[u8]) -> Result<Arc<Plugin>, Error> {
        let _turn = self.turn();
        let failed = |reason: String| Error::Load { digest, reason };
        let component = self.compile(component).map_err(|error| failed(format!("{error:#}")))?;
        let pre = self.link(&component).map_err(|error| failed(format!("{error:#}")))?;
        let plugin =
            self.describe(digest, pre).map_err(|error| failed(reason(&error.to_string())))?;
        #[cfg(feature = "native")]
        let plugin = plugin.natively();
        Ok(Arc::new(plugin))
    }

    /// A place among the plugins that are judged at the same time.
    pub(super) fn turn(&self) -> Turn<'_> {
        self.0.turns.take()
    }

    pub(super) fn max_bytes(&self) -> usize {
        self.0.max_bytes
    }

    /// Has the compiler work on a stranger's bytes.
    pub(super) fn run_compiler(&self, work: Work, bytes: &[u8]) -> Result<Vec<u8>, CompileError> {
        let shared = &*self.0;
        shared.compiler.run(work, bytes, &shared.engine, &shared.cache)
    }

    /// Removes what is kept of a component's code.
    pub fn forget(&self, component: &Digest) {
        self.0.cache.remove_all(&component.hex());
    }

    /// A component's code: from the cache, or compiled now and kept there.
    pub(super) fn compile(&self, component: &[u8]) -> Result<Component, CompileError> {
        let shared = &*self.0;
        let key = format!("{}-{}", Digest::of(component).hex(), shared.engine_hash);
        // SAFETY: the bytes come from this engine's own compiler, at once or by way of the cache. The
        // cache's directory is private to the host's user, an entry's name is bound to component and
        // engine, and its checksum says that it is whole. wasmtime checks version and configuration.
        let load = |code: &[u8]| unsafe { Component::deserialize(&shared.engine, code) };
        if let Some(code) = shared.cache.get(&key) {
            match load(&code) {
                Ok(component) => return Ok(component),
                Err(_) => shared.cache.remove(&key),
            }
        }
        let code = self.run_compiler(Work::Compile, component)?;
        let compiled = load(&code).map_err(|error| CompileError::Broke(format!("{error:#}")))?;
        if let Err(error) = shared.cache.put(&key, &code) {
            tracing::warn!(%error, "a compiled plugin could not be cached; it is compiled again at the next start");
        }
        Ok(compiled)
    }

    /// Binds imports and exports. Fails when either does not match the contract.
    pub(super) fn link(&self, component: &Component) -> wasmtime::Result<WorldPre> {
        let pre: InstancePre<HostState> = self.0.linker.instantiate_pre(component)?;
        let exports = component.component_type();
        if exports.get_export(&self.0.engine, "process-record").is_some() {
            return RecordPluginPre::new(pre).map(WorldPre::Record);
        }
        ColumnPluginPre::new(pre).map(WorldPre::Column)
    }

    /// Where an instance will live.
    fn new_store(&self, description: Arc<Description>, limits: &Limits) -> Store<HostState> {
        new_store(&self.0.engine, description, limits, Arc::clone(&self.0.clock))
    }

    /// Asks a component what it is.
    pub(super) fn describe(&self, digest: Digest, pre: WorldPre) -> Result<Plugin, DescribeError> {
        let unknown = Arc::new(Description::default());
        let limits = &self.0.describe_limits;
        let mut store = self.new_store(unknown, limits);
        let guest = pre.start(&mut store)?;
        arm(&mut store, start_fuel(limits))?;
        let json = guest.describe(&mut store)?;
        let description = Arc::new(Description::parse(&json)?);
        Ok(Plugin { runtime: self.clone(), digest, description, pre })
    }
}

/// Why a component does not say what it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum DescribeError {
    /// It fails.
    #[error("describe: {0}")]
    Call(#[from] CallError),
    /// What it says is not sound.
    #[error(transparent)]
    Description(#[from] DescriptionError),
}

/// Sixteen hexadecimal digits for everything that compiled code depends on.
fn compatibility_hash(engine: &Engine) -> String {
    use std::hash::{Hash, Hasher};
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn start_fuel(limits: &Limits) -> (&'static str, u64) {
    ("fuel_per_start", limits.fuel_per_start)
}

/// A component whose imports are bound, by world.
#[derive(Clone)]
pub(super) enum WorldPre {
    /// Whole batches.
    Column(ColumnPluginPre<HostState>),
    /// A record a call.
    Record(RecordPluginPre<HostState>),
    /// No component at all, but the same code in this process.
    #[cfg(feature = "native")]
    Native(super::native::Make),
}

impl WorldPre {
    /// Instantiates, which runs the guest's own start function.
    fn start(&self, store: &mut Store<HostState>) -> Result<Guest, CallError> {
        let limits = start_fuel(&store.data().limits);
        arm(store, limits)?;
        let guest = match self {
            Self::Column(pre) => {
                drive(store, |store| pre.instantiate_async(store)).map(Guest::Column)
            }
            Self::Record(pre) => {
                drive(store, |store| pre.instantiate_async(store)).map(Guest::Record)
            }
            #[cfg(feature = "native")]
            Self::Native(make) => Ok(Guest::Native(make())),
        };
        guest.map_err(|error| {
            // What is neither a trap nor a limit is the machine's: no memory to map, say.
            if error.is::<CallError>() || error.is::<Trap>() {
                call_error(error, store.data())
            } else {
                CallError::Host(format!("no instance: {error:#}").into())
            }
        })
    }
}

/// A plugin, compiled and bound, ready to be instantiated any number of times.
pub struct Plugin {
    runtime: Runtime,
    digest: Digest,
    description: Arc<Description>,
    pre: WorldPre,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plugin({}, {})", self.description.name, self.digest)
    }
}

impl Plugin {
    /// The plugin as it is or, where a benchmark has registered its code, outside the sandbox.
    #[cfg(feature = "native")]
    fn natively(mut self) -> Self {
        if let Some(make) = super::native::find(&self.description.name) {
            self.pre = WorldPre::Native(make);
        }
        self
    }

    /// The digest of the bytes that were pushed.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What the plugin says of itself.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// A fresh instance that has been given its config. A guest fault here (`init` fails) is a fault
    /// of plugin or config, not of any record.
    pub fn instantiate(&self, config: &Value, limits: &Limits) -> Result<Instance, CallError> {
        self.instantiate_until(config, limits, &Cancel::default())
    }

    /// The same; `cancel` gives up its start, and later the call that is under way.
    pub fn instantiate_until(
        &self,
        config: &Value,
        limits: &Limits,
        cancel: &Cancel,
    ) -> Result<Instance, CallError> {
        let description = Arc::clone(&self.description);
        let mut store = self.runtime.new_store(description, limits);
        store.data_mut().deadline.cancel = cancel.clone();
        let guest = self.pre.start(&mut store)?;
        arm(&mut store, start_fuel(limits))?;
        guest.init(&mut store, &config.to_string())?;
        let logs = std::mem::take(&mut store.data_mut().call.logs);
        store.data_mut().call = CallScope { logs, ..CallScope::default() };
        Ok(Instance::new(store, guest))
    }
}
