"""Metadata of the distribution and its extras; the settings of the tools are in pyproject.toml.

Only `ash` is installed. `experiments` is run from a checkout: its name is too common for site-packages.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def version() -> str:
    """`__version__` of ash, read as text: importing ash would need torch at build time."""
    source = (HERE / "ash" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if found is None:
        raise RuntimeError('ash/__init__.py has no line of the form __version__ = "0.1.0"')
    return found.group(1)


PLOT = ["matplotlib>=3.8", "pillow>=10", "networkx>=3.2"]
ODE = ["torchdiffeq>=0.2.4"]
EXPERIMENTS = [*PLOT, *ODE, "tyro>=0.9", "tqdm>=4.66", "scikit-learn>=1.4", "pooch>=1.8", "safetensors>=0.4.3",
               "lightning-fabric>=2.5", "tensorboard>=2.14"]  # fmt: skip
FAST = ["numba>=0.60"]
PEERS = ["diffsort>=0.2"]
GPU = ["triton>=3.6; sys_platform == 'linux'"]
TEST = ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "beartype>=0.20", "coverage>=7.10"]
MUTANTS = ["cosmic-ray>=8.3"]
# The documentation, and kernels that run its notebooks. MkDocs 2 has another format.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.29", "latex2mathml>=3.77",
        "nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"]  # fmt: skip
LINT = ["ruff>=0.9", "mypy>=1.14", "import-linter>=2.1"]

# Where sparselab has wheels; elsewhere the benchmark goes without that row.
SPARSELAB = (
    "sparselab==0.2.2; python_version >= '3.11' and python_version < '3.14' and "
    "(sys_platform == 'linux' or (sys_platform == 'darwin' and platform_machine == 'arm64'))"
)

setup(
    name="ash-wiring",
    version=version(),
    description="Sparse PyTorch layers whose wiring is learned by gradient descent",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The ash authors",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["ash", "ash.*"]),
    package_data={"ash": ["py.typed", "plot/web/*"]},
    install_requires=["torch>=2.11", "numpy>=1.26", "scipy>=1.11", "jaxtyping>=0.3"],
    extras_require={
        "plot": PLOT,
        # Node graphs in continuous time.
        "ode": ODE,
        "experiments": EXPERIMENTS,
        # Both are compiled from source against the installed torch: pip install --no-build-isolation
        "torch-sparse": ["torch-scatter>=2.1.2", "torch-sparse>=0.6.18"],
        "fast": FAST,
        # Kernels for GPUs; wheels of torch for CUDA bring it along.
        "gpu": GPU,
        "bench": [*EXPERIMENTS, *FAST, *PEERS, SPARSELAB],
        "docs": [*EXPERIMENTS, *DOCS],
        "test": TEST,
        "mutants": MUTANTS,
        "dev": [*EXPERIMENTS, *FAST, *PEERS, *TEST, *LINT],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
