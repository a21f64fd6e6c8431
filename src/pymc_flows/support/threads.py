"""What threads of a process may not do at the same time."""

from threading import RLock

# Held while PyTensor builds a function, which uses state that all threads share: its configuration,
# its registries, and what Ops and types remember of earlier graphs.
BUILDING = RLock()
