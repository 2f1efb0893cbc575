"""The vocabulary that every other package shares; imports numpy, OmegaConf and the standard library only."""
