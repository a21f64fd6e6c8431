"""How good an approximation is, by importance weights and by draws of a reference."""
