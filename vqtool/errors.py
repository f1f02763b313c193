"""Errors that a user can mend. The commands print them as one line and exit with 1."""


class VqtoolError(Exception):
    """Something the user can mend: says what was given, what was expected and what to do."""


class FormatError(VqtoolError):
    """One file is bad: cut short, corrupt, or of another kind than expected."""


class MismatchError(VqtoolError):
    """Two files are good but do not fit together."""
