"""A number of bytes in words."""


def byte_size(count: float) -> str:
    """Return a number of bytes in the largest unit that keeps it above one (1 kB = 1000)."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    if unit == "bytes":
        return f"{size:.0f} byte" if round(size) == 1 else f"{size:.0f} bytes"
    return f"{size:.1f} {unit}" if size < 9.95 else f"{size:.0f} {unit}"
