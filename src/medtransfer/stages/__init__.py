"""One module a DVC stage or command: reads files, calls the module that does the work, writes files."""
