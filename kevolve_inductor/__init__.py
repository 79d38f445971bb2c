"""A torch.compile backend that searches for faster kernels: ``torch.compile(model, backend="kevolve")``."""

__version__ = "0.1.0"

__all__ = ["__version__"]
