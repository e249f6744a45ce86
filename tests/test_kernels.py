"""Kernels against scipy's densities and autograd's slopes."""

import numpy as np
import pytest
import scipy.stats
import torch

from ash import UserError
from ash.kernels import Gaussian, Kernel, StudentT, get_kernel

KERNELS = [Gaussian(), StudentT(), StudentT(3.5)]


@pytest.mark.parametrize("q", [1, 2, 3])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_log_density_is_scipys_up_to_a_constant(kernel: Kernel, q: int) -> None:
    points = np.random.default_rng(0).normal(size=(20, q)) * 3
    if isinstance(kernel, StudentT):
        expected = scipy.stats.multivariate_t(np.zeros(q), np.eye(q), df=kernel.nu).logpdf(points)
    else:
        expected = scipy.stats.multivariate_normal(np.zeros(q), np.eye(q)).logpdf(points)
    found = kernel.log_density(torch.from_numpy((points**2).sum(1)), q).numpy()
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=1e-9)


@pytest.mark.parametrize("q", [0, 1, 3])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_slope_is_the_derivative(kernel: Kernel, q: int) -> None:
    u = torch.logspace(-6, 6, 30, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(kernel.log_density(u * 1.0, q).sum(), u)
    assert torch.allclose(torch.as_tensor(kernel.slope(u.detach(), q), dtype=torch.float64), expected)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_slope_leaves_its_argument_alone(kernel: Kernel) -> None:
    u = torch.rand(9)
    before = u.clone()
    kernel.slope(u, 2)
    assert torch.equal(u, before)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gaussian", "gaussian"),
        ("student_t", "student_t(1)"),
        ("student_t(3)", "student_t(3)"),
        (" student_t(2.5e1) ", "student_t(25)"),
    ],
)
def test_names(name: str, text: str) -> None:
    assert repr(get_kernel(name)) == text
    assert repr(get_kernel(text)) == text


def test_a_kernel_is_its_own_name() -> None:
    kernel = StudentT(2.0)
    assert get_kernel(kernel) is kernel


@pytest.mark.parametrize("name", ["gauss", "student", "gaussian(2)", "student_t()", "student_t(1e)", "student_t(+-)"])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match="unknown kernel .*'gaussian', 'student_t'"):
        get_kernel(name)


@pytest.mark.parametrize("name", ["student_t(0)", "student_t(-1)", "student_t(1e999)"])
def test_degrees_of_freedom_are_positive_and_finite(name: str) -> None:
    with pytest.raises(UserError, match="nu="):
        get_kernel(name)
