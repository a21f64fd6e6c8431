"""The field given hyperparameters: its mode, a Gaussian around it, and weights of groups."""
