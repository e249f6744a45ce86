"""Steps between models: a dense model made sparse, a sparse one frozen for inference, dead units stripped."""
