"""counterscan: the same body without the disease, or with it, from image-level labels alone."""

__version__ = "0.1.0"
