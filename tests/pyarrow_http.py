"""Appends records over HTTP with pyarrow, and reads them back: as a page, and as a stream.

    python pyarrow_http.py URL

The host at URL has a topic `in` of two partitions, whose records become those of `out`. Exits with 1
where something does not come back as it was sent.
"""

import sys
import urllib.request

import pyarrow as pa

STREAM = "application/vnd.apache.arrow.stream"


def post(url, table, **options):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=300)
    body = sink.getvalue().to_pybytes()
    request = urllib.request.Request(url, data=body, headers={"content-type": STREAM})
    with urllib.request.urlopen(request) as reply:
        return reply.read()


def read(url):
    request = urllib.request.Request(url, headers={"accept": STREAM})
    with urllib.request.urlopen(request) as reply:
        return pa.ipc.open_stream(reply).read_all()


def main(host):
    values = [None if i % 5 == 4 else f'{{"n": {i}}}' for i in range(1000)]
    partitions = pa.array([i % 2 for i in range(1000)], pa.int32())
    times = [1_357_034_400_000 + i for i in range(1000)]
    headers = [[("h", "\u00fc".encode()), ("h", None)] if i % 2 else [] for i in range(1000)]
    header = pa.list_(pa.struct([("name", pa.string()), ("value", pa.binary())]))
    table = pa.table(
        {
            "value": pa.array(values, pa.large_string()),
            "key": pa.array([b"k"] * 1000, pa.binary()),
            "timestamp": pa.array([t * 1000 for t in times], pa.timestamp("us", tz="UTC")),
            "headers": pa.array([[dict(name=n, value=v) for n, v in h] for h in headers], header),
            "partition": partitions,
        }
    )
    post(f"{host}/v1/topics/in/records", table)
    page = read(f"{host}/v1/topics/in/partitions/1/records")
    assert page.column("offset").to_pylist() == list(range(500)), "offsets"
    sent = [None if v is None else v.encode() for v in values[1::2]]
    assert page.column("value").to_pylist() == sent, "values"
    assert page.column("timestamp").cast(pa.int64()).to_pylist() == times[1::2], "timestamps"
    shown = [[(h["name"], h["value"]) for h in row] for row in page.column("headers").to_pylist()]
    assert shown == headers[1::2], "headers"
    # What was read can be appended again, compressed too; a stream goes on until its limit.
    post(f"{host}/v1/topics/in/records", table.drop(["timestamp", "headers"]), compression="lz4")
    followed = read(f"{host}/v1/topics/out/partitions/0/records?follow=true&limit=2000")
    assert followed.num_rows == 2000, f"{followed.num_rows} outputs"
    post(f"{host}/v1/topics/in/records", page)
    again = read(f"{host}/v1/topics/in/partitions/1/records?from=1000")
    assert again.num_rows + read(f"{host}/v1/topics/in/partitions/0/records?from=1000").num_rows == 500


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
