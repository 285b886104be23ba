"""The one table from parameters to options."""

import re

# Parameters whose option has another name, without its dashes.
_OPTIONS = {
    "n_extra_features": "optflow_deepfdim",
    "n_iter": "niter",
    "n_learned_features": "deepfdim",
    "n_spixels": "nspix",
}


def option_name(parameter: str) -> str:
    """Return the name of a parameter's option, without its dashes."""
    return _OPTIONS.get(parameter, parameter)


def with_options(message: str) -> str:
    """Replace the parameters in a message, which stand in backquotes, by their options."""
    return re.sub(r"`([a-z]\w*)`", lambda match: f"--{option_name(match[1])}", message)
