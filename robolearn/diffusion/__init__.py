"""Pure functions of tensors: noise schedules and samplers."""
