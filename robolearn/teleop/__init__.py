"""A person at the controls: devices, their motion, and the recorder of simulation and robots."""
