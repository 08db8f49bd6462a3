"""Opens segment files with pyarrow and compares every column with what was written.

    python pyarrow_check.py SEGMENT.arrow EXPECTED.ndjson

EXPECTED has a line a record, in order: {"offset", "timestamp" (ms), "key" and "value" (hex or null),
"headers" ([[name, hex or null], ...]), "source" ([generation, input, partition, offset, ordinal] or
null)}. Exits with 1 and says which record differs, else prints the number of records.
"""

import json
import sys

import pyarrow as pa
import pyarrow.ipc

SOURCES = ["source_generation", "source_input", "source_partition", "source_offset", "source_ordinal"]


def hexed(value):
    return None if value is None else value.hex()


def rows(table):
    columns = {name: table.column(name) for name in table.column_names}
    columns["timestamp"] = columns["timestamp"].cast(pa.int64())
    columns = {name: column.to_pylist() for name, column in columns.items()}
    for i in range(table.num_rows):
        source = [columns[name][i] for name in SOURCES] if SOURCES[0] in columns else [None]
        yield {
            "offset": columns["offset"][i],
            "timestamp": columns["timestamp"][i],
            "key": hexed(columns["key"][i]),
            "value": hexed(columns["value"][i]),
            "headers": [[h["name"], hexed(h["value"])] for h in columns["headers"][i]],
            "source": None if source[0] is None else source,
        }


def main(segment, expected):
    with pa.memory_map(segment) as file:
        reader = pa.ipc.open_file(file)
        table = reader.read_all()
        table.validate(full=True)
        time = table.schema.field("timestamp").type
        if time != pa.timestamp("ms", tz="UTC"):
            sys.exit(f"{segment}: timestamp has type {time}")
        found = list(rows(table))
    wanted = [json.loads(line) for line in open(expected, encoding="utf-8")]
    for i, (a, b) in enumerate(zip(found, wanted)):
        if a != b:
            sys.exit(f"{segment}: record {i} differs\n  file:    {a}\n  written: {b}")
    if len(found) != len(wanted):
        sys.exit(f"{segment}: {len(found)} records, {len(wanted)} were written")
    print(f"{segment}: {len(found)} records in {reader.num_record_batches} blocks agree")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
