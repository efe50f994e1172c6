"""Proxies side by side: each gets the same load in front of the same workers, in turns.

Read `rows` first: it says what each row of the table measures and how. `proxies` has every peer's
configuration, `machine` starts processes and reads what they use, `load` runs the load, `queueing` and `ideal`
are the rows about waiting, `report` makes tables and pictures.
"""
