"""The configuration file: `load` reads and judges it, `schema` has its types.

Data only: nothing here opens a socket or starts anything. The manual is
conf/egressd.reference.toml.
"""
