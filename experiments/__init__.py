"""The experiments: `python -m experiments NAME [options]`; without a name it lists them."""
