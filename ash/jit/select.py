"""CPU kernel that collects the scores above a bar; needs numba."""

# mypy: ignore-errors

from ash.jit.kernel import kernel

GROUP = 64
"""Scores that are looked at together: most groups have none above the bar, which vectors see at once."""


@kernel
def above(scores, bar, places):
    """Write the places of all scores above `bar` to `places`, ascending; how many, or one more than there is room."""
    found, whole = 0, len(scores) // GROUP * GROUP
    for start in range(0, whole, GROUP):
        group, count = scores[start : start + GROUP], 0
        for i in range(GROUP):
            count += group[i] > bar
        if count == 0:
            continue
        if found + count > len(places):
            return len(places) + 1
        for i in range(GROUP):
            if group[i] > bar:
                places[found] = start + i
                found += 1
    for i in range(whole, len(scores)):
        if scores[i] > bar:
            if found == len(places):
                return found + 1
            places[found] = i
            found += 1
    return found
