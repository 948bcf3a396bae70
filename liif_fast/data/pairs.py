"""Find the scale between the low- and the high-resolution image of a pair."""

from collections.abc import Sequence

Size = tuple[int, int]  # (height, width) in pixels


def pair_scale(low: Size, high: Size, stated: int | None = None, names: Sequence[str] = ("low", "high")) -> int:
    """Return the scale by which the high-resolution image was reduced, or check the stated one.

    A whole scale s fits if both low-resolution sides are floor(high / s), or both are ceil(high / s). If several fit,
    the exact multiple wins, then the smallest by floor, then the smallest by ceil. ValueError if none fits.
    """
    floor = range(
        max(h // (n + 1) + 1 for n, h in zip(low, high, strict=True)),
        min(h // n for n, h in zip(low, high, strict=True)) + 1,
    )
    ceil = range(
        max(-(-h // n) for n, h in zip(low, high, strict=True)),
        min([*high, *((h - 1) // (n - 1) for n, h in zip(low, high, strict=True) if n > 1)]) + 1,
    )
    exact = [s for s in floor[-1:] if all(n * s == h for n, h in zip(low, high, strict=True))]
    if stated is None and (found := [*exact, *floor[:1], *ceil[:1]]):
        return found[0]
    if stated is not None and (stated in floor or stated in ceil):
        return stated
    fitting = sorted({*floor[:3], *ceil[:3]})
    rows, columns = (f"{h / n:.4g}" for n, h in zip(low, high, strict=True))
    raise ValueError(
        f"{names[0]} is {low[0]} x {low[1]} and {names[1]} is {high[0]} x {high[1]}, x{rows} in rows and x{columns} in "
        f"columns: "
        + (f"eval_type says x{stated}, " if stated is not None else "")
        + (f"they fit x{' or x'.join(map(str, fitting))}" if fitting else "they fit no whole scale")
        + "; do they belong together?"
    )
