"""Input devices, one file each; the file's name is the device's name on the command line."""
