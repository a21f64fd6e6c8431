"""The lock for what threads of a process may not do at the same time."""

from threading import RLock

# Held while PyTensor builds a function, which uses state of the process: its configuration, its
# registries, and caches of Ops and types.
BUILDING = RLock()
