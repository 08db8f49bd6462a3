"""Bytewax over records in memory: bytewax_peer.py FILE JOB RECORDS.

FILE holds records of 108 bytes: a key of 8, a value of 100. They are read before the run; a run of more
records than FILE has takes them again. One worker, no recovery store: nothing is durable.
"""

import gc
import json
import sys
import time
import zlib

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

KEY, RECORD = 8, 108
BATCH = 10_000
KEPT = b'{"level":"warn"'


def batches_of(file):
    """All records of a file as lists of (key, value)."""
    with open(file, "rb") as source:
        data = source.read()
    records = [
        (data[at : at + KEY].decode(), data[at + KEY : at + RECORD]) for at in range(0, len(data), RECORD)
    ]
    checksum = zlib.crc32(data[: 10_000 * RECORD])
    return [records[at : at + BATCH] for at in range(0, len(records), BATCH)], checksum


class Memory(DynamicSource):
    """Hands out batches until there were enough records; notes when it began."""

    def __init__(self, batches, records):
        self.batches, self.records, self.began = batches, records, None

    def build(self, _step, _index, _count):
        return MemoryPart(self)


class MemoryPart(StatelessSourcePartition):
    def __init__(self, source):
        self.source, self.at, self.left = source, 0, source.records

    def next_batch(self):
        source = self.source
        if source.began is None:
            source.began = time.perf_counter()
        if self.left <= 0:
            raise StopIteration
        batch = source.batches[self.at % len(source.batches)]
        self.at += 1
        self.left -= len(batch)
        return batch if self.left >= 0 else batch[: self.left]


class Counted(DynamicSink):
    """Counts what comes out."""

    def __init__(self):
        self.items = 0

    def build(self, _step, _index, _count):
        return CountedPart(self)


class CountedPart(StatelessSinkPartition):
    def __init__(self, sink):
        self.sink = sink

    def write_batch(self, items):
        self.sink.items += len(items)


def taxed(record):
    """The JSON map."""
    key, value = record
    sale = json.loads(value)
    amount = sale["amount"]
    mapped = {"user": sale["user"], "level": sale["level"], "amount_with_tax": amount + amount // 5}
    return key, json.dumps(mapped, separators=(",", ":")).encode()


class Counter(op.StatefulBatchLogic):
    """The keyed count: a count for each record."""

    __slots__ = ("count",)

    def __init__(self, count):
        self.count = count or 0

    def on_batch(self, values):
        before = self.count
        self.count = before + len(values)
        return range(before + 1, self.count + 1), self.RETAIN

    def snapshot(self):
        return self.count


def run(job, batches, records):
    """Runs a job over the first records; returns its seconds."""
    source, sink = Memory(batches, records), Counted()
    flow = Dataflow("peer")
    stream = op.input("source", flow, source)
    if job == "filter":
        # A batch at a time: fewer calls than a filter of single records.
        stream = op.flat_map_batch("filter", stream, lambda batch: [r for r in batch if r[1].startswith(KEPT)])
    elif job == "json-map":
        stream = op.flat_map_batch("map", stream, lambda batch: [taxed(r) for r in batch])
    elif job == "count-100k":
        stream = op.stateful_batch("count", stream, Counter)
    elif job != "pass-through":
        sys.exit(f"there is no job {job}")
    op.output("sink", stream, sink)
    run_main(flow)
    seconds = time.perf_counter() - source.began
    expected = records
    if job == "filter":
        whole, rest = divmod(records, sum(map(len, batches)))
        kept = [r[1].startswith(KEPT) for batch in batches for r in batch]
        expected = whole * sum(kept) + sum(kept[:rest])
    if sink.items != expected:
        sys.exit(f"{job}: {sink.items} records came out, {expected} were expected")
    return seconds


def main():
    """Warms up, runs, and prints what it took."""
    file, job, records = sys.argv[1], sys.argv[2], int(sys.argv[3])
    batches, checksum = batches_of(file)
    # What is in memory by now stays: the collector need not look at it again and again.
    gc.freeze()
    run(job, batches, records // 20)
    seconds = run(job, batches, records)
    print(json.dumps({"records": records, "seconds": seconds, "data": checksum}))


main()
