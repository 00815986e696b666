"""The command line: one file a command. Importing it loads no torch until a command needs it."""
