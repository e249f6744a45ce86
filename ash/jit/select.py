"""CPU kernel that collects the scores above a bar; needs numba."""

# mypy: ignore-errors

from ash.jit.kernel import kernel


@kernel
def above(scores, bar, places):
    """Write the places of all scores above `bar` to `places`, ascending; how many, or one more than there is room."""
    found = 0
    for i in range(len(scores)):
        if scores[i] > bar:
            if found == len(places):
                return found + 1
            places[found] = i
            found += 1
    return found
