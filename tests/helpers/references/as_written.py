"""A mode without rewrites: the graph as it was written, ready at once and slow for many numbers."""

from pytensor.compile.mode import Mode

AS_WRITTEN = Mode(linker="py", optimizer=None)
