"""What runs on the robot: chunk execution and safety."""
