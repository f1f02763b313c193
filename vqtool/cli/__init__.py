"""The commands: one file each, named after the command. Each checks paths, calls the library and prints the result."""
