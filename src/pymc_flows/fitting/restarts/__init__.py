"""Several fits of one posterior: run them, compare them, and take the best or their mixture."""
