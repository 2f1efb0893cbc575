"""One file per policy: its ``Config`` and its class."""
