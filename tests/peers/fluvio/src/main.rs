//! fluvio-smartengine over records in memory: `fluvio MODULE filter RECORDS`. Batches of 4,096 records,
//! already encoded, go through a filter; nothing is read from or written to a log.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fluvio_protocol::record::Record;
use fluvio_smartengine::{
    DEFAULT_SMARTENGINE_VERSION, SmartEngine, SmartModuleChainBuilder, SmartModuleConfig,
};
use fluvio_smartmodule::dataplane::smartmodule::SmartModuleInput;
use peers_native::{Batch, Generator, KEPT, checksum};

/// Records a batch, as the host hands them to a plugin.
const BATCH: usize = 4096;
/// Records in memory at most; more are these again.
const HELD: usize = 1_000_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [module, job, records] = &arguments[..] else {
        anyhow::bail!("usage: fluvio MODULE filter RECORDS");
    };
    ensure!(job == "filter", "there is no job {job}");
    let records: usize = records.parse()?;
    let module = std::fs::read(module).with_context(|| module.clone())?;
    let mut chain = SmartModuleChainBuilder::default();
    let config = SmartModuleConfig::builder().smartmodule_names(&["filter".into()]).build()?;
    chain.add_smart_module(config, module);
    let mut chain = chain.initialize(&SmartEngine::new())?;

    let mut generator = Generator::default();
    let mut batches = Vec::new();
    let mut kept_of_all = 0;
    for _ in 0..(records.min(HELD) / BATCH).max(1) {
        let batch = Batch::generate(&mut generator, BATCH);
        kept_of_all += batch.values.cells().filter(|value| value.starts_with(KEPT)).count();
        let cells = batch.keys.cells().zip(batch.values.cells());
        let records = cells.map(|(key, value)| Record::new_key_value(key.to_vec(), value.to_vec()));
        batches.push(SmartModuleInput::try_from_records(
            records.collect(),
            DEFAULT_SMARTENGINE_VERSION,
        )?);
    }
    let mut pass = || -> Result<Duration> {
        let (mut kept, mut took) = (0, Duration::ZERO);
        for batch in &batches {
            // The engine takes what it is given; the copy is not its work.
            let batch = batch.clone();
            let started = Instant::now();
            let output = chain.process(batch)?;
            took += started.elapsed();
            ensure!(output.error.is_none(), "the module failed: {:?}", output.error);
            kept += output.successes.len();
        }
        ensure!(kept == kept_of_all, "{kept} records were kept, {kept_of_all} were expected");
        Ok(took)
    };
    pass()?;
    let passes = (records / (batches.len() * BATCH)).max(1);
    let mut took = Duration::ZERO;
    for _ in 0..passes {
        took += pass()?;
    }
    let seconds = took.as_secs_f64();
    let records = passes * batches.len() * BATCH;
    println!(r#"{{"records": {records}, "seconds": {seconds:.6}, "data": {}}}"#, checksum());
    Ok(())
}
