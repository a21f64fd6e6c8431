"""The hyperparameters: the mode of their marginal, its profiles, and a flow over them."""
