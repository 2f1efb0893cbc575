"""The one error that means: the input was refused. The command line prints it without a traceback and exits with code 2."""


class RefusedError(ValueError):
    """Bad input, named: what came, what was allowed and where. Nothing was changed by refusing it."""


def nearest(name: str, allowed: object) -> str:
    """Return a sentence that lists what is allowed and names the entry closest to ``name``."""
    import difflib

    names = sorted(str(a) for a in allowed)  # type: ignore[attr-defined]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Allowed: {', '.join(names)}.{hint}"
