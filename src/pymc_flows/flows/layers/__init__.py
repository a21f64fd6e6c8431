"""The layers, one file per word of the formula language, in families by the kind of their map.

Each is a frozen dataclass with the contract of `pymc_flows.flows.base.Flow`. Importing
`pymc_flows.flows` registers them all.
"""
