"""Several fits of one posterior, their comparison, and the best of them or their mixture."""
