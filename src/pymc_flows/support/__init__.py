"""What every other package may use: checks of arguments, tables, files, interrupts.

Nothing here knows of models, flows or fits.
"""
