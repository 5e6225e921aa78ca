"""A replica's metrics: `sink` is what callers report to, and does nothing by itself.

`prometheus` is the sink that counts, and adds gauges read from the database. `exporter` serves
them over HTTP. The folder stands below `rpc`, which reports each call to the sink.
"""
