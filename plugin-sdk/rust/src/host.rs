//! The boundary to the host: everything that a plugin can ask of it, as one trait.
//!
//! **Invariant:** a guest and a native test run the same code above this trait. The host of the instance
//! at work is known to its thread, for the log macros; nothing else is global.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use crate::bindings::{BytesColumn, HeaderColumn, OwnEntries, Page};

/// What the host offers, as the imports of `wit/` define it. The real one knows the `keys` of the batch at
/// hand and whether those of a store are `text`; others are told.
#[allow(missing_docs)]
pub trait Host {
    fn headers(&self) -> Option<HeaderColumn>;
    fn set_headers(&self, output: &str, headers: &HeaderColumn) -> Result<(), String>;
    fn open(&self, store: &str) -> Result<u32, String>;
    fn get_many(&self, store: u32, keys: &BytesColumn) -> BytesColumn;
    fn put_many(&self, store: u32, keys: &BytesColumn, values: &BytesColumn);
    fn delete_many(&self, store: u32, keys: &BytesColumn);
    fn get_own(&self, store: u32, keys: &BytesColumn, text: bool) -> OwnEntries;
    fn put_own(&self, store: u32, entries: &[u32], values: &BytesColumn);
    fn scan(&self, store: u32, start: &[u8], end: Option<&[u8]>, limit: u32) -> Page;
    fn time_before_batch(&self) -> Option<i64>;
    fn seed(&self) -> u64;
    fn log(&self, level: Level, message: &str);
    fn add(&self, counter: &str, delta: u64);
    fn set(&self, gauge: &str, value: f64);
}

/// How much a line of the log matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For whoever looks into the plugin.
    Debug,
    /// Worth knowing.
    Info,
    /// Something is odd.
    Warn,
    /// Something is wrong.
    Error,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<dyn Host>>> = const { RefCell::new(None) };
}

/// Makes `host` the one that [`log`] writes to.
pub(crate) fn enter(host: &Rc<dyn Host>) {
    CURRENT.with(|current| *current.borrow_mut() = Some(Rc::clone(host)));
}

/// Writes a line to the plugin's log; the macros [`debug!`](crate::debug), [`info!`](crate::info),
/// [`warn!`](macro@crate::warn) and [`error!`](macro@crate::error) are shorter. The host limits bytes a second.
/// Outside a plugin nothing happens.
pub fn log(level: Level, message: fmt::Arguments<'_>) {
    let host = CURRENT.with(|current| current.borrow().clone());
    if let Some(host) = host {
        host.log(level, &message.to_string());
    }
}

macro_rules! log_macro {
    ($d:tt $name:ident, $level:ident, $doc:literal) => {
        #[doc = $doc]
        #[macro_export]
        macro_rules! $name {
                    ($d($d args:tt)+) => {
                        $crate::log($crate::Level::$level, ::std::format_args!($d($d args)+))
                    };
                }
    };
}
log_macro!($ debug, Debug, "Writes a line for whoever looks into the plugin; takes what `format!` takes.");
log_macro!($ info, Info, "Writes a line that is worth knowing; takes what `format!` takes.");
log_macro!($ warn, Warn, "Writes a line about something odd; takes what `format!` takes.");
log_macro!($ error, Error, "Writes a line about something wrong; takes what `format!` takes.");
