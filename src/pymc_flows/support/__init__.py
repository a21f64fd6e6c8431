"""Tools for every other package: checks of arguments, seeds, tables, interrupts, private names.

Nothing here knows of flows or fits.
"""
