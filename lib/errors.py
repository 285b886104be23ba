"""The error that means: the user's file or option is at fault, not the code."""


class InputError(ValueError):
    """A file, folder or option cannot be used; the message says which, and what was expected."""


class RunError(RuntimeError):
    """A run cannot go on for a reason that lies in its data or settings, such as a diverging loss."""
