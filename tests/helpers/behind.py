"""What PyTensor has made behind the functions of `pymc_flows.backends.functions`."""


def function_behind(bound):
    """The function of PyTensor that a bound one, or the only output of one, calls."""
    bound = getattr(bound, "_function", bound)
    [(function, _), *_] = bound._functions.main._functions
    return function
