"""The command line: a function a command. Importing it loads no torch until a command needs it."""
