"""The wording of user errors."""

import numpy as np
import pytest
import torch
from torch import nn

from ash import UserError
from ash.checks import BackendUnavailable, check_finite, choose, optional, positive, require, shape


def test_requirements() -> None:
    require(True, "fine")
    with pytest.raises(UserError, match="^not fine$"):
        require(False, "not fine")
    assert issubclass(UserError, ValueError)


def test_choices_by_name() -> None:
    assert choose("fruit", "plum", {"plum": 1, "pear": 2}) == 1
    with pytest.raises(UserError, match="unknown fruit 'plumb'; expected one of 'pear', 'plum'. Did you mean 'plum'"):
        choose("fruit", "plumb", {"plum": 1, "pear": 2})
    with pytest.raises(UserError, match="expected one of 'pear', 'plum'.$"):
        choose("fruit", "xyz", {"plum": 1, "pear": 2})


def test_numbers() -> None:
    positive("x", 0.5)
    positive("x", 0, zero=True)
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="x=.*above 0"):
            positive("x", value)
    with pytest.raises(UserError, match="at least 0"):
        positive("x", -1, zero=True)


def test_shapes() -> None:
    assert shape("s", 3) == (3,)
    assert shape("s", [3, 4]) == shape("s", torch.Size((3, 4))) == (3, 4)
    assert shape("s", (), empty=True) == ()
    assert shape("s", np.int64(3)) == (3,)
    assert shape("s", np.array([3, 4])) == (3, 4)
    for value in (0, (3, -1), (), "28", None, 2.5, (2.5, 3)):
        with pytest.raises(UserError, match="s="):
            shape("s", value)


def test_optional_packages() -> None:
    assert optional("math", "nothing").pi > 3
    with pytest.raises(BackendUnavailable, match="pip install it"):
        optional("no_such_package_here", "pip install it")
    assert issubclass(BackendUnavailable, UserError)
    assert issubclass(BackendUnavailable, ImportError)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_finite_numbers(dtype: torch.dtype) -> None:
    module = nn.Linear(2, 3)
    check_finite(torch.randn(4, 5, dtype=dtype), module)
    check_finite(torch.full((9,), torch.finfo(dtype).max, dtype=dtype), module)
    check_finite(torch.zeros(0, dtype=dtype), module)
    check_finite(torch.ones(3, dtype=torch.int64), module)
    bad = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf], dtype=dtype)
    with pytest.raises(UserError, match=r"3 of 4 input numbers of Linear\(in_features=2"):
        check_finite(bad, module)
    with pytest.raises(UserError, match="2 of 2"):
        check_finite(torch.tensor([torch.inf, -torch.inf], dtype=dtype), module)
