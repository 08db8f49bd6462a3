//! The jobs in native Rust: `native JOB RECORDS`, over columns in memory, a batch of 4,096 at a time, into
//! columns that are used again. Or `native records FILE RECORDS`, which writes records of 108 bytes, key
//! and value, for those who read them from a file.

use std::hint::black_box;
use std::io::Write as _;
use std::time::Instant;

use hashbrown::HashMap;
use peers_native::{Batch, Generator, KEPT, checksum};
use serde::{Deserialize, Serialize};

/// Records a batch, as the host hands them to a plugin.
const BATCH: usize = 4096;
/// Records in memory at most; more are these again.
const HELD: usize = 2_000_000;

#[derive(Deserialize)]
struct Sale<'a> {
    level: &'a str,
    user: u64,
    amount: u64,
}

#[derive(Serialize)]
struct Taxed<'a> {
    user: u64,
    level: &'a str,
    amount_with_tax: u64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["records", file, records] => write_records(file, records.parse()?),
        [job, records] => replay(job, records.parse()?),
        _ => Err("usage: native JOB RECORDS | native records FILE RECORDS".into()),
    }
}

fn write_records(file: &str, records: usize) -> Result<(), Box<dyn std::error::Error>> {
    let mut file = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(file)?);
    let mut generator = Generator::default();
    let (mut key, mut value) = (Vec::new(), Vec::new());
    for _ in 0..records {
        key.clear();
        value.clear();
        generator.next(&mut key, &mut value);
        file.write_all(&key)?;
        file.write_all(&value)?;
    }
    file.flush()?;
    println!(r#"{{"records": {records}, "data": {}}}"#, checksum());
    Ok(())
}

fn replay(job: &str, records: usize) -> Result<(), Box<dyn std::error::Error>> {
    let mut generator = Generator::default();
    let batches: Vec<Batch> =
        (0..records.min(HELD) / BATCH).map(|_| Batch::generate(&mut generator, BATCH)).collect();
    let passes = (records / (batches.len().max(1) * BATCH)).max(1);
    let mut step = step_of(job)?;
    let mut out = Batch::default();
    let started = Instant::now();
    for _ in 0..passes {
        for batch in &batches {
            out.clear();
            step(black_box(batch), &mut out)?;
            black_box(&out);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let records = passes * batches.len() * BATCH;
    println!(r#"{{"records": {records}, "seconds": {seconds:.6}, "data": {}}}"#, checksum());
    Ok(())
}

type Step = Box<dyn FnMut(&Batch, &mut Batch) -> Result<(), serde_json::Error>>;

fn step_of(job: &str) -> Result<Step, String> {
    Ok(match job {
        "pass-through" => Box::new(|batch, out| {
            for (from, to) in [(&batch.keys, &mut out.keys), (&batch.values, &mut out.values)] {
                to.ends.clone_from(&from.ends);
                to.bytes.extend_from_slice(&from.bytes);
            }
            Ok(())
        }),
        "filter" => Box::new(|batch, out| {
            for (key, value) in batch.keys.cells().zip(batch.values.cells()) {
                if value.starts_with(KEPT) {
                    out.keys.push(key);
                    out.values.push(value);
                }
            }
            Ok(())
        }),
        "json-map" => Box::new(|batch, out| {
            for (key, value) in batch.keys.cells().zip(batch.values.cells()) {
                let Sale { level, user, amount } = serde_json::from_slice(value)?;
                let taxed = Taxed { user, level, amount_with_tax: amount + amount / 5 };
                out.keys.push(key);
                serde_json::to_writer(&mut out.values.bytes, &taxed)?;
                out.values.end();
            }
            Ok(())
        }),
        "count-100k" => {
            let mut counts = HashMap::<Vec<u8>, i64>::new();
            Box::new(move |batch, out| {
                for key in batch.keys.cells() {
                    let count = counts.entry_ref(key).or_insert(0);
                    *count += 1;
                    out.keys.push(key);
                    out.values.push(&count.to_le_bytes());
                }
                Ok(())
            })
        }
        _ => return Err(format!("there is no job {job}")),
    })
}
