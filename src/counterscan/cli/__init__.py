"""The command line: one verb per job; nothing heavy is imported at the top."""
