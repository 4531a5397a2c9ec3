"""What writes the pages of docs/reference: settings, algorithms, commands, events and exit codes."""
