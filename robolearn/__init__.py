"""robolearn: learn robot policies from demonstrations, evaluate them honestly, refine and deploy them."""

__version__ = "0.1.0"
