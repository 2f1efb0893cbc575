"""MuJoCo environments: robosuite tasks made fast, native tasks, scripted experts."""
