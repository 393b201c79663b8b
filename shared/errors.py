"""The one error that a user may see: what was expected, what came, what to do."""


class MesofedError(Exception):
    """A problem that the user can mend; commands print its text without a traceback.

    Raise it with a whole sentence that names what was expected, what came and what to do.
    """
